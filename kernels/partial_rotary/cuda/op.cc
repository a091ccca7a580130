// Positions are on the GPU and are not waited for: one that the tables do not have makes its token NaN (rotate.h).
#include "op.h"

#include "../../cuda/platform.h"
#include "rotate.h"

namespace pythia {

CudaPartialRotary::CudaPartialRotary(const ort::Api& api, const ort::KernelInfo* info, Types type)
    : RotaryNode(api, info), type_(type) {}

void CudaPartialRotary::compute(ort::KernelContext* context) const {
  const Call call(node(), context);
  const RotaryCall c = checked(call);
  const Rotary& r = c.rotary;
  PythiaCudaRotary on_gpu{};
  on_gpu.batch = r.batch, on_gpu.heads = r.heads, on_gpu.tokens = r.tokens;
  on_gpu.head_dim = r.head_dim, on_gpu.rotary_dim = r.rotary_dim, on_gpu.interleaved = r.interleaved;
  on_gpu.batch_stride = r.batch_stride, on_gpu.head_stride = r.head_stride, on_gpu.token_stride = r.token_stride;
  on_gpu.positions = c.by_position ? c.cos.shape[0] : r.batch * r.tokens;
  on_gpu.type = type_ == ort::kFloat ? kPythiaFloat32 : type_ == ort::kFloat16 ? kPythiaFloat16 : kPythiaBfloat16;
  on_gpu.x = c.x.data, on_gpu.cos = c.cos.data, on_gpu.sin = c.sin.data;
  on_gpu.position = c.by_position ? c.position.as<int64_t>() : nullptr;
  on_gpu.y = call.output(0, c.x.shape);
  if (const int error = pythia_cuda_rotate(&on_gpu, call.stream()))
    node().refuse(std::string("starting the kernel: ") + cudaGetErrorString(cudaError_t(error)));
}

}  // namespace pythia
