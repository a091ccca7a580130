#pragma once

#include "../node.h"
#include "../versions.h"

namespace pythia {

class PartialRotary {
 public:
  using Types = ort::ElementType;
  static constexpr Types kTypes[] = {ort::kFloat, ort::kFloat16};
  static constexpr const char* kName = "PartialRotary";
  static constexpr size_t kInputs = 4, kRequiredInputs = 3, kOutputs = 1, kRequiredOutputs = 1;
  static constexpr const char* kProvider = nullptr;  // the CPU
  static ort::MemoryType input_memory(size_t) { return ort::kDefaultMemory; }
  static ort::ElementType input_type(Types type, size_t i) { return i == 3 ? ort::kInt64 : type; }
  static ort::ElementType output_type(Types type, size_t) { return type; }
  static void infer(const Inference& inference);

  PartialRotary(const ort::Api& api, const ort::KernelInfo* info, Types type);
  void compute(ort::KernelContext* context) const;

 private:
  Node node_;
  Types type_;
  int64_t heads_, rotary_dim_;  // 0: not given
  bool interleaved_;
  const Version* version_;
};

}  // namespace pythia
