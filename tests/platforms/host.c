// Load a library of kernels as ONNX Runtime and the quantiser do, without either: host LIBRARY
//
// Three lines come out: the instruction set that the library chose, its operators by name, and what its beam makes of a
// block of weights, to the last bit. zig compiles this for every platform, an emulator runs it (try_wheels.py).
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#ifdef _WIN32
#include <windows.h>
static void* opened(const char* path) { return (void*)LoadLibraryA(path); }
static void* found(void* library, const char* name) { return (void*)GetProcAddress((HMODULE)library, name); }
static void say_why(void) { fprintf(stderr, "error %lu\n", GetLastError()); }
#else
#include <dlfcn.h>
static void* opened(const char* path) { return dlopen(path, RTLD_NOW | RTLD_LOCAL); }
static void* found(void* library, const char* name) { return dlsym(library, name); }
static void say_why(void) { fprintf(stderr, "%s\n", dlerror()); }
#endif

// kernels/beam/beam.h
typedef struct {
  int64_t rows, width, places, top, row_stride, factor_stride, window, first, apart;
  const float *free, *settled, *scale, *zero, *factor, *owed;
  float *cost, *errors;
  uint8_t* codes;
} Beam;

// The three functions of OrtApi that register operators, at their places in it (kernels/ort_abi.h).
typedef struct {
  uint32_t version;
  void* create;
  const char* (*name)(const void*);
} Op;
static void* create_domain(const char* name, void** domain) {
  *domain = (void*)name;
  return NULL;
}
static void* add_operator(void* domain, const Op* op) {
  static const char* last = "";
  if (strcmp(last, op->name(op))) printf(" %s::%s", (const char*)domain, last = op->name(op));
  return NULL;
}
static void* add_domain(void* options, void* domain) {
  (void)options, (void)domain;
  return NULL;
}
static void* api[400];
static void* get_api(uint32_t version) {
  (void)version;
  api[26] = (void*)create_domain, api[27] = (void*)add_operator, api[28] = (void*)add_domain;
  return api;
}
static const char* get_version(void) { return "1.32.0"; }

static uint32_t state = 1;
static float number(void) {  // in [-1, 1)
  state = state * 1664525u + 1013904223u;
  return (float)(int32_t)state / 2147483648.0f;
}

enum { kRows = 23, kWidth = 5, kPlaces = 32, kApart = 40, kWindow = kPlaces + kApart };
static float weights[kPlaces * kRows], settled[kPlaces * kRows], scale[kPlaces * kRows], zero[kPlaces * kRows];
static float factor[kPlaces * kPlaces], owed[kRows * kWidth * kPlaces], cost[kRows * kWidth];
static float errors[kRows * kWidth * kWindow];
static uint8_t codes[kRows * kWidth * kWindow];

static uint64_t hash(const void* bytes, size_t count) {  // FNV-1a
  uint64_t at = 14695981039346656037u;
  for (size_t i = 0; i < count; ++i) at = (at ^ ((const uint8_t*)bytes)[i]) * 1099511628211u;
  return at;
}

int main(int argc, char** argv) {
  void* library = argc == 2 ? opened(argv[1]) : NULL;
  if (!library) return say_why(), 1;
  const char* (*version)(void) = (const char* (*)(void))found(library, "pythia_version");
  void* (*registers)(void*, const void*) = (void* (*)(void*, const void*))found(library, "RegisterCustomOps");
  int (*beam)(const Beam*) = (int (*)(const Beam*))found(library, "pythia_beam");
  if (!version || !registers || !beam) return say_why(), 1;
  printf("version %s\n", version());

  const void* base[] = {(void*)get_api, (void*)get_version};
  printf("operators");
  if (registers(NULL, base)) return 1;
  printf("\n");

  for (int i = 0; i < kPlaces * kRows; ++i)
    weights[i] = number(), settled[i] = number() / 64, scale[i] = 0.125f, zero[i] = 8;
  for (int i = 0; i < kPlaces; ++i)
    for (int j = 0; j <= i; ++j) factor[i * kPlaces + j] = i == j ? 1.5f + number() / 4 : number() / 8;
  for (int i = 0; i < kRows * kWidth; ++i) cost[i] = i % kWidth ? 1e30f : 0;
  const Beam block = {kRows, kWidth, kPlaces, 15, kRows, kPlaces, kWindow, 0, kApart, weights, settled, scale, zero,
                      factor, owed, cost, errors, codes};
  const int refused = beam(&block);
  printf("beam %d %016llx %016llx %016llx\n", refused, (unsigned long long)hash(cost, sizeof cost),
         (unsigned long long)hash(errors, sizeof errors), (unsigned long long)hash(codes, sizeof codes));
  return 0;
}
