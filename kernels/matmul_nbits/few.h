// Few rows: a column's codes are read once, as they lie, and multiplied by each row.
#pragma once

#include "rounded.h"

namespace pythia {
namespace PYTHIA_ISA {
namespace {

// A vector of weights' bytes as it lies: with 4 bits, of each dword the even codes, then the odd ones.
template <int kBits>
constexpr int64_t kReach = kLanes * 32 / kBits;

// The next columns lie elsewhere, where the processor does not look ahead: they are asked for while these are read, and what
// comes long after them as well, to be nearer by then. (Alone either saves less: a seventh of the time, both a fifth.)
inline void ask_for(const uint8_t* here, int64_t next) {
  constexpr uintptr_t kLater = 1 << 15;
  const auto at = uintptr_t(here);
  _mm_prefetch(reinterpret_cast<const char*>(at + uintptr_t(next)), _MM_HINT_T0);
  _mm_prefetch(reinterpret_cast<const char*>(at + kLater), _MM_HINT_T1);
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

}  // namespace
}  // namespace PYTHIA_ISA
}  // namespace pythia
