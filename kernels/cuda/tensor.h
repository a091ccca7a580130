// A product of tensor cores, of numbers of 16 bits with sums in float32, and how its operands lie in registers.
#pragma once

#include "platform.h"

namespace pythia {
namespace cuda {

// Two numbers that lie side by side, the first in the low half; `from` is aligned to both.
template <typename A>
__device__ inline uint32_t load_pair(const A* from) {
  return *reinterpret_cast<const uint32_t*>(from);
}

template <typename A>
__device__ uint32_t pack(float low, float high);
template <typename A>
__device__ void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1);

#ifdef PYTHIA_EMULATE_CUDA
template <>
inline uint32_t pack<__half>(float low, float high) {
  return __float2half_rn(low).bits | uint32_t(__float2half_rn(high).bits) << 16;
}
template <>
inline uint32_t pack<__nv_bfloat16>(float low, float high) {
  return __float2bfloat16_rn(low).bits | uint32_t(__float2bfloat16_rn(high).bits) << 16;
}
template <>
inline void mma<__half>(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
  emulated::mma(c, a, b0, b1, [](uint16_t bits) { return __half2float({bits}); });
}
template <>
inline void mma<__nv_bfloat16>(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
  emulated::mma(c, a, b0, b1, [](uint16_t bits) { return __bfloat162float({bits}); });
}
#else
template <>
__device__ inline uint32_t pack<__half>(float low, float high) {
  const __half2 both = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}
template <>
__device__ inline uint32_t pack<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&both);
}
#define PYTHIA_MMA(A, type)                                                                                         \
  template <>                                                                                                       \
  __device__ inline void mma<A>(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {                        \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, " \
        "{%0, %1, %2, %3};"                                                                                         \
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                            \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                            \
  }
PYTHIA_MMA(__half, "f16")
PYTHIA_MMA(__nv_bfloat16, "bf16")
#undef PYTHIA_MMA
#endif

}  // namespace cuda
}  // namespace pythia
