// What node.cc leaves to check is checked here, and nothing below.
#include "op.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace pythia {
namespace {

constexpr ort::ElementType kElement[] = {ort::kFloat, ort::kFloat16, ort::kInt8};
constexpr int64_t kSize[] = {4, 2, 1};

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

char* grow_cache(const Call& call, size_t output, const Tensor& past, const std::vector<int64_t>& shape, int64_t filled,
                 int64_t element) {
  char* to = static_cast<char*>(call.output(output, shape));
  const char* from = past.as<char>();
  if (to == from || !filled) return to;
  const int64_t row = (shape.size() == 4 ? shape[3] : 1) * element, heads = shape[0] * shape[1];
  for (int64_t h = 0; h < heads; ++h)
    std::memmove(to + h * shape[2] * row, from + h * past.shape[2] * row, size_t(filled * row));
  return to;
}

RotaryAttention::RotaryAttention(const ort::Api& api, const ort::KernelInfo* info, Types types)
    : AttentionNode(api, info), types_(types), version_(chosen()) {
  if (!version_) node().refuse(kNoVersion);
}

void RotaryAttention::compute(ort::KernelContext* context) const {
  const Call call(node(), context);
  const bool scaled = types_.cache == CacheType::kInt8;
  const AttentionCall c = checked(call, scaled);
  const int64_t B = c.batch, T = c.fresh, filled = c.total - T, hidden = heads() * c.head_dim;
  check_positions(node(), c.position, c.cos.shape[0]);

  Attention a{};
  a.batch = B, a.heads = heads(), a.head_dim = c.head_dim, a.rotary_dim = rotary_dim();
  a.fresh = T, a.total = c.total, a.room = c.room(), a.cache = types_.cache;
  a.position = c.position.as<int64_t>(), a.bias_batch = c.bias_batch();
  void* attention = call.output(0, {B, T, hidden});
  const std::vector<int64_t> present{B, a.heads, a.room, a.head_dim}, scales{B, a.heads, a.room};
  const int64_t element = kSize[int(types_.cache)];
  a.key = grow_cache(call, 1, c.past_key, present, filled, element);
  a.value = grow_cache(call, 2, c.past_value, present, filled, element);
  if (scaled) {
    a.key_scale = reinterpret_cast<float*>(grow_cache(call, 3, c.past_key_scale, scales, filled, 4));
    a.value_scale = reinterpret_cast<float*>(grow_cache(call, 4, c.past_value_scale, scales, filled, 4));
  }
  if (types_.activations == ort::kFloat) {
    a.qkv = c.qkv.as<float>(), a.bias = c.bias.as<float>();
    a.cos = c.cos.as<float>(), a.sin = c.sin.as<float>();
    a.out = static_cast<float*>(attention);
    version_->attend(a, call.parallel());
  } else {
    const Widened widened(*version_, c.qkv, c.cos, c.sin, c.bias, a);
    version_->attend(a, call.parallel());
    version_->narrow(a.out, static_cast<uint16_t*>(attention), B * T * hidden);
  }
}

ort::ElementType RotaryAttention::input_type(Types types, size_t i) {
  return AttentionNode::input_type(types.activations, kElement[int(types.cache)], i);
}

ort::ElementType RotaryAttention::output_type(Types types, size_t i) {
  return AttentionNode::output_type(types.activations, kElement[int(types.cache)], i);
}

}  // namespace pythia
