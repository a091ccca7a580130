// pythia::RotaryAttention on a CPU; compiled once for each instruction set, into the namespace PYTHIA_ISA.
//
// First every new key is rotated and, with its value, written to the cache in the cache's type. Then attention reads the
// cache, new tokens included, in one of two ways:
//
// - few new tokens (decode): the cache is streamed once, keys first, then values; what limits is memory. When there are
//   fewer heads than threads, the cached length is split as well, and the parts are joined by their largest scores.
// - many (prefill): tiles of 64 queries by 64 keys with the softmax kept up to date as tiles go by (FlashAttention-2,
//   arXiv 2307.08691, algorithm 1), so that no row of scores is ever whole. Scores are kept as [key, query]: the product
//   then takes keys as they lie, softmax works on vectors of queries without a reduction across lanes, and the second
//   product reads its operand in the order in which it was written.
#include <algorithm>
#include <cmath>
#include <thread>
#include <type_traits>
#include <vector>

#include "../vector.h"
#include "attention.h"

namespace pythia {
namespace PYTHIA_ISA {
namespace {

constexpr int64_t kQueries = 64, kKeys = 64;  // a tile; both are multiples of every vector's width
constexpr int64_t kFewTokens = 4;             // below this, streaming beats tiles
constexpr int64_t kLeastSplit = 256;          // cached tokens that are worth a task of their own
constexpr float kNothing = -1e30f;            // finite, so that differences of it are no NaN

int64_t up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Scratch of one thread, kept between calls.
float* scratch(size_t floats) {
  thread_local std::vector<float> buffer;
  if (buffer.size() < floats) buffer.resize(floats);
  return buffer.data();
}

void rotate(const Attention& a, const float* x, int64_t position, float factor, float* y) {
  const int64_t half = a.rotary_dim / 2;
  const float *c = a.cos + position * half, *s = a.sin + position * half;
  for (int64_t i = 0; i < half; ++i) {
    y[i] = (x[i] * c[i] - x[half + i] * s[i]) * factor;
    y[half + i] = (x[half + i] * c[i] + x[i] * s[i]) * factor;
  }
  for (int64_t i = 2 * half; i < a.head_dim; ++i) y[i] = x[i] * factor;
}

const float* row_of(const Attention& a, int64_t b, int64_t t, int64_t part, int64_t h) {
  const int64_t hidden = a.heads * a.head_dim;
  return a.qkv + (b * a.fresh + t) * 3 * hidden + part * hidden + h * a.head_dim;
}

void put(const float* x, int64_t n, float* to, float*) { std::copy(x, x + n, to); }

void put(const float* x, int64_t n, uint16_t* to, float*) {
  for (int64_t d = 0; d < n; ++d) to[d] = half_of(x[d]);
}

void put(const float* x, int64_t n, int8_t* to, float* scale) {
  float most = 0;
  for (int64_t d = 0; d < n; ++d) most = std::max(most, std::fabs(x[d]));
  *scale = most / 127.0f;
  for (int64_t d = 0; d < n; ++d) to[d] = int8_t(most > 0 ? std::nearbyint(x[d] / *scale) : 0.0f);
}

template <typename C>
constexpr bool kScaled = std::is_same<C, int8_t>::value;

// One head of one row of the batch: its cache, and how it is read.
template <typename C>
struct Head {
  C *key, *value;
  float *key_scale, *value_scale;

  Head(const Attention& a, int64_t row)
      : key(static_cast<C*>(a.key) + row * a.room * a.head_dim),
        value(static_cast<C*>(a.value) + row * a.room * a.head_dim),
        key_scale(kScaled<C> ? a.key_scale + row * a.room : nullptr),
        value_scale(kScaled<C> ? a.value_scale + row * a.room : nullptr) {}
};

template <typename C>
void append(const Attention& a, int64_t row) {
  const Head<C> head(a, row);
  const int64_t b = row / a.heads, h = row % a.heads;
  float* turned = scratch(a.head_dim);
  for (int64_t t = 0; t < a.fresh; ++t) {
    const int64_t place = a.total - a.fresh + t;
    rotate(a, row_of(a, b, t, 1, h), a.position[b * a.fresh + t], 1.0f, turned);
    put(turned, a.head_dim, head.key + place * a.head_dim, kScaled<C> ? head.key_scale + place : nullptr);
    put(row_of(a, b, t, 2, h), a.head_dim, head.value + place * a.head_dim,
        kScaled<C> ? head.value_scale + place : nullptr);
  }
}

// ---- decode

// Four dot products at once, so that each vector of q is loaded once and four chains of additions run side by side.
template <typename C, int N>
inline void dots(const float* q, const C* k, int64_t n, float* out) {
  Floats acc[N] = {};
  int64_t d = 0;
  for (; d + kLanes <= n; d += kLanes) {
    const Floats x = load(q + d);
    for (int i = 0; i < N; ++i) acc[i] = fused(x, load(k + i * n + d), acc[i]);
  }
  if constexpr (N == 4) {
    sums(acc, out);
  } else {
    for (int i = 0; i < N; ++i) out[i] = sum(acc[i]);
  }
  for (; d < n; ++d)
    for (int i = 0; i < N; ++i) out[i] += q[d] * value_of(k[i * n + d]);
}

// out[d] += sum_j p[j] * v[j][d] for N vectors of d.
template <typename C, int N>
inline void mix(const float* p, const C* v, int64_t count, int64_t n, float* out) {
  Floats acc[N];
  for (int i = 0; i < N; ++i) acc[i] = load(out + i * kLanes);
  for (int64_t j = 0; j < count; ++j)
    for (int i = 0; i < N; ++i) acc[i] = fused(all(p[j]), load(v + j * n + i * kLanes), acc[i]);
  for (int i = 0; i < N; ++i) store(out + i * kLanes, acc[i]);
}

// What one query gathers from places [from, to): its largest score, the sum of exponentials, and the values they weigh.
struct Part {
  float most, total;
};

template <typename C>
Part gather(const Attention& a, const Head<C>& head, const float* q, const float* bias, int64_t from, int64_t to,
            float* p, float* out) {
  const int64_t n = a.head_dim, count = to - from;
  const C* key = head.key + from * n;
  int64_t j = 0;
  for (; j + 4 <= count; j += 4) dots<C, 4>(q, key + j * n, n, p + j);
  for (; j < count; ++j) dots<C, 1>(q, key + j * n, n, p + j);
  const int64_t padded = up(count, kLanes);
  for (j = count; j < padded; ++j) p[j] = kNothing;
  Floats most = all(kNothing);
  for (j = 0; j < count; ++j) p[j] = p[j] * (kScaled<C> ? head.key_scale[from + j] : 1.0f) + bias[from + j];
  for (j = 0; j < padded; j += kLanes) most = larger(most, load(p + j));
  const float largest_score = largest(most);
  Floats total = {};
  for (j = 0; j < padded; j += kLanes) {
    const Floats e = exp_of(load(p + j) - largest_score);
    total += e;
    store(p + j, e);
  }
  float sum_of = sum(total);
  for (j = count; j < padded; ++j) sum_of -= p[j];
  if (kScaled<C>)
    for (j = 0; j < count; ++j) p[j] *= head.value_scale[from + j];
  const C* value = head.value + from * n;
  std::fill(out, out + n, 0.0f);
  int64_t d = 0;
  for (; d + 8 * kLanes <= n; d += 8 * kLanes) mix<C, 8>(p, value + d, count, n, out + d);
  for (; d + 2 * kLanes <= n; d += 2 * kLanes) mix<C, 2>(p, value + d, count, n, out + d);
  for (; d + kLanes <= n; d += kLanes) mix<C, 1>(p, value + d, count, n, out + d);
  for (; d < n; ++d)
    for (j = 0; j < count; ++j) out[d] += p[j] * value_of(value[j * n + d]);
  return {largest_score, sum_of};
}

template <typename C>
struct Decode {
  const Attention& a;
  int64_t splits;
  std::vector<Part> parts;    // [batch * heads, fresh, splits]
  std::vector<float> gathered;  // [batch * heads, fresh, splits, head_dim]

  static void run(void* data, size_t task) {
    auto& self = *static_cast<Decode*>(data);
    const Attention& a = self.a;
    const int64_t row = int64_t(task) / self.splits, split = int64_t(task) % self.splits;
    const int64_t b = row / a.heads, h = row % a.heads, length = up(a.total, self.splits) / self.splits;
    float* q = scratch(a.head_dim + up(length, kLanes));
    float* p = q + a.head_dim;
    for (int64_t t = 0; t < a.fresh; ++t) {
      const int64_t visible = a.total - a.fresh + t + 1, at = (row * a.fresh + t) * self.splits + split;
      const int64_t from = std::min(visible, split * length), to = std::min(visible, from + length);
      rotate(a, row_of(a, b, t, 0, h), a.position[b * a.fresh + t], 1.0f / std::sqrt(float(a.head_dim)), q);
      const float* bias = a.bias + b * a.bias_batch + t * a.total;
      self.parts[at] = {kNothing, 0.0f};
      if (from < to)
        self.parts[at] = gather(a, Head<C>(a, row), q, bias, from, to, p, self.gathered.data() + at * a.head_dim);
    }
  }

  void join() const {
    for (int64_t row = 0; row < a.batch * a.heads; ++row)
      for (int64_t t = 0; t < a.fresh; ++t) {
        float* out = a.out + ((row / a.heads * a.fresh + t) * a.heads + row % a.heads) * a.head_dim;
        const int64_t at = (row * a.fresh + t) * splits;
        float most = kNothing, total = 0;
        for (int64_t s = 0; s < splits; ++s) most = std::max(most, parts[at + s].most);
        for (int64_t s = 0; s < splits; ++s) total += parts[at + s].total * std::exp(parts[at + s].most - most);
        std::fill(out, out + a.head_dim, 0.0f);
        for (int64_t s = 0; s < splits; ++s) {
          if (parts[at + s].total == 0) continue;
          const float share = std::exp(parts[at + s].most - most) / total;
          for (int64_t d = 0; d < a.head_dim; ++d) out[d] += share * gathered[(at + s) * a.head_dim + d];
        }
      }
  }
};

template <typename C>
void decode(const Attention& a, const Parallel& parallel) {
  const int64_t rows = a.batch * a.heads, threads = std::max(1u, std::thread::hardware_concurrency());
  const int64_t splits = std::clamp<int64_t>((2 * threads + rows - 1) / rows, 1, std::max<int64_t>(1, a.total / kLeastSplit));
  const int64_t wanted = rows >= threads ? 1 : splits;
  Decode<C> job{a, wanted, std::vector<Part>(rows * a.fresh * wanted),
                std::vector<float>(rows * a.fresh * wanted * a.head_dim)};
  parallel(size_t(rows * wanted), Decode<C>::run, &job);
  job.join();
}

// ---- prefill

// c[R][N vectors] (+)= a[R][k] b[k][N vectors]; a's rows are `rows` apart and its columns `columns`.
template <int R, int N>
inline void block(const float* a, int64_t rows, int64_t columns, const float* b, int64_t ldb, float* c, int64_t ldc,
                  int64_t depth, bool add) {
  Floats acc[R][N];
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) acc[r][n] = add ? load(c + r * ldc + n * kLanes) : Floats{};
  for (int64_t k = 0; k < depth; ++k) {
    Floats x[N];
    for (int n = 0; n < N; ++n) x[n] = load(b + k * ldb + n * kLanes);
    for (int r = 0; r < R; ++r) {
      const Floats y = all(a[r * rows + k * columns]);
      for (int n = 0; n < N; ++n) acc[r][n] = fused(y, x[n], acc[r][n]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) store(c + r * ldc + n * kLanes, acc[r][n]);
}

template <int N>
void column(int64_t m, const float* a, int64_t rows, int64_t columns, const float* b, int64_t ldb, float* c,
            int64_t ldc, int64_t depth, bool add) {
  int64_t i = 0;
  for (; i + 6 <= m; i += 6) block<6, N>(a + i * rows, rows, columns, b, ldb, c + i * ldc, ldc, depth, add);
  for (; i + 2 <= m; i += 2) block<2, N>(a + i * rows, rows, columns, b, ldb, c + i * ldc, ldc, depth, add);
  for (; i < m; ++i) block<1, N>(a + i * rows, rows, columns, b, ldb, c + i * ldc, ldc, depth, add);
}

// c [m, n] (+)= a [m, depth] b [depth, n], n a multiple of the vector's width.
void product(int64_t m, int64_t n, const float* a, int64_t rows, int64_t columns, const float* b, int64_t ldb, float* c,
             int64_t ldc, int64_t depth, bool add) {
  int64_t j = 0;
  for (; j + 2 * kLanes <= n; j += 2 * kLanes) column<2>(m, a, rows, columns, b + j, ldb, c + j, ldc, depth, add);
  for (; j < n; j += kLanes) column<1>(m, a, rows, columns, b + j, ldb, c + j, ldc, depth, add);
}

// Rows of the cache as float, `width` apart; where they are that already, where they lie.
const float* as_floats(const float* x, const float*, int64_t, int64_t n, int64_t width, float* to, int64_t count) {
  if (n == width) return x;
  for (int64_t j = 0; j < count; ++j) {
    std::copy(x + j * n, x + (j + 1) * n, to + j * width);
    std::fill(to + j * width + n, to + (j + 1) * width, 0.0f);
  }
  return to;
}

template <typename C>
const float* as_floats(const C* x, const float* scale, int64_t from, int64_t n, int64_t width, float* to,
                       int64_t count) {
  for (int64_t j = 0; j < count; ++j) {
    const float s = kScaled<C> ? scale[from + j] : 1.0f;
    int64_t d = 0;
    for (; d + kLanes <= n; d += kLanes) store(to + j * width + d, load(x + j * n + d) * s);
    for (; d < n; ++d) to[j * width + d] = value_of(x[j * n + d]) * s;
    std::fill(to + j * width + n, to + (j + 1) * width, 0.0f);
  }
  return to;
}

template <typename C>
struct Prefill {
  const Attention& a;
  std::vector<char> same_bias;  // [batch]: every query of the row has the first one's bias

  static void run(void* data, size_t task) {
    auto& self = *static_cast<Prefill*>(data);
    const Attention& a = self.a;
    const int64_t tiles = (a.fresh + kQueries - 1) / kQueries;
    // The longest tiles come first, so that threads end together.
    self.tile(int64_t(task) % (a.batch * a.heads), tiles - 1 - int64_t(task) / (a.batch * a.heads));
  }

  void tile(int64_t row, int64_t tile) const {
    const int64_t b = row / a.heads, h = row % a.heads, n = a.head_dim, width = up(n, kLanes);
    const int64_t first = tile * kQueries, count = std::min(kQueries, a.fresh - first), lanes = up(count, kLanes);
    const int64_t past = a.total - a.fresh, end = past + first + count;
    const Head<C> head(a, row);
    float* q = scratch(n * kQueries + kKeys * kQueries + (kQueries + 2 * kKeys) * width + 3 * kQueries + n);
    float* scores = q + n * kQueries;            // [kKeys, kQueries]
    float* mixed = scores + kKeys * kQueries;    // [kQueries, width]
    float* keys = mixed + kQueries * width;      // [kKeys, width]
    float* values = keys + kKeys * width;        // [kKeys, width]
    float *most = values + kKeys * width, *total = most + kQueries, *shrink = total + kQueries, *turned = shrink + kQueries;

    std::fill(q, q + n * kQueries, 0.0f);
    for (int64_t i = 0; i < count; ++i) {  // q is kept as [head_dim, query]
      const int64_t t = first + i;
      rotate(a, row_of(a, b, t, 0, h), a.position[b * a.fresh + t], 1.0f / std::sqrt(float(n)), turned);
      for (int64_t d = 0; d < n; ++d) q[d * kQueries + i] = turned[d];
    }
    std::fill(mixed, mixed + kQueries * width, 0.0f);
    std::fill(most, most + kQueries, kNothing);
    std::fill(total, total + kQueries, 0.0f);

    for (int64_t from = 0; from < end; from += kKeys) {
      const int64_t m = std::min(kKeys, end - from);
      const float* k = as_floats(head.key + from * n, head.key_scale, from, n, width, keys, m);
      product(m, lanes, k, width, 1, q, kQueries, scores, kQueries, n, false);
      hide(scores, b, first, count, past, from, m);
      for (int64_t i = 0; i < lanes; i += kLanes) {
        const Floats before = load(most + i);
        Floats now = before, sum_of = {};
        for (int64_t j = 0; j < m; ++j) now = larger(now, load(scores + j * kQueries + i));
        for (int64_t j = 0; j < m; ++j) {
          const Floats e = exp_of(load(scores + j * kQueries + i) - now);
          sum_of += e;
          store(scores + j * kQueries + i, e);
        }
        const Floats less = exp_of(before - now);
        store(most + i, now);
        store(shrink + i, less);
        store(total + i, load(total + i) * less + sum_of);
      }
      if (from)
        for (int64_t i = 0; i < count; ++i) {
          const Floats less = all(shrink[i]);
          if (shrink[i] == 1.0f) continue;
          for (int64_t d = 0; d < width; d += kLanes) store(mixed + i * width + d, load(mixed + i * width + d) * less);
        }
      const float* v = as_floats(head.value + from * n, head.value_scale, from, n, width, values, m);
      product(count, width, scores, 1, kQueries, v, width, mixed, width, m, true);
    }
    for (int64_t i = 0; i < count; ++i) {
      float* out = a.out + ((b * a.fresh + first + i) * a.heads + h) * n;
      for (int64_t d = 0; d < n; ++d) out[d] = mixed[i * width + d] / total[i];
    }
  }

  // Add the bias to scores [keys, queries], and take away the keys that come after a query.
  void hide(float* scores, int64_t b, int64_t first, int64_t count, int64_t past, int64_t from, int64_t m) const {
    const float* bias = a.bias + b * a.bias_batch + first * a.total + from;
    for (int64_t j = 0; j < m; ++j) {
      float* row = scores + j * kQueries;
      if (!same_bias[b])
        for (int64_t i = 0; i < count; ++i) row[i] += bias[i * a.total + j];
      else if (bias[j] != 0)
        for (int64_t i = 0; i < count; ++i) row[i] += bias[j];
      const int64_t hidden = std::min(count, from + j - past - first);  // queries before this key
      for (int64_t i = 0; i < hidden; ++i) row[i] = kNothing;
    }
  }
};

template <typename C>
void prefill(const Attention& a, const Parallel& parallel) {
  Prefill<C> job{a, std::vector<char>(size_t(a.batch))};
  for (int64_t b = 0; b < a.batch; ++b) {
    const float* bias = a.bias + b * a.bias_batch;
    job.same_bias[b] = 1;
    for (int64_t t = 1; t < a.fresh && job.same_bias[b]; ++t)
      job.same_bias[b] = std::equal(bias, bias + a.total, bias + t * a.total);
  }
  const int64_t tiles = (a.fresh + kQueries - 1) / kQueries;
  parallel(size_t(a.batch * a.heads * tiles), Prefill<C>::run, &job);
}

template <typename C>
void attend_cached(const Attention& a, const Parallel& parallel) {
  parallel(
      size_t(a.batch * a.heads),
      [](void* data, size_t row) { append<C>(*static_cast<const Attention*>(data), int64_t(row)); },
      const_cast<Attention*>(&a));
  if (a.fresh < kFewTokens)
    decode<C>(a, parallel);
  else
    prefill<C>(a, parallel);
}

}  // namespace

void attend(const Attention& a, const Parallel& parallel) {
  if (a.cache == CacheType::kFloat32) attend_cached<float>(a, parallel);
  if (a.cache == CacheType::kFloat16) attend_cached<uint16_t>(a, parallel);
  if (a.cache == CacheType::kInt8) attend_cached<int8_t>(a, parallel);
}

}  // namespace PYTHIA_ISA
}  // namespace pythia
