// Where one token turns to: its rows of the tables.
#pragma once

#include "../../cuda/numbers.h"
#include "attend.h"

namespace pythia {
namespace cuda {

template <typename A>
struct Turn {
  const A *cos, *sin;

  __device__ Turn(const PythiaCudaAttention& a, int64_t token) : cos(nullptr), sin(nullptr) {
    const int64_t position = a.position[token], half = a.rotary_dim / 2;
    if (position < 0 || position >= a.positions) return;
    cos = static_cast<const A*>(a.cos) + position * half, sin = static_cast<const A*>(a.sin) + position * half;
  }

  // Dimension d of one head of q or k, turned: half-split pairs (i, half + i) for d below 2 * half.
  __device__ float operator()(const A* x, int64_t d, int64_t half) const {
    if (!cos) return NAN;
    const float own = widen(x[d]);
    if (d >= 2 * half) return own;
    const int64_t i = d < half ? d : d - half;
    return rotated(own, widen(x[d < half ? d + half : i]), widen(cos[i]), widen(sin[i]), d < half);
  }
};

}  // namespace cuda
}  // namespace pythia
