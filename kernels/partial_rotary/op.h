// pythia::PartialRotary on a CPU, as ONNX Runtime sees it.
#pragma once

#include "../versions.h"
#include "node.h"

namespace pythia {

class PartialRotary : public RotaryNode {
 public:
  using Types = ort::ElementType;
  static constexpr Types kTypes[] = {ort::kFloat, ort::kFloat16};
  static constexpr const char* kProvider = nullptr;  // the CPU

  PartialRotary(const ort::Api& api, const ort::KernelInfo* info, Types type);
  void compute(ort::KernelContext* context) const;

 private:
  Types type_;
  const Version* version_;
};

}  // namespace pythia
