#include "node.h"

namespace pythia {

std::string text(const std::vector<int64_t>& shape) {
  std::string s = "[";
  for (size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + (shape[i] < 0 ? "?" : std::to_string(shape[i]));
  return s + "]";
}

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

void Node::refuse(const std::string& what) const { throw Refusal(place_ + ": " + what); }

void Node::check(ort::Status* status, const char* doing) const {
  if (!status) return;
  api_->ReleaseStatus(status);
  refuse(std::string("ONNX Runtime failed at ") + doing);
}

bool Call::has(size_t i) const {
  size_t count = 0;
  node_.check(node_.api().KernelContext_GetInputCount(context_, &count), "counting inputs");
  if (i >= count) return false;
  const ort::Value* value = nullptr;
  node_.check(node_.api().KernelContext_GetInput(context_, i, &value), "reading an input");
  return value != nullptr;
}

Tensor Call::input(size_t i, const char* name) const {
  const ort::Api& api = node_.api();
  if (!has(i)) node_.refuse("the input " + std::string(name) + " is missing");
  const ort::Value* value = nullptr;
  node_.check(api.KernelContext_GetInput(context_, i, &value), name);
  ort::Shape* shape = nullptr;
  node_.check(api.GetTensorTypeAndShape(value, &shape), name);
  Tensor tensor;
  size_t rank = 0;
  ort::Status* failed = api.GetTensorElementType(shape, &tensor.type);
  if (!failed) failed = api.GetDimensionsCount(shape, &rank);
  tensor.shape.resize(rank);
  if (!failed) failed = api.GetDimensions(shape, tensor.shape.data(), rank);
  api.ReleaseTensorTypeAndShapeInfo(shape);
  node_.check(failed, name);
  void* data = nullptr;
  node_.check(api.GetTensorMutableData(const_cast<ort::Value*>(value), &data), name);
  tensor.data = data;
  return tensor;
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

void Call::parallel(size_t n, void (*fn)(void*, size_t), void* data) const {
  if (n == 1) return fn(data, 0);
  node_.check(node_.api().KernelContext_ParallelFor(context_, fn, n, 0, data), "sharing work out");
}

}  // namespace pythia
