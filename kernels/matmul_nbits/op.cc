// pythia::LinearNBits as ONNX Runtime sees it: every input is checked here, and nowhere below.
#include "op.h"

namespace pythia {

LinearNBits::LinearNBits(const ort::Api& api, const ort::KernelInfo* info, Types, const char* called, bool three)
    : node_(api, info, called),
      depth_(node_.attribute("K")),
      columns_(node_.attribute("N")),
      bits_(node_.attribute("bits")),
      block_(node_.attribute("block_size")),
      version_(chosen()) {
  if (!version_ || !version_->product) node_.refuse(kNoVersion);
  if (three ? bits_ != 3 : bits_ != 2 && bits_ != 4 && bits_ != 8)
    node_.refuse("bits is " + std::to_string(bits_) + (three ? "; 3 was expected" : "; 2, 4 or 8 was expected"));
  if (block_ < 16 || block_ > 256 || (block_ & (block_ - 1)))
    node_.refuse("block_size is " + std::to_string(block_) + "; 16, 32, 64, 128 or 256 was expected");
  constexpr int64_t kMost = int64_t(1) << 24;  // far from where sizes of tensors overflow
  if (depth_ < 1 || depth_ > kMost || columns_ < 1 || columns_ > kMost)
    node_.refuse("K is " + std::to_string(depth_) + " and N is " + std::to_string(columns_) + "; 1 to " +
                 std::to_string(kMost) + " was expected");
  if (!three) return;
  const int64_t level = node_.attribute("accuracy_level");
  if (level != 0 && level != 4) node_.refuse("accuracy_level is " + std::to_string(level) + "; 0 or 4 was expected");
  exact_ = level == 0;
  const int64_t whole = (depth_ + block_ - 1) / block_ * block_;
  if (whole % kNarrow)
    node_.refuse("a row has " + std::to_string(whole) + " codes of 3 bits; a multiple of " + std::to_string(kNarrow) + " was expected");
}

void LinearNBits::compute(ort::KernelContext* context) const {
  const Call call(node_, context);
  const Tensor a = call.input(0, "A");
  if (a.shape.empty() || a.shape.back() != depth_ || product(a.shape) == 0)
    node_.refuse("A is " + text(a.shape) + "; [..., " + std::to_string(depth_) + "] with at least one row was expected");
  Product p{};
  p.rows = product(a.shape) / depth_, p.depth = depth_, p.columns = columns_, p.bits = bits_, p.block = block_, p.exact = exact_;
  const Tensor b = bits_ == 3 ? call.input(1, "B", {columns_, p.numbers() / (8 * p.plane()), 3, p.plane()})
                              : call.input(1, "B", {columns_, p.blocks(), p.row_bytes() / p.blocks()});
  // Flat or in rows: ONNX Runtime takes both.
  const auto either = [&](size_t i, const char* name, int64_t width) {
    const Tensor t = call.input(i, name);
    return t.shape.size() == 1 ? call.input(i, name, {columns_ * width}) : call.input(i, name, {columns_, width});
  };
  p.x = a.as<float>(), p.codes = b.as<uint8_t>(), p.scale = either(2, "scales", p.blocks()).as<float>();
  if (call.has(3)) p.zero = either(3, "zero_points", p.zero_bytes()).as<uint8_t>();
  if (call.has(4)) node_.refuse("g_idx is given; weights in the order of their columns were expected");
  if (call.has(5)) p.bias = call.input(5, "bias", {columns_}).as<float>();
  std::vector<int64_t> shape = a.shape;
  shape.back() = columns_;
  p.y = static_cast<float*>(call.output(0, shape));
  pythia::product(*version_->product, p, call.parallel());
}

void LinearNBits::infer(const Inference& in) {
  for (size_t rank : {1, 2, 3}) {
    std::vector<Dimension> shape = in.shape(0, rank);
    bool known = false;
    for (const Dimension& d : shape) known |= d.size >= 0 || !d.name.empty();
    if (!known) continue;
    shape.back() = in.shape(1, in.rank(1))[0];  // of B the first is N
    return in.output(0, ort::kFloat, shape);
  }
}

}  // namespace pythia
