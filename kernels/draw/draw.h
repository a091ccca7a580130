// One token drawn from logits: temperature, then top-k, then top-p, then one draw; for pythia_export/runtime/drawing.py.
//
// The order is that of runtime/sampling.py, likeliest first and of two equals the lower id, so that both take the same token
// of the same number drawn, but for what float32 rounds. Only as many tokens are sorted as the draw needs.
#pragma once

#include <cstdint>

#include "../versions.h"

namespace pythia {

struct Drawing {
  const float* logits;  // [count]
  int64_t count;        // 1 or more
  double temperature;   // above 0
  int64_t top_k;        // 0: all
  double top_p;         // above 0; from 1 on: all
  double u;             // drawn from [0, 1)
};

constexpr int64_t kNotFinite = -2;  // a logit is NaN or infinite
int64_t draw(const Drawing&, const Version&);  // the token's id or kNotFinite; throws std::bad_alloc

}  // namespace pythia

extern "C" {
// The token's id; -1: PYTHIA_KERNELS_ISA names a version that is not to be had, or there is no memory; -2: a logit is
// NaN or infinite. Arguments as in Drawing. (A library that exports pythia_draw, its name before, looked for neither.)
PYTHIA_EXPORT int64_t pythia_token(const float* logits, int64_t count, double temperature, int64_t top_k, double top_p, double u);
}
