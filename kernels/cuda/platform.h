// What nvcc gives, or its emulation on a CPU for the tests (emulation.h): the same sources, another compiler.
#pragma once

#include <cstdint>

#ifdef PYTHIA_EMULATE_CUDA
#include "emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define PYTHIA_UNROLL _Pragma("unroll")  // what is indexed in a loop that is not unrolled leaves the registers
#define PYTHIA_LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
#endif
