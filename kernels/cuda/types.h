// What the C interfaces of all kernels for a GPU have in common: how they are exported, types, and the answer without one.
#pragma once

#ifdef _WIN32
#define PYTHIA_API __declspec(dllexport)
#else
#define PYTHIA_API __attribute__((visibility("default")))
#endif

enum { kPythiaFloat32 = 0, kPythiaFloat16 = 1, kPythiaBfloat16 = 2, kPythiaInt8 = 3 };
enum { kPythiaNoKernel = -1 };
