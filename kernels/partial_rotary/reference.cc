// Slow and obvious: what every other version is held to, bit for bit.
#include "rotary.h"

namespace pythia {

void rotate_reference(const Rotary& r, const Parallel&) {
  const int64_t half = r.rotary_dim / 2;
  for (int64_t b = 0; b < r.batch; ++b)
    for (int64_t h = 0; h < r.heads; ++h)
      for (int64_t t = 0; t < r.tokens; ++t) {
        const int64_t at = b * r.batch_stride + h * r.head_stride + t * r.token_stride;
        const int64_t row = r.position ? r.position[b * r.tokens + t] : b * r.tokens + t;
        for (int64_t d = r.rotary_dim; d < r.head_dim; ++d) r.y[at + d] = r.x[at + d];
        for (int64_t i = 0; i < half; ++i) {
          const int64_t first = at + (r.interleaved ? 2 * i : i), second = r.interleaved ? first + 1 : first + half;
          const float c = r.cos[row * half + i], s = r.sin[row * half + i];
          r.y[first] = r.x[first] * c - r.x[second] * s;
          r.y[second] = r.x[second] * c + r.x[first] * s;
        }
      }
}

}  // namespace pythia
