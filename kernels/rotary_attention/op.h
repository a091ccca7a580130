// pythia::RotaryAttention on a CPU, as ONNX Runtime sees it.
#pragma once

#include "../versions.h"
#include "node.h"

namespace pythia {

// The output that is `past` grown to `shape`: the same buffer, or a copy of the `filled` places of each head.
char* grow_cache(const Call& call, size_t output, const Tensor& past, const std::vector<int64_t>& shape, int64_t filled,
                 int64_t element);

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
