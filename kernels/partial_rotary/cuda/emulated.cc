// The CUDA kernel for a CPU: compiled with PYTHIA_EMULATE_CUDA.
#include "rotate.cu"
