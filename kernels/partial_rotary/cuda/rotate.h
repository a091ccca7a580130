// pythia::PartialRotary on an NVIDIA GPU, without ONNX Runtime: raw device pointers, in a stream. ../../README.md has the
// contract; nothing here is checked.
#pragma once

#include <stdint.h>

#include "../../cuda/types.h"

#ifdef __cplusplus
extern "C" {
#endif

// x and y: element (b, h, t, d) lies at b * batch_stride + h * head_stride + t * token_stride + d.
typedef struct {
  int64_t batch, heads, tokens, head_dim, rotary_dim;
  int64_t batch_stride, head_stride, token_stride;
  int64_t positions;    // rows of cos and sin; a token whose position is not one of them becomes NaN
  int32_t type;         // kPythiaFloat32, kPythiaFloat16 or kPythiaBfloat16: x, cos, sin, y
  int32_t interleaved;  // pairs (2i, 2i + 1), not (i, half + i)

  const void* x;
  const void* cos;          // [positions, rotary_dim / 2]
  const void* sin;
  const int64_t* position;  // [batch, tokens], or null: token by token
  void* y;
} PythiaCudaRotary;

// 0; kPythiaNoKernel for another type; else a cudaError_t.
PYTHIA_API int pythia_cuda_rotate(const PythiaCudaRotary* rotary, void* stream);

#ifdef __cplusplus
}
#endif
