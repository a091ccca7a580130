// float16 to float32 and back for whole tensors; compiled once for each instruction set, into the namespace PYTHIA_ISA.
#include "vector.h"

namespace pythia {
namespace PYTHIA_ISA {

void widen(const uint16_t* half, float* to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(half + i));
  for (; i < count; ++i) to[i] = float_of(half[i]);
}

void narrow(const float* from, uint16_t* half, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(half + i, load(from + i));
  for (; i < count; ++i) half[i] = half_of(from[i]);
}

}  // namespace PYTHIA_ISA
}  // namespace pythia
