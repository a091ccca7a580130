// The library's entry point: the one place where operators are registered.
#include <exception>
#include <mutex>
#include <new>
#include <utility>

#include "decoder_layers/op.h"
#include "decoder_mask/op.h"
#include "matmul_nbits/op.h"
#include "partial_rotary/op.h"
#include "rotary_attention/op.h"
#ifdef PYTHIA_CUDA
#include "partial_rotary/cuda/op.h"
#include "rotary_attention/cuda/op.h"
#endif

namespace pythia {
namespace {

const ort::Api* api = nullptr;

// No exception leaves the library: ONNX Runtime may be built without them.
template <typename F>
ort::Status* guarded(F&& f) {
  try {
    f();
    return nullptr;
  } catch (const Failure& e) {
    return api->CreateStatus(e.code, e.what());
  } catch (const std::bad_alloc&) {
    return api->CreateStatus(ort::kFail, "pythia: memory could not be allocated");
  } catch (const std::exception& e) {
    return api->CreateStatus(ort::kFail, e.what());
  }
}

// Of input or output i of `count`. Where the last of them is any number, and not all must be of one type, the operator says so.
template <typename Op>
ort::Characteristic characteristic(size_t i, size_t required, size_t count) {
  if (Op::kVariadic && i + 1 == count) return ort::kVariadic;
  return i < required ? ort::kRequired : ort::kOptional;
}

// One operator for one set of types, in the form that ONNX Runtime wants. kTypes is the place of the set in Op's table.
template <typename Op, size_t kTypes>
ort::CustomOp described() {
  ort::CustomOp op{};
  op.version = ort::kApiVersion;
  op.GetName = [](const ort::CustomOp*) { return Op::kName; };
  op.GetExecutionProviderType = [](const ort::CustomOp*) { return Op::kProvider; };
  op.GetInputTypeCount = [](const ort::CustomOp*) { return Op::kInputs; };
  op.GetOutputTypeCount = [](const ort::CustomOp*) { return Op::kOutputs; };
  op.GetInputType = [](const ort::CustomOp*, size_t i) { return Op::input_type(Op::kTypes[kTypes], i); };
  op.GetOutputType = [](const ort::CustomOp*, size_t i) { return Op::output_type(Op::kTypes[kTypes], i); };
  op.GetInputCharacteristic = [](const ort::CustomOp*, size_t i) {
    return characteristic<Op>(i, Op::kRequiredInputs, Op::kInputs);
  };
  op.GetOutputCharacteristic = [](const ort::CustomOp*, size_t i) {
    return characteristic<Op>(i, Op::kRequiredOutputs, Op::kOutputs);
  };
  op.GetInputMemoryType = [](const ort::CustomOp*, size_t i) { return Op::input_memory(i); };
  op.GetVariadicInputMinArity = op.GetVariadicOutputMinArity = [](const ort::CustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = op.GetVariadicOutputHomogeneity = [](const ort::CustomOp*) { return 0; };
  op.CreateKernelV2 = [](const ort::CustomOp*, const ort::Api* given, const ort::KernelInfo* info,
                         void** kernel) -> ort::Status* {
    return guarded([&] { *kernel = new Op(*given, info, Op::kTypes[kTypes]); });
  };
  op.KernelComputeV2 = [](void* kernel, ort::KernelContext* context) -> ort::Status* {
    ort::Status* status = guarded([&] { static_cast<const Op*>(kernel)->compute(context); });
    give_back();
    return status;
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Op*>(kernel); };
  op.InferOutputShapeFn = [](const ort::CustomOp*, ort::ShapeInferContext* context) -> ort::Status* {
    return guarded([&] { Op::infer(Inference(*api, context)); });
  };
  op.GetStartVersion = [](const ort::CustomOp*) { return 1; };
  op.GetEndVersion = [](const ort::CustomOp*) { return 1; };
  return op;
}

template <typename Op, size_t... kTypes>
ort::Status* add(ort::Domain* domain, std::index_sequence<kTypes...>) {
  static const ort::CustomOp ops[] = {described<Op, kTypes>()...};
  for (const ort::CustomOp& op : ops)
    if (ort::Status* status = api->CustomOpDomain_Add(domain, &op)) return status;
  return nullptr;
}

template <typename Op>
ort::Status* add(ort::Domain* domain) {
  return add<Op>(domain, std::make_index_sequence<sizeof(Op::kTypes) / sizeof(*Op::kTypes)>());
}

// The domain with every operator. It must outlive every session, so it is made once and never released.
ort::Domain* domain(ort::Status** failed) {
  ort::Domain* made = nullptr;
  *failed = api->CreateCustomOpDomain("pythia", &made);
#ifdef PYTHIA_CUDA
  if (!*failed) *failed = add<CudaRotaryAttention>(made);
  if (!*failed) *failed = add<CudaPartialRotary>(made);
#endif
#ifndef PYTHIA_EMULATE_CUDA  // which takes the CPU's place
  if (!*failed) *failed = add<RotaryAttention>(made);
  if (!*failed) *failed = add<PartialRotary>(made);
#endif
#ifndef PYTHIA_CUDA  // a GPU has ONNX Runtime's own kernel, which the function calls
  const Version* version = chosen();
  // Where there is no version the operator itself says so, instead of leaving the work to the function unnoticed.
  if (!*failed && (!version || version->product)) *failed = add<LinearNBits>(made);
  if (!*failed && (!version || version->product)) *failed = add<Linear3Bits>(made);
  if (!*failed && (!version || version->product)) *failed = add<MatMulNBits>(made);
  if (!*failed && (!version || version->product)) *failed = add<DecoderLayers>(made);
  if (!*failed && (!version || version->product)) *failed = add<Decoder>(made);
  if (!*failed && (!version || version->product)) *failed = add<DecoderMask>(made);
#endif
  return made;
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
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  const ort::Api* given = base->GetApi(ort::kApiVersion);
  if (!given) return nullptr;  // ONNX Runtime before 1.17, which says so: the functions in the graph do the work
  api = given;
  static ort::Domain* made = nullptr;
  if (!made) {
    ort::Status* failed = nullptr;
    ort::Domain* fresh = domain(&failed);
    if (failed) return failed;
    made = fresh;
  }
  return api->AddCustomOpDomain(options, made);
}
