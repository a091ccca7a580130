// The product on a CPU; compiled for AVX2 and for AVX-512 with VNNI, into the namespace PYTHIA_ISA.
//
// Few rows: a column's codes are read once, as they lie, and multiplied by each row. Many rows: the codes of some columns
// are first brought into the order of vectors, four numbers of one column in each lane, and serve all rows. A dword of
// 4-bit codes holds the even four of eight numbers in its low halves and the odd four in its high ones, so the codes of x
// lie in that order as well: no code of a weight is ever moved within its dword.
#include <immintrin.h>

#include <cfloat>
#include <cmath>
#include <cstring>

#include "product.h"

namespace pythia {
namespace PYTHIA_ISA {
namespace {

#ifdef __AVX512VNNI__
constexpr int64_t kLanes = 16, kRowsAtOnce = 6;
using Ints = __m512i;
using Floats = __m512;
inline Ints load(const void* p) { return _mm512_loadu_si512(p); }
inline Ints load(const void* p, int64_t bytes) { return _mm512_maskz_loadu_epi8((uint64_t(1) << bytes) - 1, p); }
inline Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
inline Floats load_floats(const float* p, int64_t count) {
  return _mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p);
}
inline void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
inline void store(void* p, Ints v) { _mm512_storeu_si512(p, v); }
inline Ints all(int32_t x) { return _mm512_set1_epi32(x); }
inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Ints first(int32_t x) { return _mm512_zextsi128_si512(_mm_cvtsi32_si128(x)); }
inline Ints low(Ints v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline Ints high(Ints v) { return low(_mm512_srli_epi32(v, 4)); }
inline Floats gather(const float* p, Ints offsets) { return _mm512_i32gather_ps(offsets, p, 4); }
inline Floats floats(Ints v) { return _mm512_cvtepi32_ps(v); }
inline Ints times(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
inline Floats times(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats picked(Floats from, Ints places) { return _mm512_permutexvar_ps(places, from); }
inline __m256 halved(Floats v) { return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)); }
inline Ints low_words(Ints a, Ints b) { return _mm512_unpacklo_epi32(a, b); }
inline Ints high_words(Ints a, Ints b) { return _mm512_unpackhi_epi32(a, b); }
inline Ints low_pairs(Ints a, Ints b) { return _mm512_unpacklo_epi64(a, b); }
inline Ints high_pairs(Ints a, Ints b) { return _mm512_unpackhi_epi64(a, b); }
// Of four vectors' quarters the first, second, third and last of each.
inline void turn_quarters(const Ints* from, Ints* to, int64_t apart) {
  const Ints a = _mm512_shuffle_i32x4(from[0], from[4], 0x88), b = _mm512_shuffle_i32x4(from[8], from[12], 0x88);
  const Ints c = _mm512_shuffle_i32x4(from[0], from[4], 0xdd), d = _mm512_shuffle_i32x4(from[8], from[12], 0xdd);
  to[0] = _mm512_shuffle_i32x4(a, b, 0x88), to[2 * apart] = _mm512_shuffle_i32x4(a, b, 0xdd);
  to[apart] = _mm512_shuffle_i32x4(c, d, 0x88), to[3 * apart] = _mm512_shuffle_i32x4(c, d, 0xdd);
}
constexpr bool kCentred = false;  // codes of 8 bits are taken as they are
template <int kBits>
inline Ints dot(Ints into, Ints w, Ints x) {
  return _mm512_dpbusd_epi32(into, w, x);
}
#else
constexpr int64_t kLanes = 8, kRowsAtOnce = 4;
using Ints = __m256i;
using Floats = __m256;
inline Ints load(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline Ints load(const void* p, int64_t bytes) {
  uint8_t whole[32] = {};
  std::memcpy(whole, p, size_t(bytes));
  return load(whole);
}
inline Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
inline Floats load_floats(const float* p, int64_t count) {
  float whole[8] = {};
  std::memcpy(whole, p, size_t(count) * sizeof(float));
  return load_floats(whole);
}
inline void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
inline void store(void* p, Ints v) { _mm256_storeu_si256((__m256i*)p, v); }
inline Ints all(int32_t x) { return _mm256_set1_epi32(x); }
inline Floats all(float x) { return _mm256_set1_ps(x); }
inline Ints first(int32_t x) { return _mm256_zextsi128_si256(_mm_cvtsi32_si128(x)); }
inline Ints low(Ints v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
inline Ints high(Ints v) { return low(_mm256_srli_epi32(v, 4)); }
inline Floats gather(const float* p, Ints offsets) { return _mm256_i32gather_ps(p, offsets, 4); }
inline Floats floats(Ints v) { return _mm256_cvtepi32_ps(v); }
inline Ints times(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
inline Floats times(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats fused(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats picked(Floats from, Ints places) { return _mm256_permutevar8x32_ps(from, places); }
inline __m256 halved(Floats v) { return v; }
inline Ints low_words(Ints a, Ints b) { return _mm256_unpacklo_epi32(a, b); }
inline Ints high_words(Ints a, Ints b) { return _mm256_unpackhi_epi32(a, b); }
inline Ints low_pairs(Ints a, Ints b) { return _mm256_unpacklo_epi64(a, b); }
inline Ints high_pairs(Ints a, Ints b) { return _mm256_unpackhi_epi64(a, b); }
inline void turn_quarters(const Ints* from, Ints* to, int64_t apart) {
  to[0] = _mm256_permute2x128_si256(from[0], from[4], 0x20);
  to[apart] = _mm256_permute2x128_si256(from[0], from[4], 0x31);
}
constexpr bool kCentred = true;  // codes of 8 bits are taken from their middle: sums of two products fit into 16 bits
template <int kBits>
inline Ints dot(Ints into, Ints w, Ints x) {
  Ints pairs;
  if (kBits == 4) {
    pairs = _mm256_maddubs_epi16(w, x);
  } else {
    const Ints centred = _mm256_xor_si256(w, _mm256_set1_epi8(char(0x80)));
    pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(centred), _mm256_sign_epi8(x, centred));
  }
  return _mm256_add_epi32(into, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

// The sums of four vectors each.
inline __m128 sums_of(const Floats* v) {
  __m256 h[4];
  for (int i = 0; i < 4; ++i) h[i] = halved(v[i]);
  const __m256 t = _mm256_hadd_ps(_mm256_hadd_ps(h[0], h[1]), _mm256_hadd_ps(h[2], h[3]));
  return _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
}

// Dword i of vector j becomes dword j of vector i.
inline void transpose(Ints* v) {
  Ints t[kLanes], u[kLanes];
  for (int i = 0; i < kLanes; i += 2) t[i] = low_words(v[i], v[i + 1]), t[i + 1] = high_words(v[i], v[i + 1]);
  for (int i = 0; i < kLanes; i += 4)
    for (int j = 0; j < 2; ++j)
      u[i + 2 * j] = low_pairs(t[i + j], t[i + j + 2]), u[i + 2 * j + 1] = high_pairs(t[i + j], t[i + j + 2]);
  for (int j = 0; j < 4; ++j) turn_quarters(u + j, v + j, 4);
}

constexpr int64_t kVectors = 2, kTile = kVectors * kLanes, kStep = 4 * kLanes;  // columns at once, numbers in a vector
constexpr int64_t kFew = 5;  // rows; from more on it pays to bring weights into order

// x in codes, each row padded with zeros to whole vectors.
struct Rounded {
  int64_t stride, blocks;
  int8_t* codes;  // [rows, stride]
  float* scale;   // [rows, blocks]
  int32_t* sum;   // [rows, blocks], of codes
  float* owed;    // [rows, blocks], what a weight's code of one more would add: scale * sum

  Rounded(const Product& p)
      : stride((p.blocks() * p.block + 2 * kStep - 1) / (2 * kStep) * (2 * kStep)), blocks(p.blocks()) {
    const int64_t places = p.rows * blocks;
    float* place = scratch(kCall, size_t(3 * places + p.rows * stride / 4));
    codes = reinterpret_cast<int8_t*>(place), place += p.rows * stride / 4;
    scale = place, owed = place + places, sum = reinterpret_cast<int32_t*>(place + 2 * places);
  }

  void row(const Product& p, int64_t m) {
    const float* x = p.x + m * p.depth;
    int8_t* to = codes + m * stride;
    const int64_t odd = p.rows > kFew ? 4 : kStep;
    std::memset(to, 0, size_t(stride));
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t begin = b * p.block, count = p.depth - begin < p.block ? p.depth - begin : p.block;
      int32_t bits = 0;  // of the largest magnitude: as an integer it orders as the number does, NaN above all
      for (int64_t i = 0; i < count; ++i) {
        int32_t of;
        std::memcpy(&of, x + begin + i, sizeof of);
        of &= 0x7fffffff;
        bits = of > bits ? of : bits;
      }
      float largest;
      std::memcpy(&largest, &bits, sizeof largest);
      const bool finite = bits < 0x7f800000;
      const bool nothing = largest / 127 < FLT_MIN;  // a scale that is not exact would give codes beyond 127
      const float by = !finite ? NAN : nothing ? 1 : largest / 127;
      const float times = 1 / by;  // as ONNX Runtime does, so that codes are the same
      alignas(64) int8_t code[256] = {};
      int32_t total = 0;
      if (finite && !nothing)
        for (int64_t i = 0; i < count; ++i) {
          const int32_t c = int32_t(std::nearbyintf(x[begin + i] * times));
          code[i] = int8_t(c), total += c;
        }
      if (p.bits == 8) {
        std::memcpy(to + begin, code, size_t(p.block));
      } else {  // a dword's even codes and its odd ones: `odd` apart
        for (int64_t i = 0; i < p.block; i += 8) {
          const int64_t at = begin + i, dword = at % (2 * kStep) / 2;
          int8_t* even = p.rows > kFew ? to + at : to + at / (2 * kStep) * (2 * kStep) + dword;
          for (int64_t j = 0; j < 4; ++j) even[j] = code[i + 2 * j], even[odd + j] = code[i + 2 * j + 1];
        }
      }
      scale[m * blocks + b] = by, sum[m * blocks + b] = total, owed[m * blocks + b] = by * float(total);
    }
  }
};

inline int32_t base(const Product& p) { return p.bits == 8 && kCentred ? 128 : 0; }

// ---- few rows

// A vector of weights' bytes as it lies: with 4 bits, of each dword the even codes, then the odd ones.
template <int kBits>
constexpr int64_t kReach = kLanes * 32 / kBits;

// The columns after these lie elsewhere, where the processor does not look ahead.
inline void ask_for(const uint8_t* here, int64_t further) {
  _mm_prefetch(reinterpret_cast<const char*>(uintptr_t(here) + uintptr_t(further)), _MM_HINT_T0);
}

template <int kBits>
inline Ints multiplied(Ints into, Ints w, const int8_t* codes) {
  if (kBits == 8) return dot<8>(into, w, load(codes));
  return dot<4>(dot<4>(into, low(w), load(codes)), high(w), load(codes + kStep));
}

// Blocks of several vectors.
template <int kBits, int kBlock, int kRows, int kColumns>
inline void large_blocks(const Product& p, const Rounded& x, int64_t m, int64_t n, Floats sums[kRows][kColumns]) {
  const int64_t blocks = x.blocks, row_bytes = blocks * p.block_bytes();
  const int8_t* codes = x.codes + m * x.stride;
  const uint8_t* weights = p.codes + n * row_bytes;
  for (int64_t b = 0; b < blocks; ++b) {
    Ints inner[kRows][kColumns];
    for (int r = 0; r < kRows; ++r)
      for (int c = 0; c < kColumns; ++c)
        inner[r][c] = first(x.sum[(m + r) * blocks + b] * (base(p) - (p.zero ? p.zero_of(n + c, b) : p.middle())));
    for (int64_t t = 0; t < kBlock; t += kReach<kBits>, codes += kReach<kBits>, weights += kLanes * 4)
      for (int c = 0; c < kColumns; ++c) {
        const uint8_t* from = weights + c * row_bytes;
        ask_for(from, kColumns * row_bytes);
        const Ints w = load(from);
        for (int r = 0; r < kRows; ++r) inner[r][c] = multiplied<kBits>(inner[r][c], w, codes + r * x.stride);
      }
    for (int r = 0; r < kRows; ++r)
      for (int c = 0; c < kColumns; ++c)
        sums[r][c] = fused(floats(inner[r][c]),
                           all(p.scale[(n + c) * blocks + b] * x.scale[(m + r) * blocks + b]), sums[r][c]);
  }
}

// kLanes blocks of up to a vector, or the `here` that are left; `places` says whose scale each lane wants.
template <int kBits, int kBlock, int kRows, int kColumns, bool kWhole>
inline void small_blocks(const Product& p, const Rounded& x, int64_t m, int64_t n, int64_t b, int64_t here,
                         const Ints* places, Floats sums[kRows][kColumns]) {
  const int64_t blocks = x.blocks, row_bytes = blocks * p.block_bytes();
  const auto some = [here](const float* from) { return kWhole ? load_floats(from) : load_floats(from, here); };
  Floats scales[kRows][kColumns];
  for (int c = 0; c < kColumns; ++c) {
    const Floats of_w = some(p.scale + (n + c) * blocks + b);
    Floats zero = all(float(base(p) - p.middle()));
    if (p.zero) {
      float each[kLanes] = {};
      for (int64_t i = 0; i < here; ++i) each[i] = float(base(p) - p.zero_of(n + c, b + i));
      zero = load_floats(each);
    }
    for (int r = 0; r < kRows; ++r) {
      const int64_t at = (m + r) * blocks + b;
      scales[r][c] = times(of_w, some(x.scale + at));
      sums[r][c] = fused(times(of_w, some(x.owed + at)), zero, sums[r][c]);
    }
  }
  const int8_t* codes = x.codes + m * x.stride + b * kBlock;
  const uint8_t* weights = p.codes + n * row_bytes + b * (kBlock * kBits / 8);
  const int64_t vectors = (kWhole ? kLanes : here) * kBlock / kReach<kBits>;
  for (int64_t v = 0; v < vectors; ++v)
    for (int c = 0; c < kColumns; ++c) {
      const uint8_t* from = weights + c * row_bytes + v * kLanes * 4;
      ask_for(from, kColumns * row_bytes);
      const Ints w = load(from);
      for (int r = 0; r < kRows; ++r) {
        const Ints inner = multiplied<kBits>(all(0), w, codes + r * x.stride + v * kReach<kBits>);
        sums[r][c] = fused(floats(inner), picked(scales[r][c], places[v]), sums[r][c]);
      }
    }
  const int64_t left = here * (kBlock * kBits / 8) - vectors * kLanes * 4;
  if (kWhole || !left) return;
  for (int c = 0; c < kColumns; ++c) {
    const Ints w = load(weights + c * row_bytes + vectors * kLanes * 4, left);
    for (int r = 0; r < kRows; ++r) {
      const Ints inner = multiplied<kBits>(all(0), w, codes + r * x.stride + vectors * kReach<kBits>);
      sums[r][c] = fused(floats(inner), picked(scales[r][c], places[vectors]), sums[r][c]);
    }
  }
}

template <int kBits, int kBlock, int kRows, int kColumns>
void columns_of(const Product& p, const Rounded& x, int64_t m, int64_t n, const Ints* places) {
  Floats sums[kRows][kColumns];
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kColumns; ++c) sums[r][c] = all(0.0f);
  if (kBlock > kReach<kBits>) {
    large_blocks<kBits, kBlock, kRows, kColumns>(p, x, m, n, sums);
  } else {
    int64_t b = 0;
    for (; b + kLanes <= x.blocks; b += kLanes)
      small_blocks<kBits, kBlock, kRows, kColumns, true>(p, x, m, n, b, kLanes, places, sums);
    if (b < x.blocks)
      small_blocks<kBits, kBlock, kRows, kColumns, false>(p, x, m, n, b, x.blocks - b, places, sums);
  }
  for (int r = 0; r < kRows; ++r) {
    Floats four[4] = {sums[r][0], sums[r][1 % kColumns], sums[r][2 % kColumns], sums[r][3 % kColumns]};
    alignas(16) float y[4];
    _mm_store_ps(y, sums_of(four));
    for (int c = 0; c < kColumns; ++c) p.y[(m + r) * p.columns + n + c] = y[c] + (p.bias ? p.bias[n + c] : 0);
  }
}

template <int kBits, int kBlock, int kColumns>
void columns_of(const Product& p, const Rounded& x, int64_t n, const Ints* places) {
  int64_t m = 0;
  for (; m + 2 <= p.rows; m += 2) columns_of<kBits, kBlock, 2, kColumns>(p, x, m, n, places);
  if (m < p.rows) columns_of<kBits, kBlock, 1, kColumns>(p, x, m, n, places);
}

template <int kBits, int kBlock>
void few(const Product& p, const Rounded& x, int64_t from, int64_t to) {
  constexpr int64_t kScaled = kBlock > kReach<kBits> ? 0 : kLanes * kBlock / kReach<kBits>;
  Ints places[kScaled + 1];
  for (int64_t v = 0; v < kScaled; ++v) {
    int32_t place[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) place[i] = int32_t((v * kLanes + i) * 32 / kBits / kBlock);
    places[v] = load(place);
  }
  int64_t n = from;
  for (; n + 4 <= to; n += 4) columns_of<kBits, kBlock, 4>(p, x, n, places);
  for (; n < to; ++n) columns_of<kBits, kBlock, 1>(p, x, n, places);
}

template <int kBits>
void few(const Product& p, const Rounded& x, int64_t from, int64_t to) {
  switch (p.block) {
    case 16: return few<kBits, 16>(p, x, from, to);
    case 32: return few<kBits, 32>(p, x, from, to);
    case 64: return few<kBits, 64>(p, x, from, to);
    case 128: return few<kBits, 128>(p, x, from, to);
    default: return few<kBits, 256>(p, x, from, to);
  }
}

// ---- many rows

// The weights of kTile columns in the order of vectors; columns beyond the last are the last again.
struct Panel {
  uint8_t* codes;  // [blocks * block / 4, kTile, 4]
  float* scale;    // [blocks, kTile]
  int32_t* zero;   // [blocks, kTile], what the sum of x's codes is multiplied by

  Panel(const Product& p, int64_t n) {
    const int64_t blocks = p.blocks(), numbers = blocks * p.block, row_bytes = blocks * p.block_bytes();
    float* place = scratch(kTask, size_t(numbers * kTile / 4 + (p.zero ? 2 : 1) * blocks * kTile));
    codes = reinterpret_cast<uint8_t*>(place), scale = place + numbers * kTile / 4;
    zero = p.zero ? reinterpret_cast<int32_t*>(scale + blocks * kTile) : nullptr;
    for (int64_t v = 0; v < kVectors; ++v) {
      const int64_t first = n + v * kLanes < p.columns ? n + v * kLanes : p.columns - 1;
      const uint8_t* rows[kLanes];
      int32_t floats_apart[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t column = first + i < p.columns ? i : p.columns - 1 - first;
        rows[i] = p.codes + (first + column) * row_bytes, floats_apart[i] = int32_t(column * blocks);
        if (zero)
          for (int64_t b = 0; b < blocks; ++b) zero[b * kTile + v * kLanes + i] = base(p) - p.zero_of(first + column, b);
      }
      const Ints scales_apart = load(floats_apart);
      uint8_t* to = codes + v * kLanes * 4;
      for (int64_t at = 0; at < row_bytes; at += kLanes * 4) {
        const int64_t left = row_bytes - at;
        Ints dwords[kLanes];
        for (int64_t i = 0; i < kLanes; ++i)
          dwords[i] = left >= kLanes * 4 ? load(rows[i] + at) : load(rows[i] + at, left);
        transpose(dwords);
        for (int64_t i = 0; i < kLanes && 4 * i < left; ++i) {
          if (p.bits == 4) {
            store(to, low(dwords[i])), store(to + kTile * 4, high(dwords[i]));
            to += 2 * kTile * 4;
          } else {
            store(to, dwords[i]);
            to += kTile * 4;
          }
        }
      }
      for (int64_t b = 0; b < blocks; ++b)
        store(scale + b * kTile + v * kLanes, gather(p.scale + first * blocks + b, scales_apart));
    }
  }
};

template <int kBits, int kRows>
void rows_of(const Product& p, const Rounded& x, const Panel& panel, int64_t m, int64_t n) {
  Floats sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) sums[r][v] = all(0.0f);
  const int64_t blocks = x.blocks, groups = p.block / 4;
  const uint8_t* weights = panel.codes;
  const int8_t* codes = x.codes + m * x.stride;
  for (int64_t b = 0; b < blocks; ++b) {
    Ints inner[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
      const int32_t total = x.sum[(m + r) * blocks + b];
      for (int v = 0; v < kVectors; ++v)
        inner[r][v] = panel.zero ? times(load(panel.zero + b * kTile + v * kLanes), all(total))
                                 : all(total * (base(p) - p.middle()));
    }
    for (int64_t g = 0; g < groups; ++g, weights += kTile * 4, codes += 4) {
      Ints w[kVectors];
      for (int v = 0; v < kVectors; ++v) w[v] = load(weights + v * kLanes * 4);
      for (int r = 0; r < kRows; ++r) {
        int32_t four;
        std::memcpy(&four, codes + r * x.stride, sizeof four);
        const Ints of = all(four);
        for (int v = 0; v < kVectors; ++v) inner[r][v] = dot<kBits>(inner[r][v], w[v], of);
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      const Floats scale = load_floats(panel.scale + b * kTile + v * kLanes);
      for (int r = 0; r < kRows; ++r)
        sums[r][v] = fused(times(floats(inner[r][v]), all(x.scale[(m + r) * blocks + b])), scale, sums[r][v]);
    }
  }
  const int64_t left = p.columns - n;
  for (int r = 0; r < kRows; ++r) {
    alignas(64) float out[kTile];
    for (int v = 0; v < kVectors; ++v) store(out + v * kLanes, sums[r][v]);
    float* y = p.y + (m + r) * p.columns + n;
    for (int64_t i = 0; i < (left < kTile ? left : kTile); ++i) y[i] = out[i] + (p.bias ? p.bias[n + i] : 0);
  }
}

template <int kBits>
void many(const Product& p, const Rounded& x, int64_t n) {
  const Panel panel(p, n);
  int64_t m = 0;
  for (; m + kRowsAtOnce <= p.rows; m += kRowsAtOnce) rows_of<kBits, kRowsAtOnce>(p, x, panel, m, n);
  for (; m + 2 <= p.rows; m += 2) rows_of<kBits, 2>(p, x, panel, m, n);
  for (; m < p.rows; ++m) rows_of<kBits, 1>(p, x, panel, m, n);
}

struct Job {
  const Product& p;
  Rounded x;
  int64_t share;  // columns, or tiles of them, for a task
};

}  // namespace

void product(const Product& p, const Parallel& parallel) {
  Job job{p, Rounded(p), 0};
  if (p.rows < 8)
    for (int64_t m = 0; m < p.rows; ++m) job.x.row(p, m);
  else
    parallel(size_t(p.rows), [](void* data, size_t m) {
      Job& j = *static_cast<Job*>(data);
      j.x.row(j.p, int64_t(m));
    }, &job);
  // A task is worth the handing out from some tens of thousands of products on.
  constexpr int64_t kWorth = 1 << 17;
  if (p.rows <= kFew) {
    job.share = (kWorth / (p.depth * p.rows) + 8) / 4 * 4;
    const int64_t tasks = (p.columns + job.share - 1) / job.share;
    parallel(size_t(tasks), [](void* data, size_t task) {
      Job& j = *static_cast<Job*>(data);
      const int64_t from = int64_t(task) * j.share, to = from + j.share < j.p.columns ? from + j.share : j.p.columns;
      j.p.bits == 4 ? few<4>(j.p, j.x, from, to) : few<8>(j.p, j.x, from, to);
    }, &job);
  } else {
    job.share = kWorth / (p.depth * p.rows * kTile) + 1;
    const int64_t tiles = (p.columns + kTile - 1) / kTile, tasks = (tiles + job.share - 1) / job.share;
    parallel(size_t(tasks), [](void* data, size_t task) {
      Job& j = *static_cast<Job*>(data);
      for (int64_t t = int64_t(task) * j.share; t < int64_t(task + 1) * j.share && t * kTile < j.p.columns; ++t)
        j.p.bits == 4 ? many<4>(j.p, j.x, t * kTile) : many<8>(j.p, j.x, t * kTile);
    }, &job);
  }
}

}  // namespace PYTHIA_ISA
}  // namespace pythia
