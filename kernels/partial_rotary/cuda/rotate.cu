// A block takes one head of one token, a thread a dimension or more: as many bytes are written as are read, and next to
// nothing is done with them.
#include "rotate.h"

#include "../../cuda/numbers.h"

namespace pythia {
namespace cuda {
namespace {

constexpr int kThreads = 64;

template <typename T>
__global__ void rotate(PythiaCudaRotary r) {
  const int64_t token = blockIdx.x, b = token / r.tokens, half = r.rotary_dim / 2;
  const int64_t at = b * r.batch_stride + blockIdx.y * r.head_stride + token % r.tokens * r.token_stride;
  const int64_t row = r.position ? r.position[token] : token;
  const bool known = row >= 0 && row < r.positions;
  const T *x = static_cast<const T*>(r.x) + at, *cos = static_cast<const T*>(r.cos), *sin = static_cast<const T*>(r.sin);
  for (int64_t d = threadIdx.x; d < r.head_dim; d += kThreads) {
    float y = known ? widen(x[d]) : NAN;
    if (known && d < r.rotary_dim) {
      const bool is_first = r.interleaved ? d % 2 == 0 : d < half;
      const int64_t i = r.interleaved ? d / 2 : is_first ? d : d - half, by = r.interleaved ? 1 : half;
      y = rotated(y, widen(x[is_first ? d + by : d - by]), widen(cos[row * half + i]), widen(sin[row * half + i]), is_first);
    }
    static_cast<T*>(r.y)[at + d] = narrow<T>(y);
  }
}

template <typename T>
int launch(const PythiaCudaRotary& r, cudaStream_t stream) {
  PYTHIA_LAUNCH(rotate<T>, dim3(unsigned(r.batch * r.tokens), unsigned(r.heads)), kThreads, stream, r);
  return cudaGetLastError();
}

}  // namespace
}  // namespace cuda
}  // namespace pythia

int pythia_cuda_rotate(const PythiaCudaRotary* r, void* stream) {
  using namespace pythia::cuda;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  switch (r->type) {
    case kPythiaFloat32: return launch<float>(*r, on);
    case kPythiaFloat16: return launch<__half>(*r, on);
    case kPythiaBfloat16: return launch<__nv_bfloat16>(*r, on);
    default: return kPythiaNoKernel;
  }
}
