#include "partial_rotary.h"

namespace pythia {

void turn(const Rotary& r) {
  const int64_t half = r.rotary_dim / 2, step = r.interleaved ? 2 : 1, across = r.interleaved ? 1 : half;
  for (int64_t b = 0; b < r.batch; ++b)
    for (int64_t t = 0; t < r.tokens; ++t) {
      const int64_t row = r.position ? r.position[b * r.tokens + t] : b * r.tokens + t;
      const float *c = r.cos + row * half, *s = r.sin + row * half;
      for (int64_t h = 0; h < r.heads; ++h) {
        const int64_t at = b * r.batch_stride + h * r.head_stride + t * r.token_stride;
        const float* x = r.x + at;
        float* y = r.y + at;
        for (int64_t i = 0; i < half; ++i) {
          const float first = x[i * step], second = x[i * step + across];
          y[i * step] = first * c[i] - second * s[i];
          y[i * step + across] = second * c[i] + first * s[i];
        }
        for (int64_t d = r.rotary_dim; d < r.head_dim; ++d) y[d] = x[d];
      }
    }
}

}  // namespace pythia
