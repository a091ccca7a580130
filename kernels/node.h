// A node of ONNX Runtime's graph as the operators see it: its tensors, its attributes, and errors that name the place.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_abi.h"
#include "parallel.h"

namespace pythia {

// Becomes a status of ONNX Runtime's.
struct Failure : std::runtime_error {
  ort::ErrorCode code;
  Failure(ort::ErrorCode code, const std::string& what) : std::runtime_error(what), code(code) {}
};

// What the caller gave is not what was expected.
struct Refusal : Failure {
  explicit Refusal(const std::string& what) : Failure(ort::kInvalidArgument, what) {}
};

std::string text(const std::vector<int64_t>& shape);

struct Tensor {
  std::vector<int64_t> shape;
  ort::ElementType type = ort::kUndefined;
  const void* data = nullptr;

  template <typename T>
  const T* as() const { return static_cast<const T*>(data); }
};

class Node {
 public:
  Node(const ort::Api& api, const ort::KernelInfo* info, const char* op);

  int64_t attribute(const char* name) const;
  int64_t attribute(const char* name, int64_t otherwise) const;
  float number(const char* name) const;
  std::string words(const char* name) const;
  std::vector<int64_t> numbers(const char* name) const;
  size_t inputs() const;
  std::optional<Tensor> constant(size_t input) const;  // where it is known before any run; it stays where it is
  [[noreturn]] void refuse(const std::string& what) const;  // throws Refusal: "<op> <node>: what"
  const ort::Api& api() const { return *api_; }
  void check(ort::Status* status, const char* doing) const;  // throws Failure: with what the status says
  Tensor tensor_of(const ort::Value* value, const char* name) const;

 private:
  bool read(const char* name, int64_t* value) const;

  const ort::Api* api_;
  const ort::KernelInfo* info_;  // only while the kernel is made
  std::string place_;
};

int64_t product(const std::vector<int64_t>& shape);

// One call of a node.
class Call {
 public:
  Call(const Node& node, ort::KernelContext* context) : node_(node), context_(context) {}

  bool has(size_t input) const;
  Tensor input(size_t i, const char* name) const;
  // Of exactly this shape; -1 fits any size.
  Tensor input(size_t i, const char* name, const std::vector<int64_t>& shape) const;
  void* output(size_t i, const std::vector<int64_t>& shape) const;
  Parallel parallel() const;  // ONNX Runtime's own threads
  void* stream() const;       // of the GPU that computes this node; null on a CPU

 private:
  const ort::Value* value(size_t input) const;  // null where it is left out

  const Node& node_;
  ort::KernelContext* context_;
  mutable size_t count_ = 0;  // inputs, once they were counted: a node with layers of caches has hundreds
};

// What is known of a node's tensors before any run: ONNX Runtime asks for the outputs' types and shapes from it.
struct Dimension {
  int64_t size = -1;  // -1: known by its name or not at all
  std::string name;
};

class Inference {
 public:
  Inference(const ort::Api& api, ort::ShapeInferContext* context) : api_(api), context_(context) {}

  size_t inputs() const;
  ort::ElementType type(size_t input) const;
  size_t rank(size_t input) const;
  std::vector<Dimension> shape(size_t input, size_t rank) const;  // of another rank, or none: nothing is known
  void output(size_t i, ort::ElementType type, const std::vector<Dimension>& shape) const;

 private:
  void check(ort::Status* status) const;

  const ort::Api& api_;
  ort::ShapeInferContext* context_;
};

}  // namespace pythia
