// pythia::PartialRotary as ONNX Runtime sees it, whatever computes it: its types, shapes and what is wrong with them.
#pragma once

#include "../node.h"
#include "rotary.h"

namespace pythia {

// A call whose shapes are as they should be. `rotary` has no pointers yet; `position` is there where there are positions.
struct RotaryCall {
  Rotary rotary;
  Tensor x, cos, sin;
  bool by_position;
  Tensor position;
};

class RotaryNode {
 public:
  static constexpr const char* kName = "PartialRotary";
  static constexpr bool kVariadic = false;
  static constexpr size_t kInputs = 4, kRequiredInputs = 3, kOutputs = 1, kRequiredOutputs = 1;
  static ort::MemoryType input_memory(size_t) { return ort::kDefaultMemory; }
  static ort::ElementType input_type(ort::ElementType type, size_t i) { return i == 3 ? ort::kInt64 : type; }
  static ort::ElementType output_type(ort::ElementType type, size_t) { return type; }
  static void infer(const Inference& inference);

 protected:
  RotaryNode(const ort::Api& api, const ort::KernelInfo* info);
  RotaryCall checked(const Call& call) const;
  const Node& node() const { return node_; }

 private:
  Node node_;
  int64_t heads_, rotary_dim_;  // 0: not given
  bool interleaved_;
};

}  // namespace pythia
