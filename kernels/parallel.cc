#include "parallel.h"

#include <cstdint>
#include <memory>
#include <thread>

#ifdef PYTHIA_X86
#include <cpuid.h>
#endif

namespace pythia {

float* scratch(Use use, size_t floats) {
  struct Place {
    std::unique_ptr<float[]> memory;
    size_t size = 0;
  };
  thread_local Place places[kUses];
  constexpr size_t kAlignment = 64 / sizeof(float);
  Place& place = places[use];
  if (place.size < floats) {
    place.memory.reset();  // first, so that both are never held
    place.size = 0;
    place.memory.reset(new float[floats + kAlignment]);
    place.size = floats;
  }
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(place.memory.get()) + 63) & ~uintptr_t(63));
}

int hardware_threads() {
  static const int count = int(std::thread::hardware_concurrency());
  return count > 1 ? count : 1;
}

const bool reads_ahead = [] {
#ifdef PYTHIA_X86
  unsigned a, b, c, d;
  return __get_cpuid(0, &a, &b, &c, &d) && c == 0x444d4163;  // the end of "AuthenticAMD"
#else
  return true;
#endif
}();

}  // namespace pythia
