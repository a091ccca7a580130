// What a layer's parts take, each by itself in a loop of its own, for benchmarks/beyond.py: one row, one thread, weights of 4
// bits in groups of 32, a cache of float16 that holds 48 tokens. Prints a line per width: the width; microseconds of the four
// products, of attention, and of roundings, both normalisations and the activation together.
//
// Usage: layer_parts [width ...]
#include <chrono>
#include <cstdio>

#include "../native_test.h"
#include "../team.h"
#include "layers.h"

using namespace pythia;

namespace {

// The median of many calls, in microseconds.
template <typename F>
double timed(F f) {
  std::vector<double> times(200);
  for (double& taken : times) {
    const auto began = std::chrono::steady_clock::now();
    f();
    taken = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - began).count();
  }
  std::nth_element(times.begin(), times.begin() + 100, times.end());
  return times[100];
}

struct Made {
  std::vector<std::unique_ptr<float[]>> floats;
  std::vector<std::unique_ptr<uint8_t[]>> bytes;
  const float* drawn(Random& random, int64_t n, float by) {
    floats.push_back(random.normal(size_t(n), by));
    return floats.back().get();
  }
  uint8_t* drawn(Random& random, int64_t n) {
    bytes.emplace_back(new uint8_t[size_t(n)]);
    for (int64_t i = 0; i < n; ++i) bytes.back()[size_t(i)] = uint8_t(random.upto(100));  // as float16 finite
    return bytes.back().get();
  }
};

void measure(int64_t width, const Version& version) {
  constexpr int64_t kHead = 32, kTotal = 48, kRoom = 64;
  Random random{std::mt19937(0)};
  Made made;
  const int64_t inner = 4 * width;
  Attention a{};
  const int64_t position = kTotal - 1;
  a.batch = a.fresh = 1, a.heads = width / kHead, a.head_dim = kHead, a.rotary_dim = 8, a.total = kTotal, a.room = kRoom;
  a.cache = CacheType::kFloat16, a.cos = made.drawn(random, 4 * kTotal, 1), a.sin = made.drawn(random, 4 * kTotal, 1);
  const std::vector<float> bias(static_cast<size_t>(kTotal));
  a.position = &position, a.bias = bias.data();
  const float* x = made.drawn(random, inner, 1);
  const float* qkv = made.drawn(random, 3 * width, 1);
  std::vector<float> y(static_cast<size_t>(inner)), other(y);

  double products = 0, roundings = 0;
  for (int i = 0; i < kLinears; ++i) {
    Product p{};
    p.rows = 1, p.bits = 4, p.block = 32, p.depth = i == kDown ? inner : width, p.x = x, p.y = y.data();
    p.columns = i == kQkv ? 3 * width : i == kUp ? inner : width;
    p.codes = made.drawn(random, p.columns * p.row_bytes());
    p.scale = made.drawn(random, p.columns * p.blocks(), 0.01f), p.bias = made.drawn(random, p.columns, 0.1f);
    float* memory = scratch(kCall, version.product->floats(p));
    version.product->begin(p, memory);
    roundings += timed([&] { version.product->round(p, memory, 0, 1); });
    products += timed([&] { version.product->multiply(p, memory, 0, p.columns); });
  }
  a.qkv = qkv, a.out = y.data(), a.key = made.drawn(random, 2 * width * kRoom), a.value = made.drawn(random, 2 * width * kRoom);
  const double attention = timed([&] { version.attend(a, kAlone); });
  const Normalization norm{1, width, 1e-5f, x, 2, {qkv, qkv}, {qkv, qkv}, {y.data(), other.data()}};
  const double norms = timed([&] { version.normalize(norm); });
  const double activation = timed([&] {
    std::copy(x, x + inner, y.begin());
    version.activate(Activation::kGelu, y.data(), inner);
  });
  std::printf("%ld %.3f %.3f %.3f\n", long(width), products, attention, roundings + norms + activation);
}

}  // namespace

int main(int argc, char** argv) {
  const Version* version = chosen();
  if (!version || !version->product) return std::printf("no version with products runs here\n"), 1;
  for (int i = 1; i < argc; ++i) measure(std::atol(argv[i]), *version);
  return 0;
}
