// A node of pythia::RotaryAttention and its calls, on whatever device: every check that needs no device is here.
#pragma once

#include "../node.h"

namespace pythia {

// The tensors of one call, of shapes that fit each other.
struct AttentionCall {
  int64_t batch, fresh, head_dim, past_room, total;
  Tensor qkv, past_key, past_value, cos, sin, position, bias, past_key_scale, past_value_scale;

  int64_t room() const { return past_room > total ? past_room : total; }
  int64_t bias_batch() const { return bias.shape[0] == 1 ? 0 : fresh * total; }
};

class AttentionNode {
 public:
  static constexpr const char* kName = "RotaryAttention";
  static constexpr size_t kInputs = 11, kRequiredInputs = 9, kOutputs = 5, kRequiredOutputs = 3;
  enum Input { kQkv, kPastKey, kPastValue, kCos, kSin, kPosition, kSeqlens, kTotal, kBias, kKeyScale, kValueScale };
  static ort::ElementType input_type(ort::ElementType activations, ort::ElementType cache, size_t i);
  static ort::ElementType output_type(ort::ElementType activations, ort::ElementType cache, size_t i);
  static void infer(const Inference& inference);

  AttentionNode(const ort::Api& api, const ort::KernelInfo* info);
  // seqlens_k and total_length are read; the other tensors may lie on any device.
  AttentionCall checked(const Call& call, bool scaled) const;

  const Node& node() const { return node_; }
  int64_t heads() const { return heads_; }
  int64_t rotary_dim() const { return rotary_dim_; }

 private:
  Node node_;
  int64_t heads_, rotary_dim_;
};

}  // namespace pythia
