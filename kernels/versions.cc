#include "versions.h"

#include <cstdlib>
#include <cstring>

#include "half.h"

namespace pythia {

#define PYTHIA_VERSION(isa)                                      \
  namespace isa {                                                \
  void attend(const Attention&, const Parallel&);                \
  void rotate(const Rotary&, const Parallel&);                   \
  void widen(const uint16_t*, float*, int64_t);                  \
  void narrow(const float*, uint16_t*, int64_t);                 \
  }
PYTHIA_VERSION(base)
#ifdef PYTHIA_X86
PYTHIA_VERSION(avx2)
PYTHIA_VERSION(avx512)
#endif
#ifdef PYTHIA_WIDE
PYTHIA_VERSION(wide)
#endif

namespace reference {
void widen(const uint16_t* half, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = float_of(half[i]);
}
void narrow(const float* from, uint16_t* half, int64_t count) {
  for (int64_t i = 0; i < count; ++i) half[i] = half_of(from[i]);
}
}  // namespace reference

namespace {
bool always() { return true; }
#ifdef PYTHIA_X86
bool has_avx512() { return __builtin_cpu_supports("avx512f"); }
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif
}  // namespace

#if defined(PYTHIA_X86)
#define PYTHIA_BASE "sse2"
#elif defined(__aarch64__)
#define PYTHIA_BASE "neon"
#else
#define PYTHIA_BASE "base"
#endif

const Version kVersions[] = {
#ifdef PYTHIA_X86
    {"avx512", has_avx512, avx512::attend, avx512::rotate, avx512::widen, avx512::narrow},
    {"avx2", has_avx2, avx2::attend, avx2::rotate, avx2::widen, avx2::narrow},
#endif
    {PYTHIA_BASE, always, base::attend, base::rotate, base::widen, base::narrow},
#ifdef PYTHIA_WIDE
    {"wide", always, wide::attend, wide::rotate, wide::widen, wide::narrow},
#endif
    {"reference", always, attend_reference, rotate_reference, reference::widen, reference::narrow},
};
const size_t kVersionCount = sizeof kVersions / sizeof *kVersions;

const Version* chosen() {
  const char* asked = std::getenv("PYTHIA_KERNELS_ISA");
  for (const Version& version : kVersions)
    if (asked ? !std::strcmp(asked, version.name) && version.runs_here() : version.runs_here()) return &version;
  return nullptr;
}

}  // namespace pythia
