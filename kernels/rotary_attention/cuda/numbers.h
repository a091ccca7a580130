// Activations and cached numbers on their way to float32 and back. All arithmetic is float32.
#pragma once

#include "attend.h"
#include "../../cuda/platform.h"

namespace pythia {
namespace cuda {

__device__ inline float wide(float x) { return x; }
__device__ inline float wide(__half x) { return __half2float(x); }
__device__ inline float wide(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float wide(int8_t x) { return float(x); }

template <typename T>
__device__ T narrow(float x);
template <>
__device__ inline float narrow<float>(float x) { return x; }
template <>
__device__ inline __half narrow<__half>(float x) { return __float2half_rn(x); }
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// Four numbers in one load; `from` is aligned to them.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T x[4];
};
template <typename T>
__device__ inline void load_four(const T* from, float to[4]) {
  const Four<T> four = *reinterpret_cast<const Four<T>*>(from);
  PYTHIA_UNROLL
  for (int i = 0; i < 4; ++i) to[i] = wide(four.x[i]);
}

// Where one token turns to: its rows of the tables.
template <typename A>
struct Turn {
  const A *cos, *sin;

  __device__ Turn(const PythiaCudaAttention& a, int64_t token) : cos(nullptr), sin(nullptr) {
    const int64_t position = a.position[token], half = a.rotary_dim / 2;
    if (position < 0 || position >= a.positions) return;
    cos = static_cast<const A*>(a.cos) + position * half, sin = static_cast<const A*>(a.sin) + position * half;
  }

  // Dimension d of one head of q or k, turned: half-split pairs (i, half + i) for d below 2 * half. Products are rounded one
  // by one, so that what is cached has the bits that every processor gives it.
  __device__ float operator()(const A* x, int64_t d, int64_t half) const {
    if (!cos) return NAN;
    const float own = wide(x[d]);
    if (d >= 2 * half) return own;
    const int64_t i = d < half ? d : d - half;
    const float other = wide(x[d < half ? d + half : i]), c = wide(cos[i]), s = wide(sin[i]);
    return d < half ? __fsub_rn(__fmul_rn(own, c), __fmul_rn(other, s)) : __fadd_rn(__fmul_rn(own, c), __fmul_rn(other, s));
  }
};

}  // namespace cuda
}  // namespace pythia
