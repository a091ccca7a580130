// pythia::PartialRotary on an NVIDIA GPU, as ONNX Runtime sees it.
#pragma once

#include "../node.h"

namespace pythia {

class CudaPartialRotary : public RotaryNode {
 public:
  using Types = ort::ElementType;
  static constexpr Types kTypes[] = {ort::kFloat, ort::kFloat16, ort::kBfloat16};
#ifdef PYTHIA_EMULATE_CUDA
  static constexpr const char* kProvider = nullptr;
#else
  static constexpr const char* kProvider = "CUDAExecutionProvider";
#endif

  CudaPartialRotary(const ort::Api& api, const ort::KernelInfo* info, Types type);
  void compute(ort::KernelContext* context) const;

 private:
  Types type_;
};

}  // namespace pythia
