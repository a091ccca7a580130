// pythia::DecoderLayers as ONNX Runtime sees it: every input is checked here, and nowhere below. Weights are constants
// of the graph, and are checked once, when the session opens.
#include "op.h"

#include <algorithm>

#include "../rotary_attention/op.h"

namespace pythia {
namespace {

constexpr const char* kLinearNames[] = {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"};
constexpr const char* kPartNames[] = {"key", "value", "key_scale", "value_scale"};

std::string named(ort::ElementType type) {
  switch (type) {
    case ort::kFloat: return "float32";
    case ort::kFloat16: return "float16";
    case ort::kInt8: return "int8";
    case ort::kUint8: return "uint8";
    case ort::kInt64: return "int64";
    default: return "type " + std::to_string(type);
  }
}

}  // namespace

DecoderLayers::DecoderLayers(const ort::Api& api, const ort::KernelInfo* info, Types, const char* called, size_t endings)
    : node_(api, info, called),
      heads_(node_.attribute("num_heads")),
      rotary_dim_(node_.attribute("rotary_dim")),
      endings_(endings),
      version_(chosen()) {
  if (!version_ || !version_->product) node_.refuse(kNoVersion);
  if (heads_ < 1) node_.refuse("num_heads is " + std::to_string(heads_) + "; 1 or more was expected");
  if (rotary_dim_ < 0 || rotary_dim_ % 2)
    node_.refuse("rotary_dim is " + std::to_string(rotary_dim_) + "; an even number was expected");
  const int64_t level = node_.attribute("accuracy_level");
  if (level != 0 && level != 4)
    node_.refuse("accuracy_level is " + std::to_string(level) + "; 0 or 4 was expected");
  layers_.exact = level == 0;
  layers_.epsilon = node_.number("epsilon");
  layers_.parallel_residual = node_.attribute("parallel_residual") != 0;
  const std::string activation = node_.words("activation");
  size_t which = 0;
  while (which < sizeof kActivations / sizeof *kActivations && activation != kActivations[which]) ++which;
  if (which == sizeof kActivations / sizeof *kActivations) node_.refuse("activation is " + activation + "; gelu, for example, was expected");
  layers_.activation = Activation(which);

  const std::vector<int64_t> bits = node_.numbers("bits"), zeros = node_.numbers("zero_points"), biases = node_.numbers("biases");
  if (bits.empty() || bits.size() % kLinears || zeros.size() != bits.size() || biases.size() != bits.size())
    node_.refuse("bits, zero_points and biases have " + std::to_string(bits.size()) + ", " + std::to_string(zeros.size()) +
                 " and " + std::to_string(biases.size()) + " numbers; 4 for each layer were expected");
  count_ = bits.size() / kLinears, tensors_ = 4 * count_;
  for (size_t i = 0; i < bits.size(); ++i) {
    if (bits[i] != 2 && bits[i] != 3 && bits[i] != 4 && bits[i] != 8)
      node_.refuse("bits is " + std::to_string(bits[i]) + " for " + kLinearNames[i % kLinears] + " of layer " +
                   std::to_string(i / kLinears) + "; 2, 3, 4 or 8 was expected");
    forms_.push_back({bits[i], zeros[i] != 0, biases[i] != 0});
    tensors_ += 2 + size_t(zeros[i] != 0) + size_t(biases[i] != 0);
  }
  const size_t inputs = node_.inputs(), others = kFirst + tensors_ + endings_, caches = inputs - std::min(inputs, others);
  if (caches != 2 * count_ && caches != 4 * count_)
    node_.refuse("it has " + std::to_string(inputs) + " inputs; " + std::to_string(others) +
                 " and 2 or 4 caches for each of " + std::to_string(count_) + " layers were expected");
  parts_ = caches / count_;
  for (size_t i = 0; i < caches; ++i)
    cache_names_.push_back("past_key_values." + std::to_string(i / parts_) + "." + kPartNames[i % parts_]);

  std::vector<Tensor> found;
  for (size_t i = kFirst + caches; i < inputs - endings_; ++i) {
    std::optional<Tensor> tensor = node_.constant(i);
    if (!tensor) return;
    found.push_back(std::move(*tensor));
  }
  constant_ = weights(found, layers_);
}

std::vector<LayerWeights> DecoderLayers::weights(const std::vector<Tensor>& tensors, Layers& layers) const {
  std::vector<LayerWeights> all(count_);
  size_t next = 0, layer = 0;
  const auto take = [&](const std::string& name, ort::ElementType type, const std::vector<int64_t>& shape) -> const Tensor& {
    const Tensor& t = tensors[next++];
    bool fits = t.shape.size() == shape.size();
    for (size_t d = 0; fits && d < shape.size(); ++d) fits = shape[d] < 0 ? t.shape[d] > 0 : shape[d] == t.shape[d];
    const std::string what = name + " of layer " + std::to_string(layer);
    if (t.type != type)
      node_.refuse(what + " is of " + named(t.type) + "; " + named(type) + " was expected");
    if (!fits) node_.refuse(what + " is " + text(t.shape) + "; " + text(shape) + " was expected");
    return t;
  };
  layers.hidden = layers.inner = -1;
  for (; layer < count_; ++layer) {
    LayerWeights& w = all[layer];
    for (int i = 0; i < 2; ++i) {
      const std::string name = i ? "post_attention_layernorm" : "input_layernorm";
      const Tensor& scale = take(name + ".weight", ort::kFloat, {layers.hidden});
      layers.hidden = scale.shape[0];
      w.scale[i] = scale.as<float>(), w.shift[i] = take(name + ".bias", ort::kFloat, {layers.hidden}).as<float>();
    }
    if (layers.hidden % heads_) node_.refuse("the width is " + std::to_string(layers.hidden) + "; a multiple of num_heads " + std::to_string(heads_) + " was expected");
    for (int i = 0; i < kLinears; ++i) {
      const Form& form = forms_[layer * kLinears + size_t(i)];
      const std::string name = kLinearNames[i];
      Product& p = w.linear[i];
      p = {};
      p.bits = form.bits, p.exact = layers.exact;
      p.columns = i == kQkv ? 3 * layers.hidden : i == kUp ? layers.inner : layers.hidden;
      const bool three = p.bits == 3;
      const Tensor& codes = take(name + ".qweight", ort::kUint8, three ? std::vector<int64_t>{p.columns, -1, 3, -1} : std::vector<int64_t>{p.columns, -1, -1});
      if (i == kUp) layers.inner = p.columns = codes.shape[0];
      p.depth = i == kDown ? layers.inner : layers.hidden;
      if (three) {  // scales, which come next, say how many blocks a column has
        const std::vector<int64_t>& scales = tensors[next].shape;
        const int64_t numbers = codes.shape[1] * codes.shape[3] * 8;
        p.block = scales.size() == 2 && scales[1] > 0 && numbers % scales[1] == 0 ? numbers / scales[1] : 0;
        if (p.block < 1 || p.numbers() != numbers || numbers % kNarrow || codes.shape[3] != p.plane()) p.block = 0;
      } else {
        p.block = codes.shape[2] * 8 / p.bits;
      }
      if (p.block < 16 || p.block > 256 || (p.block & (p.block - 1)) || (!three && codes.shape[1] != p.blocks()))
        node_.refuse(name + ".qweight of layer " + std::to_string(layer) + " is " + text(codes.shape) +
                     "; blocks of 16, 32, 64, 128 or 256 codes of " + std::to_string(p.bits) + " bits for " +
                     std::to_string(p.depth) + " inputs were expected");
      p.codes = codes.as<uint8_t>();
      p.scale = take(name + ".scales", ort::kFloat, {p.columns, p.blocks()}).as<float>();
      if (form.zeros) p.zero = take(name + ".zero_points", ort::kUint8, {p.columns, p.zero_bytes()}).as<uint8_t>();
      if (three && p.zero && std::all_of(p.zero, p.zero + p.columns * p.zero_bytes(), [](uint8_t b) { return b == 0x44; }))
        p.zero = nullptr;  // the middle: what a symmetric grid tells ONNX Runtime
      if (form.bias) p.bias = take(name + ".bias", ort::kFloat, {p.columns}).as<float>();
    }
  }
  return all;
}

void DecoderLayers::compute(ort::KernelContext* context) const {
  const Call call(node_, context);
  Layers layers = layers_;
  std::vector<LayerWeights> given;
  if (constant_.empty()) {
    std::vector<Tensor> found;
    for (size_t i = 0; i < tensors_; ++i) found.push_back(call.input(kFirst + parts_ * count_ + i, "a weight"));
    given = weights(found, layers);
  }
  const Tensor x = call.input(kX, "x", {-1, -1, layers.hidden});
  const int64_t B = x.shape[0], T = x.shape[1], n = layers.hidden / heads_;
  if (B < 1 || T < 1) node_.refuse("x is " + text(x.shape) + "; at least one row and one token were expected");
  if (rotary_dim_ > n)
    node_.refuse("rotary_dim is " + std::to_string(rotary_dim_) + " and head_dim is " + std::to_string(n));
  const int64_t total = check_total(node_, call, kTotal, T);
  const SharedInputs shared =
      check_shared(node_, call, {kCos, kSin, kPosition, kSeqlens, kBias}, B, T, total, rotary_dim_);
  check_positions(node_, shared.position, shared.cos.shape[0]);

  Attention a{};
  a.batch = B, a.heads = heads_, a.head_dim = n, a.rotary_dim = rotary_dim_, a.fresh = T, a.total = total;
  a.cos = shared.cos.as<float>(), a.sin = shared.sin.as<float>(), a.position = shared.position.as<int64_t>();
  a.bias = shared.bias.as<float>(), a.bias_batch = shared.bias.shape[0] == 1 ? 0 : T * a.total;
  const std::vector<LayerCache> caches = grow_caches(call, a);
  Ending ending{};
  if (endings_) ending = ending_of(call, layers.hidden, T);
  float* y = static_cast<float*>(call.output(0, {B, endings_ ? ending.kept : T, layers.hidden}));
  run_layers(layers, constant_.empty() ? given : constant_, caches, a, x.as<float>(), y, endings_ ? &ending : nullptr,
             *version_, call.parallel());
}

Ending DecoderLayers::ending_of(const Call& call, int64_t hidden, int64_t fresh) const {
  const auto of_type = [&](size_t i, const char* name, ort::ElementType type, const std::vector<int64_t>& shape) {
    const Tensor t = call.input(kFirst + parts_ * count_ + tensors_ + i, name, shape);
    if (t.type != type) node_.refuse(std::string(name) + " is of " + named(t.type) + "; " + named(type) + " was expected");
    return t;
  };
  const int64_t keep = *of_type(Decoder::kKeep, "num_logits_to_keep", ort::kInt64, {}).as<int64_t>();
  const int64_t told = *of_type(Decoder::kNew, "the number of new tokens", ort::kInt64, {1}).as<int64_t>();
  if (keep < 0) node_.refuse("num_logits_to_keep is " + std::to_string(keep) + "; 0 or more was expected");
  if (told != fresh)
    node_.refuse("the number of new tokens is " + std::to_string(told) + " and x has " + std::to_string(fresh) +
                 "; the same number was expected");
  return {of_type(Decoder::kScale, "final_layer_norm.weight", ort::kFloat, {hidden}).as<float>(),
          of_type(Decoder::kShift, "final_layer_norm.bias", ort::kFloat, {hidden}).as<float>(),
          keep == 0 ? fresh : std::min(keep, fresh)};
}

std::vector<LayerCache> DecoderLayers::grow_caches(const Call& call, Attention& a) const {
  std::vector<LayerCache> caches(count_);
  int64_t held = -1;  // places, in every layer
  ort::ElementType type = ort::kUndefined;
  for (size_t i = 0; i < count_ * parts_; ++i) {
    const size_t part = i % parts_;
    const char* name = cache_names_[i].c_str();
    const Tensor past = part < 2 ? call.input(kFirst + i, name, {a.batch, heads_, held, a.head_dim})
                                 : call.input(kFirst + i, name, {a.batch, heads_, held});
    if (i == 0) {
      held = past.shape[2], type = past.type;
      a.room = std::max(held, a.total);
      if (type != ort::kFloat && type != ort::kFloat16 && type != ort::kInt8)
        node_.refuse(cache_names_[i] + " is of " + named(type) + "; float32, float16 or int8 was expected");
      if ((type == ort::kInt8) != (parts_ == 4))
        node_.refuse(cache_names_[i] + " is of " + named(type) + "; caches of int8 have scales, and no others");
      check_room(node_, cache_names_[i], held, a.total, a.fresh);
    }
    const ort::ElementType wanted = part < 2 ? type : ort::kFloat;
    if (past.type != wanted) node_.refuse(cache_names_[i] + " is of " + named(past.type) + "; " + named(wanted) + " was expected");
    std::vector<int64_t> present = past.shape;
    present[2] = a.room;
    const int64_t element = wanted == ort::kFloat ? 4 : wanted == ort::kFloat16 ? 2 : 1;
    void* to = grow_cache(call, 1 + i, past, present, a.total - a.fresh, element);
    LayerCache& cache = caches[i / parts_];
    if (part == 0) cache.key = to;
    if (part == 1) cache.value = to;
    if (part == 2) cache.key_scale = static_cast<float*>(to);
    if (part == 3) cache.value_scale = static_cast<float*>(to);
  }
  a.cache = type == ort::kFloat ? CacheType::kFloat32 : type == ort::kFloat16 ? CacheType::kFloat16 : CacheType::kInt8;
  return caches;
}

void DecoderLayers::infer(const Inference& in) {
  in.output(0, ort::kFloat, in.shape(kX, 3));
  infer_caches(in);
}

void Decoder::infer(const Inference& in) {
  std::vector<Dimension> kept = in.shape(kX, 3);
  kept[1] = {};
  in.output(0, ort::kFloat, kept);
  infer_caches(in);
}

void DecoderLayers::infer_caches(const Inference& in) {
  for (size_t i = kFirst; i < in.inputs(); ++i) {  // caches come before weights, the first of which is a vector
    const size_t rank = in.rank(i);
    if (rank < 3) break;
    std::vector<Dimension> grown = in.shape(i, rank);
    grown[2] = {};
    in.output(1 + i - kFirst, in.type(i), grown);
  }
}

ort::ElementType DecoderLayers::input_type(Types, size_t i) {
  if (i == kPosition) return ort::kInt64;
  if (i == kSeqlens || i == kTotal) return ort::kInt32;
  return i == kFirst ? ort::kUndefined : ort::kFloat;
}

}  // namespace pythia
