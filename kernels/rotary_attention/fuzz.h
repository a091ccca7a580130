// Calls of random shapes, for the tests.
#pragma once

#include "../native_test.h"

#include "../half.h"

namespace pythia {

struct Case {
  Attention a{};
  std::unique_ptr<float[]> qkv, cos, sin, bias, out, key_scale, value_scale;
  std::unique_ptr<int64_t[]> position;
  std::unique_ptr<char[]> key, value;
  size_t qkvs = 0, angles = 0, biases = 0, outs = 0, cache_bytes = 0, scales = 0;  // how many there are of each
  int64_t positions = 0;
  int64_t hidden = 0;  // places whose bias is -3e4: a query that sees no other has scores of few digits

  // Hostile numbers among the fresh queries, keys and values of one head, and among its past where that holds floats.
  void spoil(Random& random, int64_t row) {
    const int64_t b = row / a.heads, h = row % a.heads;
    for (int64_t t = 0; t < 3 * a.fresh; ++t)
      if (random.upto(1)) random.spoil(qkv.get() + ((b * 3 * a.fresh + t) * a.heads + h) * a.head_dim, size_t(a.head_dim), 20);
    if (a.cache == CacheType::kFloat32)
      for (auto* cache : {&key, &value})
        random.spoil(reinterpret_cast<float*>(cache->get()) + row * a.room * a.head_dim, size_t(a.room * a.head_dim), 50);
    if (scales) random.spoil(key_scale.get() + row * a.room, size_t(a.room), 5);
  }
};

// A call of `fresh` tokens after `past`, for one of the suite's heads or another.
inline Case fuzzed(Random& random, int64_t batch, int64_t heads, int64_t fresh, int64_t past) {
  Case c;
  Attention& a = c.a;
  a.head_dim = random.pick({32, 64, 80, 128, 256, 2, 6, 18, 34, 66});
  a.rotary_dim = std::min<int64_t>(a.head_dim, random.pick({8, 16, 20, 32, 64, 2, 0, 6}));
  a.batch = batch, a.heads = heads, a.fresh = fresh, a.total = fresh + past;
  a.room = a.total + random.pick({0, 0, 5, 33});
  a.cache = CacheType(random.upto(2));
  const int64_t hidden = a.heads * a.head_dim;
  const size_t rows = size_t(a.batch * a.heads * a.room);
  c.positions = a.total + 3;
  c.qkvs = size_t(a.batch * a.fresh * 3 * hidden), c.qkv = random.normal(c.qkvs);
  const int64_t special = random.upto(5);  // of int8's: a scale of 0, one that is rounded itself, codes half way
  for (int64_t d = 0; d < a.head_dim && special < 3; ++d)
    for (float* x : {&c.qkv[hidden + d], &c.qkv[2 * hidden + d]})
      *x = special == 0 ? 0.0f : special == 1 ? 2.6e-43f : d ? float(d % 9) - 3.5f : 127.0f;
  c.angles = size_t(c.positions * (a.rotary_dim / 2)), c.cos = random.normal(c.angles), c.sin = random.normal(c.angles);
  c.position.reset(new int64_t[size_t(a.batch * a.fresh)]);
  for (int64_t i = 0; i < a.batch * a.fresh; ++i) c.position[i] = random.upto(c.positions - 1);
  const int64_t biases = random.upto(1) ? a.batch : 1;
  a.bias_batch = biases == 1 ? 0 : a.fresh * a.total;
  c.biases = size_t(biases * a.fresh * a.total), c.bias = random.normal(c.biases);
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

// A cache and its scales as they were at some time.
struct Cached {
  std::vector<char> key, value;
  std::vector<float> key_scale, value_scale;

  explicit Cached(const Case& c)
      : key(copied(c.key, c.cache_bytes)),
        value(copied(c.value, c.cache_bytes)),
        key_scale(copied(c.key_scale, c.scales)),
        value_scale(copied(c.value_scale, c.scales)) {}

  // With the fresh tokens of one row of the batch and head left out; -1: of none.
  Cached without(const Attention& a, int64_t row) const {
    Cached rest = *this;
    if (row < 0) return rest;
    const size_t place = key.size() / size_t(a.batch * a.heads * a.room);
    const size_t first = size_t(row * a.room + a.total - a.fresh), fresh = size_t(a.fresh);
    for (auto* of : {&rest.key, &rest.value}) std::fill_n(of->begin() + int64_t(first * place), fresh * place, char(0));
    for (auto* of : {&rest.key_scale, &rest.value_scale})
      if (!of->empty()) std::fill_n(of->begin() + int64_t(first), fresh, 0.0f);
    return rest;
  }

  void restore(Case& c) const {
    std::copy(key.begin(), key.end(), c.key.get());
    std::copy(value.begin(), value.end(), c.value.get());
    std::copy(key_scale.begin(), key_scale.end(), c.key_scale.get());
    std::copy(value_scale.begin(), value_scale.end(), c.value_scale.get());
  }
};

template <typename T>
bool same_bits(const std::vector<T>& x, const std::vector<T>& y) {
  return x.size() == y.size() && (x.empty() || !std::memcmp(x.data(), y.data(), x.size() * sizeof(T)));
}

inline bool same_bits(const Cached& x, const Cached& y) {
  return same_bits(x.key, y.key) && same_bits(x.value, y.value) && same_bits(x.key_scale, y.key_scale) &&
         same_bits(x.value_scale, y.value_scale);
}

inline void print(const char* who, size_t index, double worst, double most, bool cached, const Attention& a) {
  std::printf("%s, case %zu: error %.3g of %.3g%s; batch %ld heads %ld head_dim %ld rotary_dim %ld fresh %ld total %ld "
              "room %ld cache %d\n", who, index, worst, most, cached ? "" : ", cache differs", long(a.batch), long(a.heads),
              long(a.head_dim), long(a.rotary_dim), long(a.fresh), long(a.total), long(a.room), int(a.cache));
}

}  // namespace pythia
