// pythia::RotaryAttention as ONNX Runtime sees it: every input is checked here, and nowhere below.
#include "op.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace pythia {
namespace {

enum Input { kQkv, kPastKey, kPastValue, kCos, kSin, kPosition, kSeqlens, kTotal, kBias, kKeyScale, kValueScale };

constexpr ort::ElementType kElement[] = {ort::kFloat, ort::kFloat16, ort::kInt8};
constexpr int64_t kSize[] = {4, 2, 1};

// The output that is `past` grown to `shape`: the same buffer, or a copy of the `filled` places of each head.
char* grown(const Call& call, size_t output, const Tensor& past, const std::vector<int64_t>& shape, int64_t filled,
            int64_t element) {
  char* to = static_cast<char*>(call.output(output, shape));
  const char* from = past.as<char>();
  if (to == from || !filled) return to;
  const int64_t row = (shape.size() == 4 ? shape[3] : 1) * element, heads = shape[0] * shape[1];
  for (int64_t h = 0; h < heads; ++h)
    std::memmove(to + h * shape[2] * row, from + h * past.shape[2] * row, size_t(filled * row));
  return to;
}

// float16 activations as float32 for one call: of the rotation's tables the rows that are turned to, in order.
struct Widened {
  std::vector<float> floats;
  std::vector<int64_t> position;

  Widened(const Version& version, const Tensor& qkv, const Tensor& cos, const Tensor& sin, const Tensor& bias,
          Attention& a) {
    const int64_t tokens = a.batch * a.fresh, half = a.rotary_dim / 2, hidden = a.heads * a.head_dim;
    const int64_t biases = product(bias.shape);
    floats.resize(size_t(tokens * (4 * hidden + 2 * half) + biases));
    position.resize(size_t(tokens));
    float* place = floats.data();
    const auto next = [&place](int64_t count) { return std::exchange(place, place + count); };
    float *wide_qkv = next(3 * tokens * hidden), *wide_cos = next(tokens * half), *wide_sin = next(tokens * half),
          *wide_bias = next(biases);
    version.widen(qkv.as<uint16_t>(), wide_qkv, 3 * tokens * hidden);
    version.widen(bias.as<uint16_t>(), wide_bias, biases);
    for (int64_t i = 0; i < tokens; ++i) {
      version.widen(cos.as<uint16_t>() + a.position[i] * half, wide_cos + i * half, half);
      version.widen(sin.as<uint16_t>() + a.position[i] * half, wide_sin + i * half, half);
      position[size_t(i)] = i;
    }
    a.qkv = wide_qkv, a.cos = wide_cos, a.sin = wide_sin, a.bias = wide_bias, a.position = position.data();
    a.out = place;
  }
};

}  // namespace

RotaryAttention::RotaryAttention(const ort::Api& api, const ort::KernelInfo* info, Types types)
    : node_(api, info, "pythia::RotaryAttention"),
      types_(types),
      heads_(node_.attribute("num_heads")),
      rotary_dim_(node_.attribute("rotary_dim")),
      version_(chosen()) {
  if (heads_ < 1) node_.refuse("num_heads is " + std::to_string(heads_) + "; 1 or more was expected");
  if (rotary_dim_ < 0 || rotary_dim_ % 2)
    node_.refuse("rotary_dim is " + std::to_string(rotary_dim_) + "; an even number was expected");
  if (!version_) node_.refuse(kNoVersion);
}

void RotaryAttention::compute(ort::KernelContext* context) const {
  const Call call(node_, context);
  const auto need = [this](bool holds, const std::string& what) {
    if (!holds) node_.refuse(what);
  };
  const Tensor qkv = call.input(kQkv, "qkv", {-1, -1, -1});
  const int64_t B = qkv.shape[0], T = qkv.shape[1], hidden = qkv.shape[2] / 3;
  need(B > 0 && T > 0, "qkv is " + text(qkv.shape) + "; at least one row and one token were expected");
  need(qkv.shape[2] % 3 == 0 && hidden > 0 && hidden % heads_ == 0,
       "qkv is " + text(qkv.shape) + "; 3 * num_heads * head_dim with num_heads " + std::to_string(heads_) +
           " was expected in the last place");
  const int64_t n = hidden / heads_;
  need(rotary_dim_ <= n, "rotary_dim is " + std::to_string(rotary_dim_) + " and head_dim is " + std::to_string(n));

  const Tensor past_key = call.input(kPastKey, "past_key", {B, heads_, -1, n});
  const int64_t P = past_key.shape[2];
  const Tensor past_value = call.input(kPastValue, "past_value", {B, heads_, P, n});
  const Tensor total_length = call.input(kTotal, "total_length");
  need(product(total_length.shape) == 1, "total_length is " + text(total_length.shape) + "; one number was expected");
  const int64_t total = *total_length.as<int32_t>();
  need(total >= T, "total_length is " + std::to_string(total) + "; " + std::to_string(T) + " new tokens are among them");
  need(P >= total - T, "past_key holds " + std::to_string(P) + " places; total_length " + std::to_string(total) +
                           " less " + std::to_string(T) + " new tokens was expected, or more");
  const Tensor seqlens = call.input(kSeqlens, "seqlens_k", {B});
  for (int64_t b = 0; b < B; ++b)
    need(seqlens.as<int32_t>()[b] == total - 1, "seqlens_k[" + std::to_string(b) + "] is " +
                                                    std::to_string(seqlens.as<int32_t>()[b]) + "; total_length - 1 = " +
                                                    std::to_string(total - 1) + " was expected");
  const Tensor cos = call.input(kCos, "cos", {-1, rotary_dim_ / 2});
  const Tensor sin = call.input(kSin, "sin", cos.shape);
  const Tensor position = call.input(kPosition, "position_ids", {B, T});
  for (int64_t i = 0; i < B * T; ++i) {
    const int64_t at = position.as<int64_t>()[i];
    need(at >= 0 && at < cos.shape[0], "position_ids holds " + std::to_string(at) + "; cos has " +
                                           std::to_string(cos.shape[0]) + " positions");
  }
  const Tensor bias = call.input(kBias, "attention_bias", {-1, 1, T, total});
  need(bias.shape[0] == B || bias.shape[0] == 1,
       "attention_bias is " + text(bias.shape) + "; 1 or " + std::to_string(B) + " was expected first");
  const bool scaled = types_.cache == CacheType::kInt8;
  for (size_t i : {size_t(kKeyScale), size_t(kValueScale)})
    need(call.has(i) == scaled, std::string(i == kKeyScale ? "past_key_scale" : "past_value_scale") +
                                    (scaled ? " is missing; a cache of int8 needs it"
                                            : " was given; only a cache of int8 has it"));
  Tensor key_scale{}, value_scale{};
  if (scaled) {
    key_scale = call.input(kKeyScale, "past_key_scale", {B, heads_, P});
    value_scale = call.input(kValueScale, "past_value_scale", {B, heads_, P});
  }

  Attention a{};
  a.batch = B, a.heads = heads_, a.head_dim = n, a.rotary_dim = rotary_dim_;
  a.fresh = T, a.total = total, a.room = std::max(P, total), a.cache = types_.cache;
  a.position = position.as<int64_t>(), a.bias_batch = bias.shape[0] == 1 ? 0 : T * total;
  void* attention = call.output(0, {B, T, hidden});
  const std::vector<int64_t> present{B, heads_, a.room, n}, scales{B, heads_, a.room};
  const int64_t element = kSize[int(types_.cache)];
  a.key = grown(call, 1, past_key, present, total - T, element);
  a.value = grown(call, 2, past_value, present, total - T, element);
  if (scaled) {
    a.key_scale = reinterpret_cast<float*>(grown(call, 3, key_scale, scales, total - T, 4));
    a.value_scale = reinterpret_cast<float*>(grown(call, 4, value_scale, scales, total - T, 4));
  }
  if (types_.activations == ort::kFloat) {
    a.qkv = qkv.as<float>(), a.bias = bias.as<float>();
    a.cos = cos.as<float>(), a.sin = sin.as<float>();
    a.out = static_cast<float*>(attention);
    version_->attend(a, call.parallel());
  } else {
    const Widened widened(*version_, qkv, cos, sin, bias, a);
    version_->attend(a, call.parallel());
    version_->narrow(a.out, static_cast<uint16_t*>(attention), B * T * hidden);
  }
}

void RotaryAttention::infer(const Inference& in) {
  const std::vector<Dimension> qkv = in.shape(kQkv, 3), key = in.shape(kPastKey, 4);
  const Dimension hidden{qkv[2].size > 0 && qkv[2].size % 3 == 0 ? qkv[2].size / 3 : -1, ""};
  in.output(0, in.type(kQkv), {qkv[0], qkv[1], hidden});
  for (size_t i : {1, 2}) in.output(i, in.type(kPastKey), {qkv[0], key[1], {}, key[3]});
  if (in.type(kPastKey) == ort::kInt8)
    for (size_t i : {3, 4}) in.output(i, ort::kFloat, {qkv[0], key[1], {}});
}

ort::ElementType RotaryAttention::input_type(Types types, size_t i) {
  if (i == kPastKey || i == kPastValue) return kElement[int(types.cache)];
  if (i == kPosition) return ort::kInt64;
  if (i == kKeyScale || i == kValueScale) return ort::kFloat;
  return i == kSeqlens || i == kTotal ? ort::kInt32 : types.activations;
}

ort::ElementType RotaryAttention::output_type(Types types, size_t i) {
  if (i == 1 || i == 2) return kElement[int(types.cache)];
  return i ? ort::kFloat : types.activations;
}

}  // namespace pythia
