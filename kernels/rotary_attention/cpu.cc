// pythia::RotaryAttention on a CPU; compiled once for each instruction set, into the namespace PYTHIA_ISA.
//
// Every new key is rotated and, with its value, written to the cache in the cache's type. Then attention reads the
// cache, new tokens included, in one of two ways:
//
// - few new tokens (decode): the cache is streamed once, keys first, then values; what limits is memory. When there are
//   fewer heads than threads, the cached length is split as well, and the parts are joined by their largest scores.
// - many (prefill): tiles of 64 queries by 64 keys with the softmax kept up to date as tiles go by (FlashAttention-2,
//   arXiv 2307.08691, algorithm 1), so that no row of scores is ever whole. Scores are kept as [key, query]: the product
//   then takes keys as they lie, softmax works on vectors of queries without a reduction across lanes, and the second
//   product reads its operand in the order in which it was written.
//
// No template of the standard library is used: an instantiation could reach processors that lack these instructions,
// since a linker keeps one of several.
#include "attention.h"

#include "../vector.h"

namespace pythia {
namespace PYTHIA_ISA {
namespace {

constexpr int64_t kQueries = 64, kKeys = 64;  // a tile; both are multiples of every vector's width
constexpr int64_t kStripe = 16;               // keys whose hidden queries are left out together
// Below this, streaming beats tiles, by trial. Four lanes take long to widen codes, and streaming does that for every query.
constexpr int64_t kFewTokens = kLanes == 4 ? 4 : 9;
constexpr int64_t kBlock = 256;               // cached tokens that several queries share while they are near
constexpr int64_t kRows = 64;                 // rows of values that are mixed while they are near
constexpr int64_t kLeastSplit = 256;          // cached tokens that are worth a task of their own
constexpr float kNothing = -__FLT_MAX__;      // finite, so that differences of it are no NaN
constexpr float kHidden = -__builtin_inff();

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

void fill(float* x, int64_t n, float with) {
  for (int64_t i = 0; i < n; ++i) x[i] = with;
}

template <typename C>
constexpr bool kScaled = sizeof(C) == 1;

// ---- the cache

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

const float* row_of(const Attention& a, int64_t b, int64_t t, int64_t part, int64_t h) {
  const int64_t hidden = a.heads * a.head_dim;
  return a.qkv + (b * a.fresh + t) * 3 * hidden + part * hidden + h * a.head_dim;
}

void rotate_head(const Attention& a, const float* x, int64_t position, float* y) {
  const int64_t half = a.rotary_dim / 2;
  const float *c = a.cos + position * half, *s = a.sin + position * half;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Floats first = load(x + i), second = load(x + half + i), cos = load(c + i), sin = load(s + i);
    store(y + i, first * cos - second * sin);
    store(y + half + i, second * cos + first * sin);
  }
  for (; i < half; ++i) {
    y[i] = x[i] * c[i] - x[half + i] * s[i];
    y[half + i] = x[half + i] * c[i] + x[i] * s[i];
  }
  std::memcpy(y + 2 * half, x + 2 * half, size_t(a.head_dim - 2 * half) * sizeof(float));
}

void put(const float* x, int64_t n, float* to, float*) { std::memcpy(to, x, size_t(n) * sizeof(float)); }

void put(const float* x, int64_t n, uint16_t* to, float*) {
  int64_t d = 0;
  for (; d + kLanes <= n; d += kLanes) store(to + d, load(x + d));
  for (; d < n; ++d) to[d] = half_of(x[d]);
}

// Codes of v / scale; where the scale is so small that it was rounded itself, no further than 127.
inline Floats quantized(Floats v, Floats scale) {
  v = round(v / scale);
  v = v > 127.0f ? broadcast(127.0f) : v;
  return v < -127.0f ? broadcast(-127.0f) : v;
}

void put(const float* x, int64_t n, int8_t* to, float* scale) {
  Floats most = {}, poison = {};  // a number that is not finite makes the scale NaN, so that it is not lost
  float tail[kLanes] = {};        // what is left over, made up to a vector
  const int64_t whole = n / kLanes * kLanes;
  for (int64_t d = whole; d < n; ++d) tail[d - whole] = x[d];
  for (int64_t d = 0; d <= whole; d += kLanes) {
    const Floats v = d < whole ? load(x + d) : load(tail);
    most = max(most, v < 0.0f ? -v : v);
    poison += v * 0.0f;
  }
  *scale = reduce_max(most) / 127.0f + reduce_add(poison);
  if (!(*scale > 0)) {
    std::memset(to, 0, size_t(n));
    return;
  }
  for (int64_t d = 0; d < whole; d += kLanes) store(to + d, quantized(load(x + d), broadcast(*scale)));
  int8_t codes[kLanes];
  store(codes, quantized(load(tail), broadcast(*scale)));
  for (int64_t d = whole; d < n; ++d) to[d] = codes[d - whole];
}

// Writes token t of one head. `turned` is room for one head.
template <typename C>
void append(const Attention& a, int64_t row, int64_t t, float* turned) {
  const Head<C> head(a, row);
  const int64_t b = row / a.heads, h = row % a.heads, place = a.total - a.fresh + t;
  rotate_head(a, row_of(a, b, t, 1, h), a.position[b * a.fresh + t], turned);
  put(turned, a.head_dim, head.key + place * a.head_dim, kScaled<C> ? head.key_scale + place : nullptr);
  put(row_of(a, b, t, 2, h), a.head_dim, head.value + place * a.head_dim,
      kScaled<C> ? head.value_scale + place : nullptr);
}

// ---- decode

// How far ahead memory is prefetched; places past the cache's end do no harm.
// - Eight lanes: numbers that take work to widen are otherwise waited for (float16 took 1.31 times as long as reading, int8
//   1.68; so 1.18 and 1.34); floats come in time by themselves, and prefetching slowed them (1.10 to 1.25).
// - Sixteen lanes outrun what comes by itself: memory is prefetched once, from 4,096 bytes ahead on, for the first cache
//   alone, or closer by, and what comes later as well, to have it in the second cache (`PrefetchPolicy`).
enum Prefetch { kNone, kNear, kOnce, kTwice };
constexpr int64_t kLine = 64;

// Rows that are read in order, and what is read after them, which is prefetched when their end is near.
template <typename C, Prefetch kHow>
struct Stream {
  uintptr_t end, jump;

  Stream(const C* rows_end, const C* next)
      : end(reinterpret_cast<uintptr_t>(rows_end)), jump(reinterpret_cast<uintptr_t>(next) - end) {}

  // `count` numbers are about to be read from p on.
  void prefetch(const C* p, int64_t count) const {
    const auto at = reinterpret_cast<uintptr_t>(p);
    for (int64_t byte = 0; kHow != kNone && byte < count * int64_t(sizeof(C)); byte += kLine) {
      const uintptr_t line = at + uintptr_t(byte);
      if (kHow == kNear) __builtin_prefetch(place(line + 2048 / sizeof(C)));
      if (kHow == kOnce) __builtin_prefetch(place(line + (sizeof(C) < 4 ? 8192 : 4096)), 0, 0);
      if (kHow == kTwice) {
        __builtin_prefetch(place(line + 2048));
        __builtin_prefetch(place(line + 10240), 0, 2);
      }
    }
  }

 private:
  const void* place(uintptr_t line) const { return reinterpret_cast<const void*>(line < end ? line : line + jump); }
};

// kLanes dot products at once, so that their sums are one vector; with rows of k no further than `last`, which stands for
// those after it.
template <typename C>
inline Floats dots(const float* q, const C* k, int64_t n, int64_t last) {
  const C* row[kLanes];
  for (int i = 0; i < kLanes; ++i) row[i] = k + min(i, last) * n;
  Floats acc[kLanes] = {};
  int64_t d = 0;
  for (; d + kLanes <= n; d += kLanes) {
    const Floats x = load(q + d);
    for (int i = 0; i < kLanes; ++i) acc[i] = fmadd(x, load(row[i] + d), acc[i]);
  }
  Floats out = reduce_add(acc);
  for (; d < n; ++d)
    for (int i = 0; i < kLanes; ++i) out[i] += q[d] * to_float(row[i][d]);
  return out;
}

// With kLanes rows of a size that is known, whose places need no registers.
template <typename C, int kSize>
inline Floats dots(const float* q, const C* k) {
  Floats acc[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    acc[i] = Floats{};
    for (int d = 0; d < kSize; d += kLanes) acc[i] = fmadd(load(q + d), load(k + i * kSize + d), acc[i]);
  }
  return reduce_add(acc);
}

// out[d] += sum_j p[j] * v[j][d] for N vectors of d.
template <typename C, Prefetch kHow, int N>
inline void mix(const float* p, const C* v, int64_t count, int64_t n, float* out, const Stream<C, kHow>& stream) {
  Floats acc[N];
  for (int i = 0; i < N; ++i) acc[i] = load(out + i * kLanes);
  for (int64_t j = 0; j < count; ++j) {
    const Floats weight = broadcast(p[j]);
    stream.prefetch(v + j * n, N * kLanes);
    for (int i = 0; i < N; ++i) acc[i] = fmadd(weight, load(v + j * n + i * kLanes), acc[i]);
  }
  for (int i = 0; i < N; ++i) store(out + i * kLanes, acc[i]);
}

// All dimensions of `count` rows of values.
template <typename C, Prefetch kHow>
void mix_rows(const float* p, const C* v, int64_t count, int64_t n, float* out, const Stream<C, kHow>& stream) {
  int64_t d = 0;
  for (; d + 8 * kLanes <= n; d += 8 * kLanes) mix<C, kHow, 8>(p, v + d, count, n, out + d, stream);
  for (; d + 4 * kLanes <= n; d += 4 * kLanes) mix<C, kHow, 4>(p, v + d, count, n, out + d, stream);
  for (; d + 2 * kLanes <= n; d += 2 * kLanes) mix<C, kHow, 2>(p, v + d, count, n, out + d, stream);
  for (; d + kLanes <= n; d += kLanes) mix<C, kHow, 1>(p, v + d, count, n, out + d, stream);
  for (; d < n; ++d)
    for (int64_t j = 0; j < count; ++j) out[d] += p[j] * to_float(v[j * n + d]);
}

// What a query gathered from some places: its largest score, the sum of exponentials, and the values that they weigh.
struct Part {
  float most, total;
};

// Adds places [from, to). p has room for them, to a multiple of kLanes. `next` is what is read after them; kSize is head_dim,
// or 0 where it is none that is known.
template <typename C, Prefetch kHow, int kSize>
void gather(const Attention& a, const Head<C>& head, const float* q, const float* bias, int64_t from, int64_t to,
            float* p, Part& part, float* mixed, const C* next) {
  const int64_t n = a.head_dim, count = to - from, padded = round_up(count, kLanes);
  const C *key = head.key + from * n, *value = head.value + from * n;
  const Stream<C, kHow> keys(key + count * n, value), values(value + count * n, next);
  Floats scores_most = broadcast(part.most);
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    keys.prefetch(key + j * n, kLanes * n);
    Floats s;
    if constexpr (kSize > 0)
      s = dots<C, kSize>(q, key + j * n);
    else
      s = dots(q, key + j * n, n, kLanes - 1);
    if constexpr (kScaled<C>) s = s * load(head.key_scale + from + j);
    s += load(bias + from + j);
    scores_most = max(scores_most, s);
    store(p + j, s);
  }
  if (j < count) {
    const Floats s = dots(q, key + j * n, n, count - 1 - j);
    for (int64_t i = j; i < padded; ++i)
      p[i] = i < count ? s[i - j] * (kScaled<C> ? head.key_scale[from + i] : 1.0f) + bias[from + i] : kHidden;
    scores_most = max(scores_most, load(p + j));
  }
  const float most = reduce_max(scores_most);
  Floats total = {};
  for (j = 0; j < padded; j += kLanes) {
    const Floats e = exp(load(p + j) - most);
    total += e;
    store(p + j, e);
  }
  if constexpr (kScaled<C>)
    for (j = 0; j < count; ++j) p[j] *= head.value_scale[from + j];
  const float shrink = part.total > 0 ? exp(broadcast(part.most - most))[0] : 0.0f;
  part = {most, part.total * shrink + reduce_add(total)};
  if (shrink != 1.0f)
    for (int64_t d = 0; d < n; ++d) mixed[d] *= shrink;
  for (j = 0; j < count; j += kRows)
    mix_rows(p + j, value + j * n, min(kRows, count - j), n, mixed, values);
}

template <typename C, Prefetch kHow, int kSize>
struct Decode {
  const Attention& a;
  int64_t splits;
  Part* parts;  // [batch * heads, fresh, splits]; null where there is one split
  float* gathered;  // [batch * heads, fresh, splits, head_dim]

  static void run(void* data, size_t task) {
    auto& self = *static_cast<Decode*>(data);
    const Attention& a = self.a;
    const int64_t row = int64_t(task) / self.splits, split = int64_t(task) % self.splits, n = a.head_dim;
    const int64_t b = row / a.heads, h = row % a.heads, length = round_up(a.total, self.splits) / self.splits;
    const float factor = 1.0f / __builtin_sqrtf(float(n));
    const int64_t step = a.fresh > 1 ? kBlock : length;  // one query sees each place once, however far it lies
    float* q = scratch(kTask, size_t(a.fresh * n + n + round_up(min(step, length), kLanes) + a.fresh * n));
    float *turned = q + a.fresh * n, *mixed = turned + n, *p = mixed + a.fresh * n;
    Part part[kFewTokens];
    fill(mixed, a.fresh * n, 0.0f);
    for (int64_t t = 0; t < a.fresh; ++t) {
      if (self.splits == 1) append<C>(a, row, t, turned);
      rotate_head(a, row_of(a, b, t, 0, h), a.position[b * a.fresh + t], turned);
      for (int64_t d = 0; d < n; ++d) q[t * n + d] = turned[d] * factor;
      part[t] = {kNothing, 0.0f};
    }
    const Head<C> head(a, row);
    const int64_t end = min(a.total, (split + 1) * length);
    for (int64_t from = split * length; from < end; from += step)
      for (int64_t t = 0; t < a.fresh; ++t) {
        const int64_t to = min(min(from + step, end), a.total - a.fresh + t + 1);
        // Most often the task after this one is the same thread's.
        const C* next = t + 1 < a.fresh ? head.key + from * n : to < end ? head.key + to * n : head.key + a.room * n;
        if (from < to)
          gather<C, kHow, kSize>(a, head, q + t * n, a.bias + b * a.bias_batch + t * a.total, from, to, p, part[t],
                                 mixed + t * n, next);
      }
    for (int64_t t = 0; t < a.fresh; ++t) {
      if (self.splits == 1) {
        finish(a, row, t, mixed + t * n, part[t].total);
      } else {
        const int64_t at = (row * a.fresh + t) * self.splits + split;
        self.parts[at] = part[t];
        std::memcpy(self.gathered + at * n, mixed + t * n, size_t(n) * sizeof(float));
      }
    }
  }

  static void finish(const Attention& a, int64_t row, int64_t t, const float* mixed, float total) {
    float* out = a.out + ((row / a.heads * a.fresh + t) * a.heads + row % a.heads) * a.head_dim;
    for (int64_t d = 0; d < a.head_dim; ++d) out[d] = mixed[d] / total;
  }

  void join() const {
    const int64_t n = a.head_dim;
    for (int64_t row = 0; row < a.batch * a.heads; ++row)
      for (int64_t t = 0; t < a.fresh; ++t) {
        const int64_t at = (row * a.fresh + t) * splits;
        float most = kNothing, total = 0;
        for (int64_t s = 0; s < splits; ++s) most = parts[at + s].most > most ? parts[at + s].most : most;
        float* sum_of = gathered + at * n;
        for (int64_t s = 0; s < splits; ++s) {
          const float share = exp(broadcast(parts[at + s].most - most))[0];
          total += parts[at + s].total * share;
          for (int64_t d = 0; d < n; ++d) sum_of[d] = (s ? sum_of[d] : 0.0f) + share * gathered[(at + s) * n + d];
        }
        finish(a, row, t, sum_of, total);
      }
  }
};

template <typename C, Prefetch kHow, int kSize>
void decode(const Attention& a, const Parallel& parallel) {
  const int64_t rows = a.batch * a.heads, threads = hardware_threads();
  const int64_t wanted = rows >= threads ? 1 : (2 * threads + rows - 1) / rows;
  const int64_t splits = max(1, min(wanted, a.total / kLeastSplit)), parts = rows * a.fresh * splits;
  if (splits == 1) {
    Decode<C, kHow, kSize> job{a, 1, nullptr, nullptr};
    parallel(size_t(rows), Decode<C, kHow, kSize>::run, &job);
    return;
  }
  float* memory = scratch(kCall, size_t(parts * (a.head_dim + 2) + a.head_dim));
  Decode<C, kHow, kSize> job{a, splits, reinterpret_cast<Part*>(memory), memory + 2 * parts};
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t t = 0; t < a.fresh; ++t) append<C>(a, row, t, memory + parts * (a.head_dim + 2));
  parallel(size_t(rows * splits), Decode<C, kHow, kSize>::run, &job);
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
      const Floats y = broadcast(a[r * rows + k * columns]);
      for (int n = 0; n < N; ++n) acc[r][n] = fmadd(y, x[n], acc[r][n]);
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
  for (; i + 4 <= m; i += 4) block<4, N>(a + i * rows, rows, columns, b, ldb, c + i * ldc, ldc, depth, add);
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
    std::memcpy(to + j * width, x + j * n, size_t(n) * sizeof(float));
    fill(to + j * width + n, width - n, 0.0f);
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
    for (; d < n; ++d) to[j * width + d] = to_float(x[j * n + d]) * s;
    fill(to + j * width + n, width - n, 0.0f);
  }
  return to;
}

// Whether all n numbers, a multiple of the vector's width, are.
bool finite(const float* x, int64_t n) {
  Floats poison = {};
  for (int64_t i = 0; i < n; i += kLanes) poison += load(x + i) * 0.0f;
  return reduce_add(poison) == 0.0f;
}

template <typename C>
struct Prefill {
  const Attention& a;

  static void cache(void* data, size_t task) {
    const Attention& a = static_cast<Prefill*>(data)->a;
    float* turned = scratch(kTask, size_t(a.head_dim));
    for (int64_t t = 0; t < a.fresh; ++t) append<C>(a, int64_t(task), t, turned);
  }

  static void run(void* data, size_t task) {
    const Prefill& self = *static_cast<Prefill*>(data);
    const Attention& a = self.a;
    const int64_t tiles = (a.fresh + kQueries - 1) / kQueries;
    // The longest tiles come first, so that threads end together.
    self.tile(int64_t(task) % (a.batch * a.heads), tiles - 1 - int64_t(task) / (a.batch * a.heads));
  }

  void tile(int64_t row, int64_t tile) const {
    const int64_t b = row / a.heads, h = row % a.heads, n = a.head_dim, width = round_up(n, kLanes);
    const int64_t first = tile * kQueries, count = min(kQueries, a.fresh - first), lanes = round_up(count, kLanes);
    const int64_t start = a.total - a.fresh + first, end = start + count;  // places of the tile's own tokens
    const Head<C> head(a, row);
    float* q = scratch(kTask, size_t(n * kQueries + kKeys * kQueries + (kQueries + 2 * kKeys) * width + 3 * kQueries + n));
    float* scores = q + n * kQueries;          // [kKeys, kQueries]
    float* mixed = scores + kKeys * kQueries;  // [kQueries, width]
    float* keys = mixed + kQueries * width;    // [kKeys, width]
    float* values = keys + kKeys * width;      // [kKeys, width]
    float *most = values + kKeys * width, *total = most + kQueries, *shrink = total + kQueries, *turned = shrink + kQueries;
    const float factor = 1.0f / __builtin_sqrtf(float(n));

    fill(q, n * kQueries, 0.0f);
    for (int64_t i = 0; i < count; ++i) {  // q is kept as [head_dim, query]
      const int64_t t = first + i;
      rotate_head(a, row_of(a, b, t, 0, h), a.position[b * a.fresh + t], turned);
      for (int64_t d = 0; d < n; ++d) q[d * kQueries + i] = turned[d] * factor;
    }
    fill(mixed, kQueries * width, 0.0f);
    fill(most, kQueries, kNothing);
    fill(total, kQueries, 0.0f);

    for (int64_t from = 0; from < end; from += kKeys) {
      const int64_t m = min(kKeys, end - from);
      const float* k = as_floats(head.key + from * n, head.key_scale, from, n, width, keys, m);
      for (int64_t j = 0; j < m; j += kStripe) {
        const int64_t seen = seen_from(start, from + j);
        if (seen < lanes)
          product(min(kStripe, m - j), lanes - seen, k + j * width, width, 1, q + seen, kQueries,
                  scores + j * kQueries + seen, kQueries, n, false);
      }
      hide(scores, b, first, count, start, from, m);
      soften(scores, lanes, m, most, total, shrink);
      if (from)
        for (int64_t i = 0; i < count; ++i) {
          if (shrink[i] == 1.0f) continue;
          const Floats by = broadcast(shrink[i]);
          for (int64_t d = 0; d < width; d += kLanes) store(mixed + i * width + d, load(mixed + i * width + d) * by);
        }
      const float* v = as_floats(head.value + from * n, head.value_scale, from, n, width, values, m);
      // Of a stripe of queries, the keys that its last one sees, which weigh nothing for the others; but 0 * inf is NaN.
      const int64_t stripe = from + m <= start + 1 || finite(v, m * width) ? kStripe : 1;
      for (int64_t i = 0; i < count; i += stripe) {
        const int64_t queries = min(stripe, count - i), depth = min(m, start + i + queries - from);
        if (depth > 0)
          product(queries, width, scores + i, 1, kQueries, v, width, mixed + i * width, width, depth, true);
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      float* out = a.out + ((b * a.fresh + first + i) * a.heads + h) * n;
      for (int64_t d = 0; d < n; ++d) out[d] = mixed[i * width + d] / total[i];
    }
  }

  // The first of the tile's queries that sees `place`, down to a multiple of kLanes.
  static int64_t seen_from(int64_t start, int64_t place) { return max(0, place - start) / kLanes * kLanes; }

  // Adds the bias to scores [keys, queries], and takes away the keys that come after a query.
  void hide(float* scores, int64_t b, int64_t first, int64_t count, int64_t start, int64_t from, int64_t m) const {
    const float* bias = a.bias + b * a.bias_batch + first * a.total + from;
    for (int64_t i = 0; i < count; ++i) {
      const float* of_query = bias + i * a.total;
      // Most are nought, and looking along a row costs less than adding down a column; as integers, whose bits a compiler
      // gathers by vectors.
      uint32_t any = 0;
      for (int64_t j = 0; j < m; ++j) {
        uint32_t bits;
        std::memcpy(&bits, of_query + j, sizeof bits);
        any |= bits;
      }
      for (int64_t j = 0; any && j < m; ++j) scores[j * kQueries + i] += of_query[j];
    }
    for (int64_t j = max(0, start - from + 1); j < m; ++j)
      for (int64_t i = 0; i < min(round_up(count, kLanes), from + j - start); ++i) scores[j * kQueries + i] = kHidden;
  }

  // Scores become exponentials; the largest so far, their sums and what earlier sums shrink by are kept up to date.
  static void soften(float* scores, int64_t lanes, int64_t m, float* most, float* total, float* shrink) {
    for (int64_t i = 0; i < lanes; i += kLanes) {
      const Floats before = load(most + i);
      Floats now = before, sum_of = {};
      for (int64_t j = 0; j < m; ++j) now = max(now, load(scores + j * kQueries + i));
      for (int64_t j = 0; j < m; ++j) {
        const Floats e = exp(load(scores + j * kQueries + i) - now);
        sum_of += e;
        store(scores + j * kQueries + i, e);
      }
      const Floats by = exp(before - now);
      store(most + i, now);
      store(shrink + i, by);
      store(total + i, load(total + i) * by + sum_of);
    }
  }
};

template <typename C>
void prefill(const Attention& a, const Parallel& parallel) {
  Prefill<C> job{a};
  const int64_t tiles = (a.fresh + kQueries - 1) / kQueries - a.unread / kQueries;
  parallel(size_t(a.batch * a.heads), Prefill<C>::cache, &job);
  parallel(size_t(a.batch * a.heads * tiles), Prefill<C>::run, &job);
}

template <typename C, Prefetch kHow>
void decode(const Attention& a, const Parallel& parallel) {
  switch (a.head_dim) {  // the suite's
    case 32: return decode<C, kHow, 32>(a, parallel);
    case 64: return decode<C, kHow, 64>(a, parallel);
    case 80: return decode<C, kHow, 80>(a, parallel);
    case 128: return decode<C, kHow, 128>(a, parallel);
    default: return decode<C, kHow, 0>(a, parallel);
  }
}

template <typename C>
void attend_cached(const Attention& a, const Parallel& parallel) {
  if (a.fresh >= kFewTokens) return prefill<C>(a, parallel);
  constexpr bool floats = sizeof(C) == sizeof(float);
  if constexpr (kLanes == 16)
    prefetch_policy == PrefetchPolicy::kOnce || (floats && prefetch_policy == PrefetchPolicy::kFloatsOnce)
        ? decode<C, kOnce>(a, parallel)
        : decode<C, kTwice>(a, parallel);
  else
    decode<C, floats ? kNone : kNear>(a, parallel);
}

}  // namespace

void attend(const Attention& a, const Parallel& parallel) {
  if (a.cache == CacheType::kFloat32) attend_cached<float>(a, parallel);
  if (a.cache == CacheType::kFloat16) attend_cached<uint16_t>(a, parallel);
  if (a.cache == CacheType::kInt8) attend_cached<int8_t>(a, parallel);
}

}  // namespace PYTHIA_ISA
}  // namespace pythia
