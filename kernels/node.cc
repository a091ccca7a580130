#include "node.h"

#include <algorithm>
#include <atomic>
#include <new>

namespace pythia {

std::string text(const std::vector<int64_t>& shape) {
  std::string s = "[";
  for (size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + (shape[i] < 0 ? "?" : std::to_string(shape[i]));
  return s + "]";
}

int64_t product(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

namespace {
void check(const ort::Api& api, ort::Status* status, const std::string& place, const char* doing) {
  if (!status) return;
  const Failure failure(api.GetErrorCode(status),
                        place + ": ONNX Runtime failed at " + doing + ": " + api.GetErrorMessage(status));
  api.ReleaseStatus(status);
  throw failure;
}

// Tasks of other threads, whose exceptions nobody would catch.
struct Tasks {
  void (*fn)(void*, size_t);
  void* data;
  std::atomic<bool> failed{false};

  static void run(void* self, size_t i) noexcept {
    Tasks& tasks = *static_cast<Tasks*>(self);
    if (tasks.failed) return;
    try {
      tasks.fn(tasks.data, i);
    } catch (...) {  // they do no more than work in memory that they ask for
      tasks.failed = true;
    }
  }
};
}  // namespace

Node::Node(const ort::Api& api, const ort::KernelInfo* info, const char* op) : api_(&api), info_(info), place_(op) {
  size_t size = 0;
  if (ort::Status* status = api.KernelInfo_GetNodeName(info, nullptr, &size)) api.ReleaseStatus(status);
  std::string name(size, '\0');
  if (size && !api.KernelInfo_GetNodeName(info, name.data(), &size)) place_ += " " + std::string(name.c_str());
}

bool Node::read(const char* name, int64_t* value) const {
  ort::Status* status = api_->KernelInfoGetAttribute_int64(info_, name, value);
  if (status) api_->ReleaseStatus(status);
  return !status;
}

int64_t Node::attribute(const char* name) const {
  int64_t value = 0;
  if (!read(name, &value)) refuse("the attribute " + std::string(name) + " is missing; an integer was expected");
  return value;
}

int64_t Node::attribute(const char* name, int64_t otherwise) const {
  int64_t value = otherwise;
  return read(name, &value) ? value : otherwise;
}

float Node::number(const char* name) const {
  float value = 0;
  if (ort::Status* status = api_->KernelInfoGetAttribute_float(info_, name, &value)) {
    api_->ReleaseStatus(status);
    refuse("the attribute " + std::string(name) + " is missing; a number was expected");
  }
  return value;
}

std::string Node::words(const char* name) const {
  size_t size = 0;
  if (ort::Status* status = api_->KernelInfoGetAttribute_string(info_, name, nullptr, &size)) {
    api_->ReleaseStatus(status);
    refuse("the attribute " + std::string(name) + " is missing; words were expected");
  }
  std::string value(size, '\0');
  check(api_->KernelInfoGetAttribute_string(info_, name, value.data(), &size), name);
  return value.c_str();
}

std::vector<int64_t> Node::numbers(const char* name) const {
  size_t count = 0;
  if (ort::Status* status = api_->KernelInfoGetAttributeArray_int64(info_, name, nullptr, &count)) {
    api_->ReleaseStatus(status);
    refuse("the attribute " + std::string(name) + " is missing; integers were expected");
  }
  std::vector<int64_t> values(count);
  if (count) check(api_->KernelInfoGetAttributeArray_int64(info_, name, values.data(), &count), name);
  return values;
}

size_t Node::inputs() const {
  size_t count = 0;
  check(api_->KernelInfo_GetInputCount(info_, &count), "counting inputs");
  return count;
}

std::optional<Tensor> Node::constant(size_t input) const {
  int is_constant = 0;
  const ort::Value* value = nullptr;
  check(api_->KernelInfoGetConstantInput_tensor(info_, input, &is_constant, &value), "reading a constant");
  if (!is_constant || !value) return std::nullopt;
  return tensor_of(value, "a constant");
}

Tensor Node::tensor_of(const ort::Value* value, const char* name) const {
  ort::Shape* shape = nullptr;
  check(api_->GetTensorTypeAndShape(value, &shape), name);
  Tensor tensor;
  size_t rank = 0;
  ort::Status* failed = api_->GetTensorElementType(shape, &tensor.type);
  if (!failed) failed = api_->GetDimensionsCount(shape, &rank);
  tensor.shape.resize(rank);
  if (!failed) failed = api_->GetDimensions(shape, tensor.shape.data(), rank);
  api_->ReleaseTensorTypeAndShapeInfo(shape);
  check(failed, name);
  void* data = nullptr;
  check(api_->GetTensorMutableData(const_cast<ort::Value*>(value), &data), name);
  tensor.data = data;
  return tensor;
}

void Node::refuse(const std::string& what) const { throw Refusal(place_ + ": " + what); }

void Node::check(ort::Status* status, const char* doing) const { pythia::check(*api_, status, place_, doing); }

const ort::Value* Call::value(size_t i) const {
  if (!count_) node_.check(node_.api().KernelContext_GetInputCount(context_, &count_), "counting inputs");
  if (i >= count_) return nullptr;
  const ort::Value* value = nullptr;
  node_.check(node_.api().KernelContext_GetInput(context_, i, &value), "reading an input");
  return value;
}

bool Call::has(size_t i) const { return value(i) != nullptr; }

Tensor Call::input(size_t i, const char* name) const {
  const ort::Value* of = value(i);
  if (!of) node_.refuse("the input " + std::string(name) + " is missing");
  return node_.tensor_of(of, name);
}

Tensor Call::input(size_t i, const char* name, const std::vector<int64_t>& shape) const {
  Tensor tensor = input(i, name);
  bool fits = tensor.shape.size() == shape.size();
  for (size_t d = 0; fits && d < shape.size(); ++d) fits = shape[d] < 0 || shape[d] == tensor.shape[d];
  if (!fits) node_.refuse(std::string(name) + " is " + text(tensor.shape) + "; " + text(shape) + " was expected");
  return tensor;
}

void* Call::output(size_t i, const std::vector<int64_t>& shape) const {
  ort::Value* value = nullptr;
  node_.check(node_.api().KernelContext_GetOutput(context_, i, shape.data(), shape.size(), &value), "making an output");
  void* data = nullptr;
  if (!value) node_.refuse("the output " + std::to_string(i) + " is missing");
  node_.check(node_.api().GetTensorMutableData(value, &data), "making an output");
  return data;
}

void* Call::stream() const {
  void* stream = nullptr;
  node_.check(node_.api().KernelContext_GetGPUComputeStream(context_, &stream), "asking for the GPU's stream");
  return stream;
}

Parallel Call::parallel() const {
  const auto run = [](void* context, size_t n, void (*fn)(void*, size_t), void* data) {
    const Call& call = *static_cast<const Call*>(context);
    if (n == 1) return fn(data, 0);
    // More batches than threads, taken as threads come free: tasks differ in length, and threads have other work.
    const size_t batches = std::min(n, size_t(8 * hardware_threads()));
    Tasks tasks{fn, data};
    call.node_.check(call.node_.api().KernelContext_ParallelFor(call.context_, Tasks::run, n, batches, &tasks),
                     "sharing work out");
    if (tasks.failed) throw std::bad_alloc();
  };
  return {run, const_cast<Call*>(this)};
}

void Inference::check(ort::Status* status) const { pythia::check(api_, status, "pythia", "inferring shapes"); }

size_t Inference::inputs() const {
  size_t count = 0;
  check(api_.ShapeInferContext_GetInputCount(context_, &count));
  return count;
}

size_t Inference::rank(size_t i) const {
  ort::Shape* given = nullptr;
  size_t known = 0;
  check(api_.ShapeInferContext_GetInputTypeShape(context_, i, &given));
  check(api_.GetDimensionsCount(given, &known));
  return known;
}

ort::ElementType Inference::type(size_t i) const {
  ort::Shape* given = nullptr;  // the context's own
  ort::ElementType type;
  check(api_.ShapeInferContext_GetInputTypeShape(context_, i, &given));
  check(api_.GetTensorElementType(given, &type));
  return type;
}

std::vector<Dimension> Inference::shape(size_t i, size_t rank) const {
  ort::Shape* given = nullptr;
  size_t known = 0;
  check(api_.ShapeInferContext_GetInputTypeShape(context_, i, &given));
  check(api_.GetDimensionsCount(given, &known));
  std::vector<Dimension> shape(rank);
  if (known != rank) return shape;
  std::vector<int64_t> sizes(rank);
  std::vector<const char*> names(rank, "");
  check(api_.GetDimensions(given, sizes.data(), rank));
  check(api_.GetSymbolicDimensions(given, names.data(), rank));
  for (size_t d = 0; d < rank; ++d) shape[d] = {sizes[d], sizes[d] < 0 && names[d] ? names[d] : ""};
  return shape;
}

void Inference::output(size_t i, ort::ElementType type, const std::vector<Dimension>& shape) const {
  // A size that nobody knows needs a name of its own: without one ONNX Runtime takes -1 for the size itself, and with a
  // shared one it takes two sizes for equal.
  static std::atomic<uint64_t> nameless{0};
  std::vector<int64_t> sizes;
  std::vector<std::string> kept;
  for (const Dimension& d : shape) {
    sizes.push_back(d.size);
    kept.push_back(d.size < 0 && d.name.empty() ? "pythia_unknown_" + std::to_string(++nameless) : d.name);
  }
  std::vector<const char*> names;
  for (const std::string& name : kept) names.push_back(name.c_str());
  ort::Shape* made = nullptr;
  check(api_.CreateTensorTypeAndShapeInfo(&made));
  ort::Status* failed = api_.SetTensorElementType(made, type);
  if (!failed) failed = api_.SetDimensions(made, sizes.data(), sizes.size());
  if (!failed) failed = api_.SetSymbolicDimensions(made, names.data(), names.size());
  if (!failed) failed = api_.ShapeInferContext_SetOutputTypeShape(context_, i, made);
  api_.ReleaseTensorTypeAndShapeInfo(made);
  check(failed);
}

}  // namespace pythia
