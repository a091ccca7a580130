// pythia::DecoderLayers on a CPU, as ONNX Runtime sees it.
#pragma once

#include "../node.h"
#include "../rotary_attention/node.h"
#include "layers.h"

namespace pythia {

class DecoderLayers {
 public:
  struct Types {};
  static constexpr Types kTypes[] = {{}};
  static constexpr const char* kName = "DecoderLayers";
  static constexpr const char* kProvider = nullptr;  // the CPU
  // The last of both are any number: caches, and weights.
  static constexpr size_t kInputs = 8, kRequiredInputs = 7, kOutputs = 2, kRequiredOutputs = 1;
  static constexpr bool kVariadic = true;
  enum Input { kX, kCos, kSin, kPosition, kSeqlens, kTotal, kBias, kFirst };
  static ort::MemoryType input_memory(size_t) { return ort::kDefaultMemory; }
  static ort::ElementType input_type(Types, size_t i);
  static ort::ElementType output_type(Types, size_t i) { return i ? ort::kUndefined : ort::kFloat; }
  static void infer(const Inference& inference);

  DecoderLayers(const ort::Api& api, const ort::KernelInfo* info, Types, const char* called = "pythia::DecoderLayers",
                size_t endings = 0);
  void compute(ort::KernelContext* context) const;

 protected:
  static void infer_caches(const Inference& inference);

 private:
  // Which tensors a linear has beside its codes and scales, and how many bits a code.
  struct Form {
    int64_t bits;
    bool zeros, bias;
  };
  std::vector<LayerWeights> weights(const std::vector<Tensor>& tensors, Layers& layers) const;
  std::vector<LayerCache> grow_caches(const Call& call, Attention& a) const;
  Ending ending_of(const Call& call, int64_t hidden, int64_t fresh) const;

  Node node_;
  Layers layers_{};
  int64_t heads_, rotary_dim_;
  std::vector<Form> forms_;  // [layers, kLinears]
  size_t count_, parts_;     // layers, and tensors that each caches: 2, or 4 with scales
  size_t tensors_;           // of weights
  size_t endings_;           // inputs behind the weights
  std::vector<std::string> cache_names_;
  const Version* version_;
  std::vector<LayerWeights> constant_;  // empty where a weight is not known before a run
};

// And the final normalisation, of the tokens that get logits: four inputs more.
class Decoder : public DecoderLayers {
 public:
  enum Ending { kKeep, kNew, kScale, kShift, kEndings };  // behind the weights
  static constexpr const char* kName = "Decoder";
  Decoder(const ort::Api& api, const ort::KernelInfo* info, Types types)
      : DecoderLayers(api, info, types, "pythia::Decoder", kEndings) {}
  static void infer(const Inference& inference);
};

}  // namespace pythia
