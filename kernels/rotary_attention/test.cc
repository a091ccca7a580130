// Every version of pythia::RotaryAttention against the reference, on fuzzed shapes: rotary_attention_test [seed] [cases].
#include "../native_test.h"

#include "../half.h"

using namespace pythia;

namespace {

struct Case {
  Attention a{};
  std::unique_ptr<float[]> qkv, cos, sin, bias, out, key_scale, value_scale;
  std::unique_ptr<int64_t[]> position;
  std::unique_ptr<char[]> key, value;
  size_t cache_bytes = 0, scales = 0, outs = 0;
  int64_t hidden = 0;  // places whose bias is -3e4: a query that sees no other has scores of few digits
};

Case fuzzed(Random& random) {
  Case c;
  Attention& a = c.a;
  a.head_dim = random.pick({32, 64, 80, 128, 256, 2, 6, 18, 34, 66});
  a.rotary_dim = std::min<int64_t>(a.head_dim, random.pick({8, 16, 20, 32, 64, 2, 0, 6}));
  a.batch = 1 + random.upto(2), a.heads = 1 + random.upto(4);
  a.fresh = random.pick({1, 1, 1, 2, 3, 4, 5, 8, 9, 17, 63, 64, 65, 130});
  a.total = a.fresh + random.pick({0, 0, 1, 3, 64, 100, 700});
  a.room = a.total + random.pick({0, 0, 5, 33});
  a.cache = CacheType(random.upto(2));
  if (random.upto(9) == 0)  // enough cached tokens for few heads that the length is split between threads
    a.batch = a.heads = 1, a.head_dim = 32, a.rotary_dim = 8, a.fresh = 1 + random.upto(7),
    a.total = 1024 + random.upto(999), a.room = a.total + random.upto(9);
  const int64_t hidden = a.heads * a.head_dim, positions = a.total + 3;
  const size_t rows = size_t(a.batch * a.heads * a.room);
  c.qkv = random.normal(size_t(a.batch * a.fresh * 3 * hidden));
  if (random.upto(3) == 0)  // a zero vector, whose scale is 0
    for (int64_t d = 0; d < a.head_dim; ++d) c.qkv[hidden + d] = c.qkv[2 * hidden + d] = 0;
  c.cos = random.normal(size_t(positions * (a.rotary_dim / 2)));
  c.sin = random.normal(size_t(positions * (a.rotary_dim / 2)));
  c.position.reset(new int64_t[size_t(a.batch * a.fresh)]);
  for (int64_t i = 0; i < a.batch * a.fresh; ++i) c.position[i] = random.upto(positions - 1);
  const int64_t biases = random.upto(1) ? a.batch : 1;
  a.bias_batch = biases == 1 ? 0 : a.fresh * a.total;
  c.bias = random.normal(size_t(biases * a.fresh * a.total));
  if (random.upto(1)) {  // as a mask of padding gives it: one row for all queries
    c.hidden = a.total / 3;
    for (int64_t i = 0; i < biases * a.fresh; ++i)
      for (int64_t j = 0; j < a.total; ++j) c.bias[i * a.total + j] = j < c.hidden ? -3e4f : 0.0f;
  }
  c.outs = size_t(a.batch * a.fresh * hidden);
  c.out.reset(new float[c.outs]);
  const size_t element = a.cache == CacheType::kFloat32 ? 4 : a.cache == CacheType::kFloat16 ? 2 : 1;
  c.cache_bytes = rows * size_t(a.head_dim) * element;
  c.scales = a.cache == CacheType::kInt8 ? rows : 0;
  c.key_scale = random.normal(c.scales, 0.01f), c.value_scale = random.normal(c.scales, 0.01f);
  for (auto* cache : {&c.key, &c.value}) {
    cache->reset(new char[c.cache_bytes]);
    for (size_t i = 0; i < rows * size_t(a.head_dim); ++i) {
      const float x = float(random.upto(2000) - 1000) / 500;
      const uint16_t half = half_of(x);
      const int8_t code = int8_t(x * 60);
      const void* bytes = element == 4 ? (const void*)&x : element == 2 ? (const void*)&half : &code;
      std::memcpy(cache->get() + i * element, bytes, element);
    }
  }
  a.qkv = c.qkv.get(), a.cos = c.cos.get(), a.sin = c.sin.get(), a.bias = c.bias.get(), a.out = c.out.get();
  a.position = c.position.get(), a.key = c.key.get(), a.value = c.value.get();
  a.key_scale = c.scales ? c.key_scale.get() : nullptr, a.value_scale = c.scales ? c.value_scale.get() : nullptr;
  return c;
}

template <typename T>
std::vector<T> copied(const std::unique_ptr<T[]>& from, size_t n) {
  return std::vector<T>(from.get(), from.get() + n);
}

template <typename T>
bool same(const std::vector<T>& x, const std::unique_ptr<T[]>& y) {
  return x.empty() || !std::memcmp(x.data(), y.get(), x.size() * sizeof(T));
}

// The outputs are the reference's to 1e-5; the cache, places that the call must not touch included, to the bit.
bool agrees(const Version& version, Random& random, size_t index) {
  Case c = fuzzed(random);
  const auto key = copied(c.key, c.cache_bytes), value = copied(c.value, c.cache_bytes);
  const auto key_scale = copied(c.key_scale, c.scales), value_scale = copied(c.value_scale, c.scales);
  attend_reference(c.a, kTwoThreads);
  const auto wanted = copied(c.out, c.outs);
  const auto wanted_key = copied(c.key, c.cache_bytes), wanted_value = copied(c.value, c.cache_bytes);
  const auto wanted_key_scale = copied(c.key_scale, c.scales), wanted_value_scale = copied(c.value_scale, c.scales);
  std::copy(key.begin(), key.end(), c.key.get());
  std::copy(value.begin(), value.end(), c.value.get());
  std::copy(key_scale.begin(), key_scale.end(), c.key_scale.get());
  std::copy(value_scale.begin(), value_scale.end(), c.value_scale.get());
  std::fill_n(c.out.get(), c.outs, NAN);
  version.attend(c.a, kTwoThreads);
  double worst = 0, most = 1e-6;
  const Attention& a = c.a;
  for (size_t i = 0; i < c.outs; ++i) {
    const int64_t query = int64_t(i) / (a.heads * a.head_dim) % a.fresh;
    const double error = std::fabs(double(c.out[i]) - wanted[i]);
    if (!(error < 1e9)) worst = 1e9;  // NaN, or not written
    if (a.total - a.fresh + query < c.hidden) continue;
    worst = std::max(worst, error), most = std::max(most, double(std::fabs(wanted[i])));
  }
  const bool cached = same(wanted_key, c.key) && same(wanted_value, c.value) && same(wanted_key_scale, c.key_scale) &&
                      same(wanted_value_scale, c.value_scale);
  if (worst <= 1e-5 * most && cached) return true;
  std::printf("%s, case %zu: error %.3g of %.3g%s; batch %ld heads %ld head_dim %ld rotary_dim %ld fresh %ld total %ld "
              "room %ld cache %d\n", version.name, index, worst, most, cached ? "" : ", cache differs", long(a.batch),
              long(a.heads), long(a.head_dim), long(a.rotary_dim), long(a.fresh), long(a.total), long(a.room), int(a.cache));
  return false;
}

}  // namespace

int main(int argc, char** argv) { return run(argc, argv, agrees); }
