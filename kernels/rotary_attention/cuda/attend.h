// pythia::RotaryAttention on an NVIDIA GPU, without ONNX Runtime: raw device pointers and sizes, a plain C interface that a
// test drives through ctypes. ../../README.md has the contract; nothing here is checked but what the launcher answers.
#pragma once

#include <stdint.h>

#include "../../cuda/types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  int64_t batch, heads, head_dim, rotary_dim;
  int64_t fresh;      // tokens of this call
  int64_t total;      // tokens cached after it
  int64_t room;       // length of the present's buffer, total or more
  int64_t past_room;  // length of the past's
  int64_t positions;  // rows of cos and sin; a token whose position is not one of them becomes NaN
  int64_t bias_batch; // numbers from one row of the batch to the next; 0: one for all
  int32_t activations;      // float32, float16 or bfloat16: qkv, cos, sin, bias, out
  int32_t cache;            // float32, float16 or int8
  int32_t multiprocessors;  // of the device: the cached length is split until there is work for all
  int32_t reserved;

  const void* qkv;          // [batch, fresh, 3 * heads * head_dim]
  const void* cos;          // [positions, rotary_dim / 2]
  const void* sin;
  const int64_t* position;  // [batch, fresh]
  const void* bias;         // [batch or 1, fresh, total]
  const void* past_key;     // [batch, heads, past_room, head_dim]; where it is `key` itself nothing is copied
  const void* past_value;
  const float* past_key_scale;  // [batch, heads, past_room] for int8, otherwise null
  const float* past_value_scale;
  void* key;                // [batch, heads, room, head_dim]
  void* value;
  float* key_scale;         // [batch, heads, room]
  float* value_scale;
  void* out;                // [batch, fresh, heads * head_dim]
  void* workspace;          // of pythia_cuda_workspace bytes
} PythiaCudaAttention;

PYTHIA_API int64_t pythia_cuda_workspace(const PythiaCudaAttention*);
// Starts the work on the stream. 0; a cudaError_t; or kPythiaNoKernel: head_dim beyond 256, or other types.
PYTHIA_API int pythia_cuda_attend(const PythiaCudaAttention*, void* stream);

#ifdef __cplusplus
}
#endif
