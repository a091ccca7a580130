#include "parallel.h"

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <thread>

#ifdef PYTHIA_X86
#include <cpuid.h>
#endif

namespace pythia {

namespace {
struct Place {
  std::unique_ptr<float[]> memory;
  size_t size = 0;
};
thread_local Place places[kUses];
constexpr size_t kKept = size_t(64) << 20;  // bytes: those of a prompt of 2,048 tokens of pythia-12b
}  // namespace

float* scratch(Use use, size_t floats) {
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

void give_back() {
  for (Use use : {kCall, kLayers})
    if (places[use].size * sizeof(float) > kKept) places[use] = {};
}

int hardware_threads() {
  static const int count = int(std::thread::hardware_concurrency());
  return count > 1 ? count : 1;
}

const PrefetchPolicy prefetch_policy = [] {
#ifdef PYTHIA_X86
  unsigned a, b, c, d;
  constexpr unsigned kAmd = 0x444d4163, kZen5 = 0x1a;  // the end of "AuthenticAMD"; a family
  if (!__get_cpuid(0, &a, &b, &c, &d) || c != kAmd || !__get_cpuid(1, &a, &b, &c, &d)) return PrefetchPolicy::kTwice;
  return (a >> 8 & 15) + (a >> 20 & 255) < kZen5 ? PrefetchPolicy::kFloatsOnce : PrefetchPolicy::kOnce;
#else
  return PrefetchPolicy::kOnce;
#endif
}();

}  // namespace pythia
