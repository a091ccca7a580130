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

// What all layers of a decoder read: tables, places and the mask. Shapes fit each other.
struct SharedInputs {
  Tensor cos, sin, position, bias;
};
// Where each of them is among a node's inputs.
struct SharedPlaces {
  size_t cos, sin, position, seqlens, bias;
};
// total_length, of which `fresh` tokens are new.
int64_t check_total(const Node&, const Call&, size_t at, int64_t fresh);
void check_room(const Node&, const std::string& cache, int64_t room, int64_t total, int64_t fresh);
// seqlens_k is read; the other tensors may lie on any device.
SharedInputs check_shared(const Node&, const Call&, const SharedPlaces&, int64_t batch, int64_t fresh, int64_t total,
                          int64_t rotary_dim);
void check_positions(const Node&, const Tensor& position, int64_t positions);

class AttentionNode {
 public:
  static constexpr const char* kName = "RotaryAttention";
  static constexpr bool kVariadic = false;
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
