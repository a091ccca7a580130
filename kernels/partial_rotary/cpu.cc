// pythia::PartialRotary on a CPU; compiled once for each instruction set, into the namespace PYTHIA_ISA. It moves as many
// bytes as it reads and does next to nothing with them: vectors where a pair's halves lie apart, and plain code, which
// compilers shuffle well enough, where they lie side by side.
#include "rotary.h"

#include "../vector.h"

namespace pythia {
namespace PYTHIA_ISA {
namespace {

void head(const Rotary& r, const float* c, const float* s, const float* x, float* y) {
  const int64_t half = r.rotary_dim / 2;
  int64_t i = 0;
  if (r.interleaved) {
    for (; i < half; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      y[2 * i] = a * c[i] - b * s[i];
      y[2 * i + 1] = b * c[i] + a * s[i];
    }
  } else {
    for (; i + kLanes <= half; i += kLanes) {
      const Floats a = load(x + i), b = load(x + half + i), cos = load(c + i), sin = load(s + i);
      store(y + i, a * cos - b * sin);
      store(y + half + i, b * cos + a * sin);
    }
    for (; i < half; ++i) {
      const float a = x[i], b = x[half + i];
      y[i] = a * c[i] - b * s[i];
      y[half + i] = b * c[i] + a * s[i];
    }
  }
  std::memcpy(y + r.rotary_dim, x + r.rotary_dim, size_t(r.head_dim - r.rotary_dim) * sizeof(float));
}

// One token of one row of the batch.
void token(void* data, size_t task) {
  const Rotary& r = *static_cast<const Rotary*>(data);
  const int64_t b = int64_t(task) / r.tokens, t = int64_t(task) % r.tokens, half = r.rotary_dim / 2;
  const int64_t row = r.position ? r.position[task] : int64_t(task);
  for (int64_t h = 0; h < r.heads; ++h) {
    const int64_t at = b * r.batch_stride + h * r.head_stride + t * r.token_stride;
    head(r, r.cos + row * half, r.sin + row * half, r.x + at, r.y + at);
  }
}

}  // namespace

void rotate(const Rotary& r, const Parallel& parallel) {
  parallel(size_t(r.batch * r.tokens), token, const_cast<Rotary*>(&r));
}

}  // namespace PYTHIA_ISA
}  // namespace pythia
