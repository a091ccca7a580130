#pragma once

#include "../node.h"
#include "../versions.h"

namespace pythia {

class RotaryAttention {
 public:
  struct Types {
    ort::ElementType activations;
    CacheType cache;
  };
  static constexpr Types kTypes[] = {
      {ort::kFloat, CacheType::kFloat32},   {ort::kFloat, CacheType::kFloat16},   {ort::kFloat, CacheType::kInt8},
      {ort::kFloat16, CacheType::kFloat32}, {ort::kFloat16, CacheType::kFloat16}, {ort::kFloat16, CacheType::kInt8},
  };
  static constexpr const char* kName = "RotaryAttention";
  static constexpr size_t kInputs = 11, kRequiredInputs = 9, kOutputs = 5, kRequiredOutputs = 3;
  static ort::ElementType input_type(Types types, size_t i);
  static ort::ElementType output_type(Types types, size_t i);
  static void infer(const Inference& inference);

  RotaryAttention(const ort::Api& api, const ort::KernelInfo* info, Types types);
  void compute(ort::KernelContext* context) const;

 private:
  Node node_;
  Types types_;
  int64_t heads_, rotary_dim_;
  const Version* version_;
};

}  // namespace pythia
