// pythia::RotaryAttention on a CPU, as ONNX Runtime sees it.
#pragma once

#include "../versions.h"
#include "node.h"

namespace pythia {

class RotaryAttention : public AttentionNode {
 public:
  struct Types {
    ort::ElementType activations;
    CacheType cache;
  };
  static constexpr Types kTypes[] = {
      {ort::kFloat, CacheType::kFloat32},   {ort::kFloat, CacheType::kFloat16},   {ort::kFloat, CacheType::kInt8},
      {ort::kFloat16, CacheType::kFloat32}, {ort::kFloat16, CacheType::kFloat16}, {ort::kFloat16, CacheType::kInt8},
  };
  static constexpr const char* kProvider = nullptr;  // the CPU
  static ort::MemoryType input_memory(size_t) { return ort::kDefaultMemory; }
  static ort::ElementType input_type(Types types, size_t i);
  static ort::ElementType output_type(Types types, size_t i);

  RotaryAttention(const ort::Api& api, const ort::KernelInfo* info, Types types);
  void compute(ort::KernelContext* context) const;

 private:
  Types types_;
  const Version* version_;
};

}  // namespace pythia
