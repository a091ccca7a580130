// Which version of the operators, and of the quantiser's beam, runs: the reference, or one source compiled for an instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "beam/beam.h"
#include "decoder_layers/elementwise.h"
#include "matmul_nbits/product.h"
#include "partial_rotary/rotary.h"
#include "rotary_attention/attention.h"

namespace pythia {

struct Version {
  const char* name;
  bool (*runs_here)();
  void (*attend)(const Attention&, const Parallel&);
  void (*rotate)(const Rotary&, const Parallel&);
  const ProductSteps* product;  // null: there is ONNX Runtime's own alone
  void (*normalize)(const Normalization&);
  void (*activate)(Activation, float* x, int64_t count);
  double (*exponentials)(const float* x, int64_t count, float by, float* y);
  void (*masses)(const float* weights, int64_t count, const float least[kLeasts], double sums[kLeasts]);
  double (*mass)(const float* weights, int64_t count, float least);
  bool (*beam)(const Beam&);
  void (*widen)(const uint16_t* half, float* to, int64_t count);
  void (*narrow)(const float* from, uint16_t* half, int64_t count);
};

// Best first, the reference last.
extern const Version kVersions[];
extern const size_t kVersionCount;

// The best that this processor runs, or the one that the environment variable PYTHIA_KERNELS_ISA names if it is not
// empty; null where it names one that this build or this processor does not have.
const Version* chosen();
constexpr const char* kNoVersion =
    "PYTHIA_KERNELS_ISA names a version that this processor or this build does not have; kernels/README.md lists them";

}  // namespace pythia

extern "C" {
// Its name; null where there is none.
PYTHIA_EXPORT const char* pythia_version();
}
