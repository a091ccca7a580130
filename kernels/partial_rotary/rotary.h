// pythia::PartialRotary: q or k in, the same with the first dimensions of each head turned. The contract of ONNX's
// RotaryEmbedding (opset 23).
#pragma once

#include <cstdint>

#include "../parallel.h"

namespace pythia {

// x and y: element (b, h, t, d) lies at b * batch_stride + h * head_stride + t * token_stride + d. cos and sin: row of
// rotary_dim / 2 for each position, or for each (b, t) where `position` is null.
struct Rotary {
  int64_t batch, heads, tokens, head_dim, rotary_dim;
  int64_t batch_stride, head_stride, token_stride;
  const float *x, *cos, *sin;
  const int64_t* position;
  bool interleaved;
  float* y;
};

void rotate_reference(const Rotary&, const Parallel&);

}  // namespace pythia
