#include <cstdlib>
#include <cstring>

#include "attention.h"

namespace pythia {

Chosen choose() {
  const char* asked = std::getenv("PYTHIA_KERNELS_ISA");
  const auto allowed = [asked](const char* name) { return !asked || !std::strcmp(asked, name); };
  if (asked && allowed("reference")) return {"reference", attend_reference};
#ifdef PYTHIA_X86
  if (allowed("avx512") && __builtin_cpu_supports("avx512f")) return {"avx512", avx512::attend};
  if (allowed("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    return {"avx2", avx2::attend};
#endif
  if (allowed("base")) return {"base", base::attend};
  return {nullptr, nullptr};
}

}  // namespace pythia
