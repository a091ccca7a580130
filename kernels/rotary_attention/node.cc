#include "node.h"

namespace pythia {

AttentionNode::AttentionNode(const ort::Api& api, const ort::KernelInfo* info)
    : node_(api, info, "pythia::RotaryAttention"),
      heads_(node_.attribute("num_heads")),
      rotary_dim_(node_.attribute("rotary_dim")) {
  if (heads_ < 1) node_.refuse("num_heads is " + std::to_string(heads_) + "; 1 or more was expected");
  if (rotary_dim_ < 0 || rotary_dim_ % 2)
    node_.refuse("rotary_dim is " + std::to_string(rotary_dim_) + "; an even number was expected");
}

AttentionCall AttentionNode::checked(const Call& call, bool scaled) const {
  const auto need = [this](bool holds, const std::string& what) {
    if (!holds) node_.refuse(what);
  };
  AttentionCall c{};
  c.qkv = call.input(kQkv, "qkv", {-1, -1, -1});
  const int64_t B = c.batch = c.qkv.shape[0], T = c.fresh = c.qkv.shape[1], hidden = c.qkv.shape[2] / 3;
  need(B > 0 && T > 0, "qkv is " + text(c.qkv.shape) + "; at least one row and one token were expected");
  need(c.qkv.shape[2] % 3 == 0 && hidden > 0 && hidden % heads_ == 0,
       "qkv is " + text(c.qkv.shape) + "; 3 * num_heads * head_dim with num_heads " + std::to_string(heads_) +
           " was expected in the last place");
  const int64_t n = c.head_dim = hidden / heads_;
  need(rotary_dim_ <= n, "rotary_dim is " + std::to_string(rotary_dim_) + " and head_dim is " + std::to_string(n));

  c.past_key = call.input(kPastKey, "past_key", {B, heads_, -1, n});
  const int64_t P = c.past_room = c.past_key.shape[2];
  c.past_value = call.input(kPastValue, "past_value", {B, heads_, P, n});
  const int64_t total = c.total = check_total(node_, call, kTotal, T);
  check_room(node_, "past_key", P, total, T);
  const SharedInputs shared = check_shared(node_, call, {kCos, kSin, kPosition, kSeqlens, kBias}, B, T, total, rotary_dim_);
  c.cos = shared.cos, c.sin = shared.sin, c.position = shared.position, c.bias = shared.bias;
  for (size_t i : {size_t(kKeyScale), size_t(kValueScale)})
    need(call.has(i) == scaled, std::string(i == kKeyScale ? "past_key_scale" : "past_value_scale") +
                                    (scaled ? " is missing; a cache of int8 needs it"
                                            : " was given; only a cache of int8 has it"));
  if (scaled) {
    c.past_key_scale = call.input(kKeyScale, "past_key_scale", {B, heads_, P});
    c.past_value_scale = call.input(kValueScale, "past_value_scale", {B, heads_, P});
  }
  return c;
}

int64_t check_total(const Node& node, const Call& call, size_t at, int64_t T) {
  const Tensor total_length = call.input(at, "total_length");
  if (product(total_length.shape) != 1) node.refuse("total_length is " + text(total_length.shape) + "; one number was expected");
  const int64_t total = *total_length.as<int32_t>();
  if (total < T) node.refuse("total_length is " + std::to_string(total) + "; " + std::to_string(T) + " new tokens are among them");
  return total;
}

void check_room(const Node& node, const std::string& cache, int64_t room, int64_t total, int64_t T) {
  if (room < total - T)
    node.refuse(cache + " holds " + std::to_string(room) + " places; total_length " + std::to_string(total) + " less " +
                std::to_string(T) + " new tokens was expected, or more");
}

SharedInputs check_shared(const Node& node, const Call& call, const SharedPlaces& at, int64_t B, int64_t T, int64_t total,
                          int64_t rotary_dim) {
  SharedInputs s{};
  const Tensor seqlens = call.input(at.seqlens, "seqlens_k", {B});
  for (int64_t b = 0; b < B; ++b)
    if (seqlens.as<int32_t>()[b] != total - 1)
      node.refuse("seqlens_k[" + std::to_string(b) + "] is " + std::to_string(seqlens.as<int32_t>()[b]) +
                  "; total_length - 1 = " + std::to_string(total - 1) + " was expected");
  s.cos = call.input(at.cos, "cos", {-1, rotary_dim / 2});
  s.sin = call.input(at.sin, "sin", s.cos.shape);
  s.position = call.input(at.position, "position_ids", {B, T});
  s.bias = call.input(at.bias, "attention_bias", {-1, 1, T, total});
  if (s.bias.shape[0] != B && s.bias.shape[0] != 1)
    node.refuse("attention_bias is " + text(s.bias.shape) + "; 1 or " + std::to_string(B) + " was expected first");
  return s;
}

void check_positions(const Node& node, const Tensor& position, int64_t positions) {
  for (int64_t i = 0; i < product(position.shape); ++i) {
    const int64_t at = position.as<int64_t>()[i];
    if (at < 0 || at >= positions)
      node.refuse("position_ids holds " + std::to_string(at) + "; cos has " + std::to_string(positions) + " positions");
  }
}

void AttentionNode::infer(const Inference& in) {
  const std::vector<Dimension> qkv = in.shape(kQkv, 3), key = in.shape(kPastKey, 4);
  const Dimension hidden{qkv[2].size > 0 && qkv[2].size % 3 == 0 ? qkv[2].size / 3 : -1, ""};
  in.output(0, in.type(kQkv), {qkv[0], qkv[1], hidden});
  for (size_t i : {1, 2}) in.output(i, in.type(kPastKey), {qkv[0], key[1], {}, key[3]});
  if (in.type(kPastKey) == ort::kInt8)
    for (size_t i : {3, 4}) in.output(i, ort::kFloat, {qkv[0], key[1], {}});
}

ort::ElementType AttentionNode::input_type(ort::ElementType activations, ort::ElementType cache, size_t i) {
  if (i == kPastKey || i == kPastValue) return cache;
  if (i == kPosition) return ort::kInt64;
  if (i == kKeyScale || i == kValueScale) return ort::kFloat;
  return i == kSeqlens || i == kTotal ? ort::kInt32 : activations;
}

ort::ElementType AttentionNode::output_type(ort::ElementType activations, ort::ElementType cache, size_t i) {
  if (i == 1 || i == 2) return cache;
  return i ? ort::kFloat : activations;
}

}  // namespace pythia
