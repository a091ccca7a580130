// The cached length in parts, each with a softmax of its own, and how they are joined (Flash-Decoding).
#pragma once

#include "../../cuda/numbers.h"
#include "attend.h"

namespace pythia {
namespace cuda {

// `splits` parts of `span` places.
struct Split {
  int64_t splits, span;
};

// What part of a sum of exponentials relative to `own` counts relative to `largest`; both may be -inf, and the sum 0.
__device__ inline float share(float own, float largest) { return own == largest ? 1.0f : expf(own - largest); }

// Where part `at` of the result of one query lies: head_dim numbers, the largest score, the sum of exponentials.
__device__ inline float* part_of(const PythiaCudaAttention& a, const Split& split, int64_t row, int64_t query, int64_t at) {
  return static_cast<float*>(a.workspace) + ((row * a.fresh + query) * split.splits + at) * (a.head_dim + 2);
}

}  // namespace cuda
}  // namespace pythia
