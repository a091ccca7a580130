#include "op.h"

#include <algorithm>
#include <cstring>

namespace pythia {
namespace {

constexpr float kHidden = -3e4f;  // LOWEST of pythia_export/graph/ops.py
constexpr int64_t kMost = int64_t(1) << 24;  // tokens: far from where sizes of tensors overflow

}  // namespace

DecoderMask::DecoderMask(const ort::Api& api, const ort::KernelInfo* info, Types) : node_(api, info, "pythia::DecoderMask") {}

void DecoderMask::compute(ort::KernelContext* context) const {
  const Call call(node_, context);
  const Tensor mask = call.input(kMask, "attention_mask", {-1, -1});
  const int64_t fresh = *call.input(kNew, "the number of new tokens", {1}).as<int64_t>();
  const int64_t B = mask.shape[0], total = mask.shape[1];
  if (B < 1 || total < 1 || total > kMost)
    node_.refuse("attention_mask is " + text(mask.shape) + "; at least one row and one token were expected");
  if (fresh < 1 || fresh > total)
    node_.refuse("attention_mask is " + text(mask.shape) + " and " + std::to_string(fresh) +
                 " tokens are new; at least as many columns as new tokens were expected");
  int32_t* seqlens = static_cast<int32_t*>(call.output(kSeqlens, {B}));
  std::fill(seqlens, seqlens + B, int32_t(total - 1));
  *static_cast<int32_t*>(call.output(kTotal, {})) = int32_t(total);
  float* bias = static_cast<float*>(call.output(kBias, {B, 1, fresh, total}));
  for (int64_t b = 0; b < B; ++b) {
    const int64_t* of = mask.as<int64_t>() + b * total;
    float* row = bias + b * fresh * total;
    for (int64_t i = 0; i < total; ++i) row[i] = of[i] == 0 ? kHidden : 0.0f;
    for (int64_t t = 1; t < fresh; ++t) std::memcpy(row + t * total, row, size_t(total) * sizeof(float));
  }
}

void DecoderMask::infer(const Inference& in) {
  const std::vector<Dimension> mask = in.shape(kMask, 2);
  in.output(kSeqlens, ort::kInt32, {mask[0]});
  in.output(kTotal, ort::kInt32, {});
  in.output(kBias, ort::kFloat, {mask[0], {1, ""}, {}, mask[1]});
}

}  // namespace pythia
