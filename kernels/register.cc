// The library's entry point: the one place where operators are registered.
#include <new>

#include "partial_rotary/op.h"
#include "rotary_attention/op.h"

namespace pythia {
namespace {

const ort::Api* api = nullptr;

ort::Status* refused(const std::exception& e) { return api->CreateStatus(ort::kInvalidArgument, e.what()); }

// One operator for one type of cache, in the form that ONNX Runtime wants.
template <typename Op, CacheType C>
ort::CustomOp described() {
  ort::CustomOp op{};
  op.version = ort::kApiVersion;
  op.GetName = [](const ort::CustomOp*) { return Op::kName; };
  op.GetExecutionProviderType = [](const ort::CustomOp*) -> const char* { return nullptr; };  // the CPU
  op.GetInputTypeCount = [](const ort::CustomOp*) { return Op::kInputs; };
  op.GetOutputTypeCount = [](const ort::CustomOp*) { return Op::kOutputs; };
  op.GetInputType = [](const ort::CustomOp*, size_t i) { return Op::input_type(C, i); };
  op.GetOutputType = [](const ort::CustomOp*, size_t i) { return Op::output_type(C, i); };
  op.GetInputCharacteristic = [](const ort::CustomOp*, size_t i) {
    return i < Op::kRequiredInputs ? ort::kRequired : ort::kOptional;
  };
  op.GetOutputCharacteristic = [](const ort::CustomOp*, size_t i) {
    return i < Op::kRequiredOutputs ? ort::kRequired : ort::kOptional;
  };
  op.GetInputMemoryType = [](const ort::CustomOp*, size_t) { return ort::kDefaultMemory; };
  op.GetVariadicInputMinArity = op.GetVariadicInputHomogeneity = [](const ort::CustomOp*) { return 0; };
  op.GetVariadicOutputMinArity = op.GetVariadicOutputHomogeneity = [](const ort::CustomOp*) { return 0; };
  op.CreateKernelV2 = [](const ort::CustomOp*, const ort::Api* given, const ort::KernelInfo* info,
                         void** kernel) -> ort::Status* {
    try {
      *kernel = new Op(*given, info, C);
      return nullptr;
    } catch (const std::exception& e) {
      return refused(e);
    }
  };
  op.KernelComputeV2 = [](void* kernel, ort::KernelContext* context) -> ort::Status* {
    try {
      static_cast<const Op*>(kernel)->compute(context);
      return nullptr;
    } catch (const std::exception& e) {
      return refused(e);
    }
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Op*>(kernel); };
  op.GetStartVersion = [](const ort::CustomOp*) { return 1; };
  op.GetEndVersion = [](const ort::CustomOp*) { return 1; };
  return op;
}

}  // namespace
}  // namespace pythia

extern "C"
#if defined(_WIN32)
    __declspec(dllexport)
#else
    __attribute__((visibility("default")))
#endif
    ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
  using namespace pythia;
  api = base->GetApi(ort::kApiVersion);
  if (!api) return nullptr;  // ONNX Runtime before 1.17: the functions in the graph do the work
  static const ort::CustomOp ops[] = {
      described<RotaryAttention, CacheType::kFloat32>(),
      described<RotaryAttention, CacheType::kFloat16>(),
      described<RotaryAttention, CacheType::kInt8>(),
      described<PartialRotary, CacheType::kFloat32>(),
  };
  static ort::Domain* domain = nullptr;  // it must outlive every session, so it is never released
  if (!domain) {
    if (ort::Status* status = api->CreateCustomOpDomain("pythia", &domain)) return status;
    for (const ort::CustomOp& op : ops)
      if (ort::Status* status = api->CustomOpDomain_Add(domain, &op)) return status;
  }
  return api->AddCustomOpDomain(options, domain);
}
