// pythia::LinearNBits on a CPU, as ONNX Runtime sees it.
#pragma once

#include "../node.h"
#include "../versions.h"

namespace pythia {

class LinearNBits {
 public:
  using Types = ort::ElementType;
  static constexpr Types kTypes[] = {ort::kFloat};
  static constexpr const char* kName = "LinearNBits";
  static constexpr bool kVariadic = false;
  static constexpr size_t kInputs = 6, kRequiredInputs = 3, kOutputs = 1, kRequiredOutputs = 1;
  static constexpr const char* kProvider = nullptr;  // the CPU
  static ort::MemoryType input_memory(size_t) { return ort::kDefaultMemory; }
  static ort::ElementType input_type(Types, size_t i) {
    return i == 1 || i == 3 ? ort::kUint8 : i == 4 ? ort::kInt32 : ort::kFloat;
  }
  static ort::ElementType output_type(Types, size_t) { return ort::kFloat; }
  static void infer(const Inference& inference);

  LinearNBits(const ort::Api& api, const ort::KernelInfo* info, Types, const char* called = "pythia::LinearNBits",
              bool three = false);
  void compute(ort::KernelContext* context) const;

 private:
  Node node_;
  int64_t depth_, columns_, bits_, block_;
  bool exact_ = false;
  const Version* version_;
};

// The same operator by the name that older artifacts call. Tools that rename functions rename every call of a
// name, and inside its function this one was the name of ONNX Runtime's operator too.
class MatMulNBits : public LinearNBits {
 public:
  static constexpr const char* kName = "MatMulNBits";
  MatMulNBits(const ort::Api& api, const ort::KernelInfo* info, Types types)
      : LinearNBits(api, info, types, "pythia::MatMulNBits") {}
};

// Codes of 3 bits as narrow.h says, at accuracy level 0 too. Its function unpacks them, so it has a name of its own.
class Linear3Bits : public LinearNBits {
 public:
  static constexpr const char* kName = "Linear3Bits";
  Linear3Bits(const ort::Api& api, const ort::KernelInfo* info, Types types)
      : LinearNBits(api, info, types, "pythia::Linear3Bits", true) {}
};

}  // namespace pythia
