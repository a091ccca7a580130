// pythia::DecoderMask on a CPU: what a decoder's attention reads of attention_mask, as one node instead of eleven.
#pragma once

#include "../node.h"

namespace pythia {

class DecoderMask {
 public:
  struct Types {};
  static constexpr Types kTypes[] = {{}};
  static constexpr const char* kName = "DecoderMask";
  static constexpr const char* kProvider = nullptr;  // the CPU
  static constexpr size_t kInputs = 2, kRequiredInputs = 2, kOutputs = 3, kRequiredOutputs = 3;
  static constexpr bool kVariadic = false;
  enum Input { kMask, kNew };
  enum Output { kSeqlens, kTotal, kBias };
  static ort::MemoryType input_memory(size_t) { return ort::kDefaultMemory; }
  static ort::ElementType input_type(Types, size_t) { return ort::kInt64; }
  static ort::ElementType output_type(Types, size_t i) { return i == kBias ? ort::kFloat : ort::kInt32; }
  static void infer(const Inference& inference);

  DecoderMask(const ort::Api& api, const ort::KernelInfo* info, Types);
  void compute(ort::KernelContext* context) const;

 private:
  Node node_;
};

}  // namespace pythia
