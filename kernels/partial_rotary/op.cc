#include "op.h"

namespace pythia {

PartialRotary::PartialRotary(const ort::Api& api, const ort::KernelInfo* info, Types type)
    : RotaryNode(api, info), type_(type), version_(chosen()) {
  if (!version_) node().refuse(kNoVersion);
}

void PartialRotary::compute(ort::KernelContext* context) const {
  const Call call(node(), context);
  const RotaryCall c = checked(call);
  Rotary r = c.rotary;
  const int64_t half = r.rotary_dim / 2, tokens = r.batch * r.tokens, all = product(c.x.shape);
  if (c.by_position) {
    r.position = c.position.as<int64_t>();
    for (int64_t i = 0; i < tokens; ++i)
      if (r.position[i] < 0 || r.position[i] >= c.cos.shape[0])
        node().refuse("position_ids holds " + std::to_string(r.position[i]) + "; cos_cache has " +
                      std::to_string(c.cos.shape[0]) + " positions");
  }
  void* y = call.output(0, c.x.shape);
  if (type_ == ort::kFloat) {
    r.x = c.x.as<float>(), r.cos = c.cos.as<float>(), r.sin = c.sin.as<float>(), r.y = static_cast<float*>(y);
    return version_->rotate(r, call.parallel());
  }
  // float16 as float32 for the call: of the tables the rows that are turned to, in order.
  std::vector<float> wide(size_t(all + 2 * tokens * half));
  float *wide_x = wide.data(), *wide_cos = wide_x + all, *wide_sin = wide_cos + tokens * half;
  version_->widen(c.x.as<uint16_t>(), wide_x, all);
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t from = (r.position ? r.position[i] : i) * half;
    version_->widen(c.cos.as<uint16_t>() + from, wide_cos + i * half, half);
    version_->widen(c.sin.as<uint16_t>() + from, wide_sin + i * half, half);
  }
  std::vector<float> turned(static_cast<size_t>(all));
  r.x = wide_x, r.cos = wide_cos, r.sin = wide_sin, r.position = nullptr, r.y = turned.data();
  version_->rotate(r, call.parallel());
  version_->narrow(turned.data(), static_cast<uint16_t*>(y), all);
}

}  // namespace pythia
