#include "node.h"

#include <algorithm>

namespace pythia {

RotaryNode::RotaryNode(const ort::Api& api, const ort::KernelInfo* info)
    : node_(api, info, "pythia::PartialRotary"),
      heads_(node_.attribute("num_heads", 0)),
      rotary_dim_(node_.attribute("rotary_embedding_dim", 0)),
      interleaved_(node_.attribute("interleaved", 0) != 0) {}

RotaryCall RotaryNode::checked(const Call& call) const {
  const Tensor x = call.input(0, "x");
  const bool flat = x.shape.size() == 3;  // [B, T, heads * head_dim] and not [B, heads, T, head_dim]
  if (!flat && x.shape.size() != 4) node_.refuse("x is " + text(x.shape) + "; 3 or 4 dimensions were expected");
  if (product(x.shape) == 0) node_.refuse("x is " + text(x.shape) + "; at least one row, head and token were expected");
  if (flat && (heads_ < 1 || x.shape[2] % heads_))
    node_.refuse("x is " + text(x.shape) + "; a last dimension that num_heads " + std::to_string(heads_) +
                 " divides was expected");
  Rotary r{};
  r.batch = x.shape[0];
  r.heads = flat ? heads_ : x.shape[1];
  r.tokens = flat ? x.shape[1] : x.shape[2];
  r.head_dim = flat ? x.shape[2] / heads_ : x.shape[3];
  r.rotary_dim = rotary_dim_ ? rotary_dim_ : r.head_dim;
  if (r.rotary_dim % 2 || r.rotary_dim < 0 || r.rotary_dim > r.head_dim)
    node_.refuse("rotary_embedding_dim is " + std::to_string(r.rotary_dim) + "; an even number up to head_dim " +
                 std::to_string(r.head_dim) + " was expected");
  r.batch_stride = r.heads * r.tokens * r.head_dim;
  r.head_stride = flat ? r.head_dim : r.tokens * r.head_dim;
  r.token_stride = flat ? r.heads * r.head_dim : r.head_dim;
  r.interleaved = interleaved_;
  const int64_t half = r.rotary_dim / 2;
  const bool by_position = call.has(3);
  const std::vector<int64_t> rows = by_position ? std::vector<int64_t>{-1, half}
                                                : std::vector<int64_t>{r.batch, r.tokens, half};
  const Tensor cos = call.input(1, "cos_cache", rows), sin = call.input(2, "sin_cache", cos.shape);
  return {r, x, cos, sin, by_position, by_position ? call.input(3, "position_ids", {r.batch, r.tokens}) : Tensor{}};
}

void RotaryNode::infer(const Inference& in) {
  for (size_t rank : {3, 4}) {
    const std::vector<Dimension> x = in.shape(0, rank);
    const auto known = [](const Dimension& d) { return d.size >= 0 || !d.name.empty(); };
    if (std::any_of(x.begin(), x.end(), known)) return in.output(0, in.type(0), x);
  }
}

}  // namespace pythia
