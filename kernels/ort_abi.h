// The part of ONNX Runtime's C ABI that the operators use. ONNX Runtime's Python wheels ship no headers.
//
// OrtApi is a struct of function pointers that only ever grows at its end, so the place of each is stable; the structs
// that ONNX Runtime hands out are opaque. tests/kernels/test_kernels.py compares every place and every field with the official
// onnxruntime_c_api.h where that is installed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

constexpr uint32_t kApiVersion = 17;  // the first with KernelContext_ParallelFor

struct Status;
struct KernelInfo;
struct KernelContext;
struct Value;
struct Shape;  // OrtTensorTypeAndShapeInfo
struct Domain;
struct SessionOptions;
struct ShapeInferContext;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int { kUndefined = 0, kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6, kInt64 = 7, kFloat16 = 10, kBfloat16 = 16 };
enum Characteristic : int { kRequired = 0, kOptional = 1, kVariadic = 2 };
enum MemoryType : int { kCpuInput = -2, kDefaultMemory = 0 };

// name, place in OrtApi, parameters; all return Status* but those that read or release one.
#define PYTHIA_ORT_FUNCTIONS(X)                                                                          \
  X(CreateStatus, 0, Status*, (ErrorCode, const char*))                                                  \
  X(GetErrorCode, 1, ErrorCode, (const Status*))                                                         \
  X(GetErrorMessage, 2, const char*, (const Status*))                                                    \
  X(CreateCustomOpDomain, 26, Status*, (const char*, Domain**))                                          \
  X(CustomOpDomain_Add, 27, Status*, (Domain*, const struct CustomOp*))                                  \
  X(AddCustomOpDomain, 28, Status*, (SessionOptions*, Domain*))                                          \
  X(GetTensorMutableData, 51, Status*, (Value*, void**))                                                 \
  X(CreateTensorTypeAndShapeInfo, 57, Status*, (Shape**))                                                \
  X(SetTensorElementType, 58, Status*, (Shape*, ElementType))                                            \
  X(SetDimensions, 59, Status*, (Shape*, const int64_t*, size_t))                                        \
  X(GetTensorElementType, 60, Status*, (const Shape*, ElementType*))                                     \
  X(GetDimensionsCount, 61, Status*, (const Shape*, size_t*))                                            \
  X(GetDimensions, 62, Status*, (const Shape*, int64_t*, size_t))                                        \
  X(GetSymbolicDimensions, 63, Status*, (const Shape*, const char**, size_t))                            \
  X(GetTensorTypeAndShape, 65, Status*, (const Value*, Shape**))                                         \
  X(KernelInfoGetAttribute_float, 85, Status*, (const KernelInfo*, const char*, float*))                 \
  X(KernelInfoGetAttribute_int64, 86, Status*, (const KernelInfo*, const char*, int64_t*))               \
  X(KernelInfoGetAttribute_string, 87, Status*, (const KernelInfo*, const char*, char*, size_t*))        \
  X(KernelContext_GetInputCount, 88, Status*, (const KernelContext*, size_t*))                           \
  X(KernelContext_GetOutputCount, 89, Status*, (const KernelContext*, size_t*))                          \
  X(KernelContext_GetInput, 90, Status*, (const KernelContext*, size_t, const Value**))                  \
  X(KernelContext_GetOutput, 91, Status*, (KernelContext*, size_t, const int64_t*, size_t, Value**))     \
  X(ReleaseStatus, 93, void, (Status*))                                                                  \
  X(ReleaseTensorTypeAndShapeInfo, 99, void, (Shape*))                                                   \
  X(KernelInfoGetAttributeArray_int64, 163, Status*, (const KernelInfo*, const char*, int64_t*, size_t*)) \
  X(KernelContext_GetGPUComputeStream, 193, Status*, (const KernelContext*, void**))                      \
  X(KernelInfo_GetInputCount, 230, Status*, (const KernelInfo*, size_t*))                                \
  X(KernelInfo_GetNodeName, 244, Status*, (const KernelInfo*, char*, size_t*))                           \
  X(KernelInfoGetConstantInput_tensor, 249, Status*, (const KernelInfo*, size_t, int*, const Value**))   \
  X(ShapeInferContext_GetInputCount, 267, Status*, (const ShapeInferContext*, size_t*))                  \
  X(ShapeInferContext_GetInputTypeShape, 268, Status*, (const ShapeInferContext*, size_t, Shape**))      \
  X(ShapeInferContext_SetOutputTypeShape, 270, Status*, (ShapeInferContext*, size_t, const Shape*))      \
  X(SetSymbolicDimensions, 271, Status*, (Shape*, const char**, size_t))                                 \
  X(KernelContext_ParallelFor, 274, Status*,                                                             \
    (const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*))

struct Api {
  void* const places[275];

#define X(name, place, returns, parameters)                    \
  using name##Function = returns(*) parameters;                \
  static constexpr size_t k##name = place;                     \
  template <typename... A>                                     \
  returns name(A... arguments) const {                         \
    return reinterpret_cast<name##Function>(places[place])(arguments...); \
  }
  PYTHIA_ORT_FUNCTIONS(X)
#undef X
};

struct ApiBase {
  const Api* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// OrtCustomOp as version 17 has it; ONNX Runtime reads no further than `version` says.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  ElementType (*GetInputType)(const CustomOp*, size_t);
  size_t (*GetInputTypeCount)(const CustomOp*);
  ElementType (*GetOutputType)(const CustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, KernelContext*);
  void (*KernelDestroy)(void*);
  Characteristic (*GetInputCharacteristic)(const CustomOp*, size_t);
  Characteristic (*GetOutputCharacteristic)(const CustomOp*, size_t);
  MemoryType (*GetInputMemoryType)(const CustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*KernelComputeV2)(void*, KernelContext*);
  Status* (*InferOutputShapeFn)(const CustomOp*, ShapeInferContext*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
};

}  // namespace ort
