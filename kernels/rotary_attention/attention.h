// One call of pythia::RotaryAttention, checked and without ONNX Runtime: raw pointers and sizes. README.md has the contract.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../parallel.h"

namespace pythia {

enum class CacheType { kFloat32, kFloat16, kInt8 };

struct Attention {
  int64_t batch, heads, head_dim, rotary_dim;
  int64_t fresh;  // tokens of this call
  int64_t total;  // tokens cached after it
  int64_t room;   // length of the cache's buffer, total or more
  CacheType cache;

  const float* qkv;         // [batch, fresh, 3 * heads * head_dim]
  const float* cos;         // [positions, rotary_dim / 2]
  const float* sin;         // [positions, rotary_dim / 2]
  const int64_t* position;  // [batch, fresh]
  const float* bias;        // [batch or 1, fresh, total]
  int64_t bias_batch;       // numbers from one row of the batch to the next; 0: one for all

  void* key;                // [batch, heads, room, head_dim]; places below total - fresh are filled
  void* value;
  float* key_scale;         // [batch, heads, room] for int8, otherwise null
  float* value_scale;
  float* out;               // [batch, fresh, heads * head_dim]
  int64_t unread;           // so many of a row's first tokens nobody reads `out` of; it need not be written there
};

// Slow and obvious, in double; the other versions (../versions.h) are one source, cpu.cc.
void attend_reference(const Attention&, const Parallel&);

}  // namespace pythia
