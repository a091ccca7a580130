#include "op.h"

#include "partial_rotary.h"

namespace pythia {

PartialRotary::PartialRotary(const ort::Api& api, const ort::KernelInfo* info, CacheType)
    : node_(api, info, "pythia::PartialRotary"),
      heads_(node_.attribute("num_heads", 0)),
      rotary_dim_(node_.attribute("rotary_embedding_dim", 0)),
      interleaved_(node_.attribute("interleaved", 0) != 0) {}

void PartialRotary::compute(ort::KernelContext* context) const {
  const Call call(node_, context);
  const Tensor x = call.input(0, "x");
  const bool flat = x.shape.size() == 3;  // [B, T, heads * head_dim] and not [B, heads, T, head_dim]
  if (!flat && x.shape.size() != 4) node_.refuse("x is " + text(x.shape) + "; 3 or 4 dimensions were expected");
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
  const bool by_position = call.has(3);
  const std::vector<int64_t> rows = by_position ? std::vector<int64_t>{-1, r.rotary_dim / 2}
                                                : std::vector<int64_t>{r.batch, r.tokens, r.rotary_dim / 2};
  const Tensor cos = call.input(1, "cos_cache", rows), sin = call.input(2, "sin_cache", cos.shape);
  if (by_position) {
    const Tensor position = call.input(3, "position_ids", {r.batch, r.tokens});
    r.position = position.as<int64_t>();
    for (int64_t i = 0; i < r.batch * r.tokens; ++i)
      if (r.position[i] < 0 || r.position[i] >= cos.shape[0])
        node_.refuse("position_ids holds " + std::to_string(r.position[i]) + "; cos_cache has " +
                     std::to_string(cos.shape[0]) + " positions");
  }
  r.x = x.as<float>(), r.cos = cos.as<float>(), r.sin = sin.as<float>(), r.interleaved = interleaved_;
  r.y = static_cast<float*>(call.output(0, x.shape));
  turn(r);
}

}  // namespace pythia
