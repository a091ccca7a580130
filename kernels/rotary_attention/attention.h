// One call of pythia::RotaryAttention, checked and without ONNX Runtime: raw pointers and sizes. README.md has the contract.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pythia {

enum class CacheType { kFloat32, kFloat16, kInt8 };

struct Attention {
  int64_t batch, heads, head_dim, rotary_dim;
  int64_t fresh;  // tokens of this call
  int64_t total;  // tokens cached after it
  int64_t room;   // length of the cache's buffer, total or more
  CacheType cache;

  const float* qkv;        // [batch, fresh, 3 * heads * head_dim]
  const float* cos;        // [positions, rotary_dim / 2]
  const float* sin;        // [positions, rotary_dim / 2]
  const int64_t* position; // [batch, fresh]
  const float* bias;       // [batch or 1, fresh, total]
  int64_t bias_batch;      // elements from one row of the batch to the next; 0 for one for all

  void* key;               // [batch, heads, room, head_dim]; places below total - fresh are filled
  void* value;
  float* key_scale;        // [batch, heads, room] for int8
  float* value_scale;
  float* out;              // [batch, fresh, heads * head_dim]
};

// Calls fn(data, i) for i in [0, n), in any order, on any thread, and returns when all are done.
struct Parallel {
  void (*run)(void* context, size_t n, void (*fn)(void*, size_t), void* data);
  void* context;
  void operator()(size_t n, void (*fn)(void*, size_t), void* data) const { run(context, n, fn, data); }
};

// Each does the whole call. The reference is slow and obvious; the others are one source at several vector widths.
void attend_reference(const Attention&, const Parallel&);
namespace base { void attend(const Attention&, const Parallel&); }
#ifdef PYTHIA_X86
namespace avx2 { void attend(const Attention&, const Parallel&); }
namespace avx512 { void attend(const Attention&, const Parallel&); }
#endif

using Attend = void (*)(const Attention&, const Parallel&);

// The best for this processor, or the one that the environment variable PYTHIA_KERNELS_ISA names.
struct Chosen { const char* name; Attend attend; };
Chosen choose();

}  // namespace pythia
