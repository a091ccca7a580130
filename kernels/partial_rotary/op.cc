// pythia::PartialRotary as ONNX Runtime sees it: every input is checked here, and nowhere below.
#include "op.h"

#include <algorithm>

namespace pythia {

PartialRotary::PartialRotary(const ort::Api& api, const ort::KernelInfo* info, Types type)
    : node_(api, info, "pythia::PartialRotary"),
      type_(type),
      heads_(node_.attribute("num_heads", 0)),
      rotary_dim_(node_.attribute("rotary_embedding_dim", 0)),
      interleaved_(node_.attribute("interleaved", 0) != 0),
      version_(chosen()) {
  if (!version_) node_.refuse(kNoVersion);
}

void PartialRotary::compute(ort::KernelContext* context) const {
  const Call call(node_, context);
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
  const int64_t half = r.rotary_dim / 2, tokens = r.batch * r.tokens, all = product(x.shape);
  const bool by_position = call.has(3);
  const std::vector<int64_t> rows = by_position ? std::vector<int64_t>{-1, half}
                                                : std::vector<int64_t>{r.batch, r.tokens, half};
  const Tensor cos = call.input(1, "cos_cache", rows), sin = call.input(2, "sin_cache", cos.shape);
  if (by_position) {
    const Tensor position = call.input(3, "position_ids", {r.batch, r.tokens});
    r.position = position.as<int64_t>();
    for (int64_t i = 0; i < tokens; ++i)
      if (r.position[i] < 0 || r.position[i] >= cos.shape[0])
        node_.refuse("position_ids holds " + std::to_string(r.position[i]) + "; cos_cache has " +
                     std::to_string(cos.shape[0]) + " positions");
  }
  void* y = call.output(0, x.shape);
  if (type_ == ort::kFloat) {
    r.x = x.as<float>(), r.cos = cos.as<float>(), r.sin = sin.as<float>(), r.y = static_cast<float*>(y);
    return version_->rotate(r, call.parallel());
  }
  // float16 as float32 for the call: of the tables the rows that are turned to, in order.
  std::vector<float> wide(size_t(all + 2 * tokens * half));
  float *wide_x = wide.data(), *wide_cos = wide_x + all, *wide_sin = wide_cos + tokens * half;
  version_->widen(x.as<uint16_t>(), wide_x, all);
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t from = (r.position ? r.position[i] : i) * half;
    version_->widen(cos.as<uint16_t>() + from, wide_cos + i * half, half);
    version_->widen(sin.as<uint16_t>() + from, wide_sin + i * half, half);
  }
  std::vector<float> turned(static_cast<size_t>(all));
  r.x = wide_x, r.cos = wide_cos, r.sin = wide_sin, r.position = nullptr, r.y = turned.data();
  version_->rotate(r, call.parallel());
  version_->narrow(turned.data(), static_cast<uint16_t*>(y), all);
}

void PartialRotary::infer(const Inference& in) {
  for (size_t rank : {3, 4}) {
    const std::vector<Dimension> x = in.shape(0, rank);
    const auto known = [](const Dimension& d) { return d.size >= 0 || !d.name.empty(); };
    if (std::any_of(x.begin(), x.end(), known)) return in.output(0, in.type(0), x);
  }
}

}  // namespace pythia
