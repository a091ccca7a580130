// Vectors of integers and floats: all that differs between instruction sets is in the two files below.
#pragma once

#ifdef __aarch64__
#include "lanes_neon.h"
#else
#include "lanes_x86.h"
#endif

namespace pythia {
namespace PYTHIA_ISA {
namespace {

// Asks for the line at an address, into the first cache, the second one, or the first one and no other. Nothing need be there.
enum Cache { kFirst = 3, kSecond = 2, kFirstAlone = 0 };
template <Cache cache>
inline void ask_for(uintptr_t at) {
  __builtin_prefetch(reinterpret_cast<const void*>(at), 0, cache);
}

// Dword i of vector j becomes dword j of vector i.
inline void transpose(Ints* v) {
  Ints t[kLanes], u[kLanes];
  for (int i = 0; i < kLanes; i += 2) t[i] = unpacklo_32(v[i], v[i + 1]), t[i + 1] = unpackhi_32(v[i], v[i + 1]);
  for (int i = 0; i < kLanes; i += 4)
    for (int j = 0; j < 2; ++j)
      u[i + 2 * j] = unpacklo_64(t[i + j], t[i + j + 2]), u[i + 2 * j + 1] = unpackhi_64(t[i + j], t[i + j + 2]);
  for (int j = 0; j < 4; ++j) transpose_quarters(u + j, v + j, 4);
}

constexpr int64_t kVectors = 2, kTile = kVectors * kLanes, kStep = 4 * kLanes;  // columns at once, numbers in a vector

}  // namespace
}  // namespace PYTHIA_ISA
}  // namespace pythia
