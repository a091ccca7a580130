// The beam on a GPU for a CPU: compiled with PYTHIA_EMULATE_CUDA.
#include "cuda.cu"
