#pragma once

#include "../node.h"
#include "attention.h"

namespace pythia {

class RotaryAttention {
 public:
  static constexpr const char* kName = "RotaryAttention";
  static constexpr size_t kInputs = 11, kRequiredInputs = 9, kOutputs = 5, kRequiredOutputs = 3;
  static ort::ElementType input_type(CacheType cache, size_t i);
  static ort::ElementType output_type(CacheType cache, size_t i);

  RotaryAttention(const ort::Api& api, const ort::KernelInfo* info, CacheType cache);
  void compute(ort::KernelContext* context) const;

 private:
  Node node_;
  CacheType cache_;
  int64_t heads_, rotary_dim_;
  Chosen chosen_;
};

}  // namespace pythia
