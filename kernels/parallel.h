// What the operators need of the machine around them: threads, and memory to work in.
#pragma once

#include <cstddef>

namespace pythia {

// Calls fn(data, i) for i in [0, n), in any order, on any thread, and returns when all are done.
struct Parallel {
  void (*run)(void* context, size_t n, void (*fn)(void*, size_t), void* data);
  void* context;
  void operator()(size_t n, void (*fn)(void*, size_t), void* data) const { run(context, n, fn, data); }
};

// Memory of the calling thread, kept between calls and overwritten by the next; aligned to 64 bytes. A thread has one
// such place for each `use`, so that a function may hold one while it calls another.
enum Use { kTask, kCall, kLayers, kUses };
float* scratch(Use use, size_t floats);  // throws std::bad_alloc
// At the end of a call: what the calling thread holds for one, and is too large to keep, is given back.
void give_back();

// Threads that the machine can run at once, asked for once.
int hardware_threads();

// How memory that is read in order is best prefetched on this processor, by trial: shortly before, or long before as well.
// - kTwice: Intel's, everything, 2 to 8 % less.
// - kFloatsOnce: AMD's before Zen 5, tried on Zen 4; halves and codes twice, a tenth to a quarter less, floats once, a tenth less;
//   one row of 8-bit codes not at all (matmul_nbits/few.h).
// - kOnce: AMD's from Zen 5 on, a seventh less.
enum class PrefetchPolicy { kTwice, kFloatsOnce, kOnce };
extern const PrefetchPolicy prefetch_policy;

}  // namespace pythia
