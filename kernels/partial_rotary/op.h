#pragma once

#include "../node.h"
#include "../rotary_attention/attention.h"

namespace pythia {

class PartialRotary {
 public:
  static constexpr const char* kName = "PartialRotary";
  static constexpr size_t kInputs = 4, kRequiredInputs = 3, kOutputs = 1, kRequiredOutputs = 1;
  static ort::ElementType input_type(CacheType, size_t i) { return i == 3 ? ort::kInt64 : ort::kFloat; }
  static ort::ElementType output_type(CacheType, size_t) { return ort::kFloat; }

  PartialRotary(const ort::Api& api, const ort::KernelInfo* info, CacheType);
  void compute(ort::KernelContext* context) const;

 private:
  Node node_;
  int64_t heads_, rotary_dim_;  // 0: not given
  bool interleaved_;
};

}  // namespace pythia
