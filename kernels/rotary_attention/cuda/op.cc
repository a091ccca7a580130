// Positions are on the GPU and are not waited for: one that the tables do not have makes its token NaN (attend.h).
#include "op.h"

#include "attend.h"
#include "../../cuda/platform.h"

namespace pythia {
namespace {

int32_t code_of(ort::ElementType type) {
  switch (type) {
    case ort::kFloat: return kPythiaFloat32;
    case ort::kFloat16: return kPythiaFloat16;
    case ort::kBfloat16: return kPythiaBfloat16;
    default: return kPythiaInt8;
  }
}

void need(const Node& node, int error, const char* doing) {
  if (error == kPythiaNoKernel) node.refuse("there is no kernel for a head_dim beyond 256");
  if (error) node.refuse(std::string(doing) + ": " + cudaGetErrorString(cudaError_t(error)));
}

// Memory that is taken and given back in the order of the stream.
class Workspace {
 public:
  Workspace(const Node& node, int64_t bytes, cudaStream_t stream) : stream_(stream) {
    if (bytes) need(node, cudaMallocAsync(&at_, size_t(bytes), stream), "taking memory");
  }
  ~Workspace() {
    if (at_) cudaFreeAsync(at_, stream_);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* at() const { return at_; }

 private:
  void* at_ = nullptr;
  cudaStream_t stream_;
};

}  // namespace

CudaRotaryAttention::CudaRotaryAttention(const ort::Api& api, const ort::KernelInfo* info, Types types)
    : AttentionNode(api, info), types_(types), multiprocessors_(0) {
  int device = 0;
  need(node(), cudaGetDevice(&device), "asking for the GPU");
  need(node(), cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device), "asking for the GPU");
}

void CudaRotaryAttention::compute(ort::KernelContext* context) const {
  const Call call(node(), context);
  const bool scaled = types_.cache == ort::kInt8;
  const AttentionCall c = checked(call, scaled);
  PythiaCudaAttention a{};
  a.batch = c.batch, a.heads = heads(), a.head_dim = c.head_dim, a.rotary_dim = rotary_dim();
  a.fresh = c.fresh, a.total = c.total, a.room = c.room(), a.past_room = c.past_room;
  a.positions = c.cos.shape[0], a.bias_batch = c.bias_batch();
  a.activations = code_of(types_.activations), a.cache = code_of(types_.cache), a.multiprocessors = multiprocessors_;
  a.qkv = c.qkv.data, a.cos = c.cos.data, a.sin = c.sin.data, a.position = c.position.as<int64_t>(), a.bias = c.bias.data;
  a.past_key = c.past_key.data, a.past_value = c.past_value.data;
  const std::vector<int64_t> present{a.batch, a.heads, a.room, a.head_dim}, scales{a.batch, a.heads, a.room};
  a.out = call.output(0, {a.batch, a.fresh, a.heads * a.head_dim});
  a.key = call.output(1, present), a.value = call.output(2, present);
  if (scaled) {
    a.past_key_scale = c.past_key_scale.as<float>(), a.past_value_scale = c.past_value_scale.as<float>();
    a.key_scale = static_cast<float*>(call.output(3, scales)), a.value_scale = static_cast<float*>(call.output(4, scales));
  }
  void* stream = call.stream();
  const Workspace workspace(node(), pythia_cuda_workspace(&a), static_cast<cudaStream_t>(stream));
  a.workspace = workspace.at();
  need(node(), pythia_cuda_attend(&a, stream), "starting attention");
}

}  // namespace pythia
