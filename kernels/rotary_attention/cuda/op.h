// pythia::RotaryAttention on an NVIDIA GPU, as ONNX Runtime sees it.
#pragma once

#include "../node.h"

namespace pythia {

class CudaRotaryAttention : public AttentionNode {
 public:
  struct Types {
    ort::ElementType activations, cache;
  };
  static constexpr Types kTypes[] = {
      {ort::kFloat, ort::kFloat},    {ort::kFloat, ort::kFloat16},    {ort::kFloat, ort::kInt8},
      {ort::kFloat16, ort::kFloat},  {ort::kFloat16, ort::kFloat16},  {ort::kFloat16, ort::kInt8},
      {ort::kBfloat16, ort::kFloat}, {ort::kBfloat16, ort::kFloat16}, {ort::kBfloat16, ort::kInt8},
  };
#ifdef PYTHIA_EMULATE_CUDA
  static constexpr const char* kProvider = nullptr;
#else
  static constexpr const char* kProvider = "CUDAExecutionProvider";
#endif
  // What is read before anything starts lies on the CPU, where the graph computes it from shapes.
  static ort::MemoryType input_memory(size_t i) {
    return i == kSeqlens || i == kTotal ? ort::kCpuInput : ort::kDefaultMemory;
  }
  static ort::ElementType input_type(Types types, size_t i) {
    return AttentionNode::input_type(types.activations, types.cache, i);
  }
  static ort::ElementType output_type(Types types, size_t i) {
    return AttentionNode::output_type(types.activations, types.cache, i);
  }

  CudaRotaryAttention(const ort::Api& api, const ort::KernelInfo* info, Types types);
  void compute(ort::KernelContext* context) const;

 private:
  Types types_;
  int multiprocessors_;
};

}  // namespace pythia
