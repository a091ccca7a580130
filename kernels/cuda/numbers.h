// Activations and cached numbers on their way to float32 and back. All arithmetic is float32.
#pragma once

#include "platform.h"

namespace pythia {
namespace cuda {

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float widen(int8_t x) { return float(x); }

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
  for (int i = 0; i < 4; ++i) to[i] = widen(four.x[i]);
}

// One dimension of a head, rotated by its angle, from itself and the other of its pair; `is_first` says which it is. Products
// are rounded one by one, so that the bits are those that every processor gives.
__device__ inline float rotated(float own, float other, float c, float s, bool is_first) {
  return is_first ? __fsub_rn(__fmul_rn(own, c), __fmul_rn(other, s)) : __fadd_rn(__fmul_rn(own, c), __fmul_rn(other, s));
}

}  // namespace cuda
}  // namespace pythia
