// Every instruction set against the reference, on fuzzed shapes: native_test [seed] [cases]. Meant for sanitizers.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "half.h"
#include "rotary_attention/attention.h"

using namespace pythia;

namespace {

// Buffers of exactly the size that is needed, so that a sanitizer sees the first step outside.
struct Case {
  Attention a{};
  std::unique_ptr<float[]> qkv, cos, sin, bias, out, key_scale, value_scale;
  std::unique_ptr<int64_t[]> position;
  std::unique_ptr<char[]> key, value;
  size_t cache_bytes = 0, scales = 0, outs = 0;
  int64_t hidden = 0;  // places whose bias is -3e4: a query that sees no other has scores of few digits
};

std::unique_ptr<float[]> normal(size_t n, std::mt19937& random, float by = 1.0f) {
  std::normal_distribution<float> draw;
  std::unique_ptr<float[]> x(new float[n]);
  for (size_t i = 0; i < n; ++i) x[i] = by * draw(random);
  return x;
}

Case fuzzed(std::mt19937& random) {
  const auto pick = [&](std::initializer_list<int64_t> of) { return of.begin()[random() % of.size()]; };
  const auto upto = [&](int64_t n) { return int64_t(random() % (n + 1)); };
  Case c;
  Attention& a = c.a;
  a.head_dim = pick({32, 64, 80, 128, 256, 6, 18, 34, 66});
  a.rotary_dim = std::min<int64_t>(a.head_dim, pick({8, 16, 20, 32, 64, 2, 0, 6}));
  a.batch = 1 + upto(2), a.heads = 1 + upto(4);
  if (random() % 4 == 0) a.batch = a.heads = 1;  // fewer than threads: the cached length is split
  a.fresh = pick({1, 1, 1, 2, 3, 4, 5, 7, 17, 63, 64, 65, 130});
  a.total = a.fresh + pick({0, 0, 1, 3, 64, 100, 700, 1100});
  a.room = a.total + pick({0, 0, 5, 33});
  a.cache = CacheType(random() % 3);
  const int64_t hidden = a.heads * a.head_dim, positions = a.total + 3;
  const size_t rows = size_t(a.batch * a.heads * a.room);
  c.qkv = normal(size_t(a.batch * a.fresh * 3 * hidden), random);
  c.cos = normal(size_t(positions * (a.rotary_dim / 2)), random);
  c.sin = normal(size_t(positions * (a.rotary_dim / 2)), random);
  c.position.reset(new int64_t[size_t(a.batch * a.fresh)]);
  for (int64_t i = 0; i < a.batch * a.fresh; ++i) c.position[i] = upto(positions - 1);
  const bool shared = random() % 2, alike = random() % 2;
  a.bias_batch = shared ? 0 : a.fresh * a.total;
  c.bias = normal(size_t((shared ? 1 : a.batch) * a.fresh * a.total), random);
  c.hidden = alike ? a.total / 3 : 0;
  if (alike)  // as a mask of padding gives it: one row for all queries
    for (int64_t b = 0; b < (shared ? 1 : a.batch); ++b)
      for (int64_t t = 0; t < a.fresh; ++t)
        for (int64_t j = 0; j < a.total; ++j)
          c.bias[(b * a.fresh + t) * a.total + j] = j < c.hidden ? -3e4f : 0.0f;
  c.outs = size_t(a.batch * a.fresh * hidden);
  c.out.reset(new float[c.outs]);
  const size_t element = a.cache == CacheType::kFloat32 ? 4 : a.cache == CacheType::kFloat16 ? 2 : 1;
  c.cache_bytes = rows * a.head_dim * element;
  c.scales = a.cache == CacheType::kInt8 ? rows : 0;
  c.key_scale = normal(c.scales, random, 0.01f), c.value_scale = normal(c.scales, random, 0.01f);
  for (auto* cache : {&c.key, &c.value}) {
    cache->reset(new char[c.cache_bytes]);
    for (size_t i = 0; i < rows * a.head_dim; ++i) {
      const float x = float(int(random() % 2001) - 1000) / 500;
      const uint16_t half = half_of(x);
      const int8_t code = int8_t(x * 60);
      std::memcpy(cache->get() + i * element, element == 4 ? (const void*)&x : element == 2 ? (const void*)&half : &code, element);
    }
  }
  a.qkv = c.qkv.get(), a.cos = c.cos.get(), a.sin = c.sin.get(), a.bias = c.bias.get(), a.out = c.out.get();
  a.position = c.position.get(), a.key = c.key.get(), a.value = c.value.get();
  a.key_scale = c.scales ? c.key_scale.get() : nullptr, a.value_scale = c.scales ? c.value_scale.get() : nullptr;
  return c;
}

const Parallel kThreads{[](void*, size_t n, void (*fn)(void*, size_t), void* data) {
                          std::vector<std::thread> threads;
                          for (size_t w = 0; w < 2; ++w)
                            threads.emplace_back([=] { for (size_t i = w; i < n; i += 2) fn(data, i); });
                          for (std::thread& t : threads) t.join();
                        },
                        nullptr};

// The first call writes into the cache; the second starts from the same bytes.
bool agrees(Case& c, const char* name, Attend attend, size_t index) {
  const std::vector<char> key(c.key.get(), c.key.get() + c.cache_bytes), value(c.value.get(), c.value.get() + c.cache_bytes);
  const std::vector<float> ks(c.key_scale.get(), c.key_scale.get() + c.scales), vs(c.value_scale.get(), c.value_scale.get() + c.scales);
  attend_reference(c.a, kThreads);
  const std::vector<float> wanted(c.out.get(), c.out.get() + c.outs);
  const std::vector<char> wanted_key(c.key.get(), c.key.get() + c.cache_bytes), wanted_value(c.value.get(), c.value.get() + c.cache_bytes);
  const std::vector<float> wanted_ks(c.key_scale.get(), c.key_scale.get() + c.scales);
  std::copy(key.begin(), key.end(), c.key.get());
  std::copy(value.begin(), value.end(), c.value.get());
  std::copy(ks.begin(), ks.end(), c.key_scale.get());
  std::copy(vs.begin(), vs.end(), c.value_scale.get());
  attend(c.a, kThreads);
  double worst = 0, most = 1e-6;
  const int64_t width = c.a.heads * c.a.head_dim;
  for (size_t i = 0; i < c.outs; ++i) {
    const int64_t query = int64_t(i) / width % c.a.fresh;
    if (c.a.total - c.a.fresh + query < c.hidden && std::fabs(c.out[i]) < 1e9) continue;
    worst = std::max(worst, double(std::fabs(c.out[i] - wanted[i])));
    most = std::max(most, double(std::fabs(wanted[i])));
    if (!(std::fabs(c.out[i] - wanted[i]) < 1e9)) worst = 1e9;  // NaN
  }
  const bool cached = std::equal(wanted_key.begin(), wanted_key.end(), c.key.get()) &&
                      std::equal(wanted_value.begin(), wanted_value.end(), c.value.get()) &&
                      std::equal(wanted_ks.begin(), wanted_ks.end(), c.key_scale.get());
  const Attention& a = c.a;
  if (worst <= 1e-5 * most && cached) return true;
  std::printf("%s, case %zu: error %.3g of %.3g%s; batch %ld heads %ld head_dim %ld rotary_dim %ld fresh %ld total %ld "
              "room %ld cache %d\n", name, index, worst, most, cached ? "" : ", cache differs", long(a.batch), long(a.heads),
              long(a.head_dim), long(a.rotary_dim), long(a.fresh), long(a.total), long(a.room), int(a.cache));
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  std::mt19937 random(argc > 1 ? unsigned(std::atoi(argv[1])) : 0);
  const size_t cases = argc > 2 ? size_t(std::atoi(argv[2])) : 200;
  std::vector<Chosen> sets;
  for (const char* name : {"base", "avx2", "avx512"}) {
    setenv("PYTHIA_KERNELS_ISA", name, 1);
    const Chosen chosen = choose();
    if (chosen.attend) sets.push_back(chosen);
    else std::printf("skipped: %s is not to be had here\n", name);
  }
  size_t failed = 0;
  for (size_t i = 0; i < cases; ++i) {
    Case c = fuzzed(random);
    for (const Chosen& set : sets) failed += !agrees(c, set.name, set.attend, i);
  }
  std::printf("%zu cases, %zu instruction sets, %zu failures\n", cases, sets.size(), failed);
  return failed ? 1 : 0;
}
