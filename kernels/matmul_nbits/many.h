// Many rows: the codes of some columns are brought into the order of vectors once, and serve all rows.
#pragma once

#include "panel.h"

namespace pythia {
namespace PYTHIA_ISA {
namespace {

constexpr int64_t kRowsAtOnce = kLanes == 16 ? 6 : 4;  // as many as leave room for sums in the registers

template <int kBits, int kRows>
void rows_of(const Product& p, const Rounded& x, const Panel<false>& panel, int64_t m, int64_t n) {
  Floats sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) sums[r][v] = broadcast(0.0f);
  const int64_t blocks = x.blocks, groups = p.block / 4;
  const uint8_t* weights = panel.codes;
  const int8_t* codes = x.codes + m * x.stride;
  for (int64_t b = 0; b < blocks; ++b) {
    Ints inner[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
      const int32_t total = x.sum[(m + r) * blocks + b];
      for (int v = 0; v < kVectors; ++v)
        inner[r][v] = panel.zero ? mul(load(panel.zero + b * kTile + v * kLanes), broadcast(total))
                                 : broadcast(total * (base(p) - middle(p)));
    }
    for (int64_t g = 0; g < groups; ++g, weights += kTile * 4, codes += 4) {
      Ints w[kVectors];
      for (int v = 0; v < kVectors; ++v) w[v] = load(weights + v * kLanes * 4);
      for (int r = 0; r < kRows; ++r) {
        int32_t four;
        std::memcpy(&four, codes + r * x.stride, sizeof four);
        const Ints of = broadcast(four);
        for (int v = 0; v < kVectors; ++v) inner[r][v] = dot<kBits>(inner[r][v], w[v], of);
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      const Floats scale = load_floats(panel.scale + b * kTile + v * kLanes);
      for (int r = 0; r < kRows; ++r)
        sums[r][v] = fmadd(mul(to_float(inner[r][v]), broadcast(x.scale[(m + r) * blocks + b])), scale, sums[r][v]);
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
  const Panel<false> panel(p, n);
  int64_t m = 0;
  for (; m + kRowsAtOnce <= p.rows; m += kRowsAtOnce) rows_of<kBits, kRowsAtOnce>(p, x, panel, m, n);
  for (; m + 2 <= p.rows; m += 2) rows_of<kBits, 2>(p, x, panel, m, n);
  for (; m < p.rows; ++m) rows_of<kBits, 1>(p, x, panel, m, n);
}

}  // namespace
}  // namespace PYTHIA_ISA
}  // namespace pythia
