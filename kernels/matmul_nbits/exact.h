// Activations that stay floats: codes become floats in registers, of 2, 4 or 8 bits; those of 3 bits as 4.
//
// A dword holds 32 / bits numbers of one column. Number k of all dwords of a vector is two shifts away, with its sign, since
// the middle of the codes is what is taken off them. So for few rows x lies in that order, and no code of a weight moves. For
// many rows the codes of some columns become floats once, some hundreds of inputs at a time, which stay in the cache.
#pragma once

#include "few.h"

namespace pythia {
namespace PYTHIA_ISA {
namespace {

// Number k of each dword.
template <int kBits, int k>
inline Ints number(Ints flipped) {
  return shift_right<32 - kBits>(shift_left<32 - kBits * (k + 1)>(flipped));
}

// Codes whose middle is 0 when they are read as signed.
template <int kBits>
inline Ints flip(Ints v) {
  return bit_xor(v, broadcast(int32_t(kBits == 8 ? 0x80808080u : kBits == 4 ? 0x88888888u : 0xaaaaaaaau)));
}

inline int64_t bits_read(const Product& p) { return p.bits == 3 ? 4 : p.bits; }

// x in the order of vectors of dwords, padded with zeros to whole ones, and the sum of each block.
struct Turned {
  int64_t numbers, stride, blocks;  // numbers: in a dword
  float* x;                         // [rows, stride]

  Turned(const Product& p, const float* memory)
      : numbers(32 / bits_read(p)),
        stride((p.numbers() + kLanes * numbers - 1) / (kLanes * numbers) * (kLanes * numbers)),
        blocks(p.blocks()),
        x(const_cast<float*>(memory)) {}

  size_t floats(const Product& p) const { return p.rows > kFewRows ? 0 : size_t(p.rows * (stride + blocks)); }
  float* sums(const Product& p, int64_t m) const { return x + p.rows * stride + m * blocks; }

  void row(const Product& p, int64_t m) const {
    const float* from = p.x + m * p.depth;
    float* to = x + m * stride;
    std::memset(to, 0, size_t(stride) * sizeof(float));
    for (int64_t k = 0; k < p.depth; ++k) {
      const int64_t vector = k / (kLanes * numbers), within = k % (kLanes * numbers);
      to[vector * kLanes * numbers + within % numbers * kLanes + within / numbers] = from[k];
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t end = (b + 1) * p.block < p.depth ? (b + 1) * p.block : p.depth;
      float sum = 0;
      for (int64_t k = b * p.block; k < end; ++k) sum += from[k];
      sums(p, m)[b] = sum;
    }
  }
};

template <int kBits, int kRows, int k = 0>
inline void add_products(Ints w, const float* x, int64_t stride, Floats* sums) {
  const Floats f = to_float(number<kBits, k>(w));
  for (int r = 0; r < kRows; ++r) sums[r] = fmadd(f, load_floats(x + r * stride + k * kLanes), sums[r]);
  if constexpr (k + 1 < 32 / kBits) add_products<kBits, kRows, k + 1>(w, x, stride, sums);
}

template <int kBits, int kRows>
void few_exact(const Product& p, const Turned& x, int64_t m, int64_t from, int64_t to) {
  const int64_t blocks = x.blocks, dwords = p.block * kBits / 32, block_bytes = dwords * 4, row_bytes = blocks * block_bytes;
  uint8_t* wide = p.bits == 3 ? reinterpret_cast<uint8_t*>(scratch(kTask, size_t(row_bytes + 3) / 4)) : nullptr;
  // A vector holds blocks, or a block vectors.
  const int64_t held = dwords < kLanes ? kLanes / dwords : 1, taken = dwords < kLanes ? 1 : dwords / kLanes;
  const bool twice = prefetch_policy != PrefetchPolicy::kOnce;
  const Widen widen(p, twice);
  int32_t place[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) place[i] = int32_t(held > 1 ? i / dwords : 0);
  const Ints places = load(place);
  for (int64_t n = from; n < to; ++n) {
    const uint8_t* weights = wide ? wide : p.codes + n * row_bytes;
    if (wide) widen.columns(n, 1, wide);
    const float *scale = p.scale + n * blocks, *turned = x.x + m * x.stride;
    Floats sums[kRows];
    for (int r = 0; r < kRows; ++r) sums[r] = broadcast(0.0f);
    for (int64_t b = 0; b < blocks; b += held) {
      const int64_t here = blocks - b < held ? blocks - b : held;
      const int64_t bytes = held > 1 ? here * block_bytes : kLanes * 4;
      Floats inner[kRows];
      for (int r = 0; r < kRows; ++r) inner[r] = broadcast(0.0f);
      for (int64_t t = 0; t < taken; ++t, weights += kLanes * 4, turned += x.numbers * kLanes) {
        if (!wide) prefetch(uintptr_t(weights), twice);
        const Ints w = flip<kBits>(bytes == kLanes * 4 ? load(weights) : load(weights, bytes));
        add_products<kBits, kRows>(w, turned, x.stride, inner);
      }
      const Floats of_w = permute(load_up_to(scale + b, here), places);
      for (int r = 0; r < kRows; ++r) sums[r] = fmadd(inner[r], of_w, sums[r]);
    }
    for (int64_t b = 0; p.zero && b < blocks; b += kLanes) {
      const int64_t here = blocks - b < kLanes ? blocks - b : kLanes;
      float off[kLanes] = {};
      for (int64_t i = 0; i < here; ++i) off[i] = float((1 << (kBits - 1)) - p.zero_of(n, b + i)) * scale[b + i];
      for (int r = 0; r < kRows; ++r)
        sums[r] = fmadd(load_floats(off), load_up_to(x.sums(p, m + r) + b, here), sums[r]);
    }
    for (int r = 0; r < kRows; ++r) {
      alignas(64) float lanes[kLanes];
      store(lanes, sums[r]);
      for (int64_t half = kLanes / 2; half; half /= 2)
        for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
      p.y[(m + r) * p.columns + n] = lanes[0] + (p.bias ? p.bias[n] : 0);
    }
  }
}

template <int kBits, int kRows = kRowsRead>
void few_exact_up_to(int64_t end, const Product& p, const Turned& x, int64_t m, int64_t from, int64_t to) {
  if (end - m == kRows) return few_exact<kBits, kRows>(p, x, m, from, to);
  if constexpr (kRows > 1) few_exact_up_to<kBits, kRows - 1>(end, p, x, m, from, to);
}

// ---- many rows

constexpr int64_t kDeep = 512;  // inputs at a time, whole blocks; [kDeep, kTile] floats stay in the second cache
constexpr int kRowsExact = kLanes == 16 ? 12 : 6;

template <int kBits, int k = 0>
inline void unpack(Ints w, Floats off, Floats scale, float* to) {
  store(to + k * kTile, mul(add(to_float(number<kBits, k>(w)), off), scale));
  if constexpr (k + 1 < 32 / kBits) unpack<kBits, k + 1>(w, off, scale, to);
}

// Inputs [begin, begin + kDeep) of columns n to n + kTile as floats, [kDeep, kTile]; columns beyond the last are the last.
template <int kBits>
void unpack(const Product& p, int64_t n, int64_t begin, int64_t end, float* panel) {
  const int64_t blocks = p.blocks(), block_bytes = p.block * kBits / 8, row_bytes = blocks * block_bytes;
  const Widen widen(p, false);
  const int64_t first_byte = begin * kBits / 8, bytes = (end - begin) * kBits / 8;
  for (int64_t v = 0; v < kVectors; ++v) {
    int64_t column[kLanes];
    int32_t apart[kLanes];
    const int64_t first = n + v * kLanes < p.columns ? n + v * kLanes : p.columns - 1;
    for (int64_t i = 0; i < kLanes; ++i) {
      column[i] = first + i < p.columns ? first + i : p.columns - 1;
      apart[i] = int32_t((column[i] - first) * blocks);
    }
    const Ints scales_apart = load(apart);
    alignas(64) uint8_t wide[kLanes][kDeep / 2];
    for (int64_t i = 0; i < kLanes && p.bits == 3; ++i) widen(column[i], begin, end, wide[i]);
    int64_t block = -1;
    Floats scale = broadcast(0.0f), off = broadcast(0.0f);
    for (int64_t at = 0; at < bytes; at += kLanes * 4) {
      const int64_t left = bytes - at;
      Ints dwords[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        const uint8_t* from = p.bits == 3 ? wide[i] + at : p.codes + column[i] * row_bytes + first_byte + at;
        dwords[i] = flip<kBits>(left >= kLanes * 4 ? load(from) : load(from, left));
      }
      transpose(dwords);
      for (int64_t i = 0; i < kLanes && 4 * i < left; ++i) {
        const int64_t b = (first_byte + at + 4 * i) / block_bytes;
        if (b != block) {
          block = b;
          scale = gather(p.scale + first * blocks + b, scales_apart);
          float zero[kLanes] = {};
          for (int64_t j = 0; p.zero && j < kLanes; ++j) zero[j] = float((1 << (kBits - 1)) - p.zero_of(column[j], b));
          off = load_floats(zero);
        }
        unpack<kBits>(dwords[i], off, scale, panel + (at + 4 * i) * 8 / kBits * kTile + v * kLanes);
      }
    }
  }
}

template <int kRows>
void rows_exact(const Product& p, const float* panel, int64_t m, int64_t n, int64_t begin, int64_t end) {
  Floats sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) sums[r][v] = broadcast(0.0f);
  const float* x = p.x + m * p.depth;
  for (int64_t k = begin; k < end; ++k, panel += kTile) {
    Floats w[kVectors];
    for (int v = 0; v < kVectors; ++v) w[v] = load_floats(panel + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const Floats of = broadcast(x[r * p.depth + k]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = fmadd(of, w[v], sums[r][v]);
    }
  }
  const int64_t columns = p.columns - n < kTile ? p.columns - n : kTile;
  for (int r = 0; r < kRows; ++r) {
    alignas(64) float out[kTile];
    for (int v = 0; v < kVectors; ++v) store(out + v * kLanes, sums[r][v]);
    float* y = p.y + (m + r) * p.columns + n;
    for (int64_t i = 0; i < columns; ++i) y[i] = out[i] + (begin ? y[i] : p.bias ? p.bias[n + i] : 0);
  }
}

template <int kBits>
void many_exact(const Product& p, int64_t n) {
  float* panel = scratch(kTask, size_t(kDeep * kTile));
  const int64_t whole = p.blocks() * p.block;
  for (int64_t begin = 0; begin < p.depth; begin += kDeep) {
    const int64_t end = begin + kDeep < p.depth ? begin + kDeep : p.depth;
    unpack<kBits>(p, n, begin, begin + kDeep < whole ? begin + kDeep : whole, panel);
    int64_t m = 0;
    for (; m + kRowsExact <= p.rows; m += kRowsExact) rows_exact<kRowsExact>(p, panel, m, n, begin, end);
    for (; m + 4 <= p.rows; m += 4) rows_exact<4>(p, panel, m, n, begin, end);
    for (; m < p.rows; ++m) rows_exact<1>(p, panel, m, n, begin, end);
  }
}

template <int kBits>
void multiply_exact(const Product& p, const float* memory, int64_t from, int64_t to) {
  if (p.rows > kFewRows) {
    for (int64_t n = from; n < to; n += kTile) many_exact<kBits>(p, n);
    return;
  }
  const Turned x(p, memory);
  const int64_t times = (p.rows + kRowsRead - 1) / kRowsRead;
  for (int64_t i = 0; i < times; ++i)
    few_exact_up_to<kBits>(p.rows * (i + 1) / times, p, x, p.rows * i / times, from, to);
}

inline void multiply_exact(const Product& p, const float* memory, int64_t from, int64_t to) {
  p.bits == 4 || p.bits == 3 ? multiply_exact<4>(p, memory, from, to)
  : p.bits == 8 ? multiply_exact<8>(p, memory, from, to)
                : multiply_exact<2>(p, memory, from, to);
}

}  // namespace
}  // namespace PYTHIA_ISA
}  // namespace pythia
