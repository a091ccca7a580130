// GPTQ with a beam, a block of columns at a time: what pythia_export/rounding/columns.py does between two products of
// matrices. The quantiser calls it by ctypes; ONNX Runtime has no part in it.
#pragma once

#include <cstdint>

#ifdef _WIN32
#define PYTHIA_EXPORT __declspec(dllexport)
#else
#define PYTHIA_EXPORT __attribute__((visibility("default")))
#endif

namespace pythia {

constexpr int64_t kBeamWidth = 64, kBeamPlaces = 64, kBeamApart = 256;  // at most

// Places are taken from the last to the first. Of each row `width` roundings are carried on.
struct Beam {
  int64_t rows, width, places;
  int64_t top;            // the largest code
  int64_t row_stride;     // from one place to the next in free, settled, scale and zero
  int64_t factor_stride;  // from one row of the factor to the next
  int64_t window;         // numbers of one rounding in errors and codes
  int64_t first;          // where in them the block begins
  int64_t apart;          // numbers behind the block that move with their rounding
  const float* free;      // [places][rows] weights
  const float* settled;   // [places][rows] what the settled columns leave to make up for
  const float* scale;     // [places][rows]
  const float* zero;      // [places][rows]
  const float* factor;    // [places][places], lower
  const float* owed;      // [rows][width][places] what the columns apart leave to make up for
  float* cost;            // [rows][width], so far; infinite or NaN: there is none
  float* errors;          // [rows][width][window]
  uint8_t* codes;         // [rows][width][window]
};

// Costs overflow where weights are huge. A choice whose cost is infinite or NaN counts as none, so that choices are always
// in one order, and no number decides where memory is read. False: some row has no rounding of finite cost left.
bool beam_reference(const Beam&);

// Whether sizes and strides are such that memory is read where it was meant.
inline bool in_range(const Beam& b, int64_t most_places) {
  const bool sizes = b.rows >= 0 && b.width > 0 && b.width <= kBeamWidth && b.places > 0 && b.places <= most_places;
  const bool within = b.first >= 0 && b.apart >= 0 && b.apart <= kBeamApart && b.first + b.places + b.apart <= b.window;
  return sizes && within && b.row_stride >= b.rows && b.factor_stride >= b.places && b.top > 0 && b.top < 256;
}

}  // namespace pythia

extern "C" {
// 0; 1: PYTHIA_KERNELS_ISA names a version that this processor or this build does not have; 2: sizes that are out of range;
// 3: some row has no rounding of finite cost left, and the results are of no use.
PYTHIA_EXPORT int pythia_beam(const pythia::Beam*);
// On a GPU, all pointers its own, in a cudaStream_t: 0; -1: sizes that are out of range, of places more than 32; else a
// cudaError_t. A row without a rounding of finite cost has NaN in `cost`.
PYTHIA_EXPORT int pythia_cuda_beam(const pythia::Beam*, void* stream);
}
