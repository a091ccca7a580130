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
enum Use { kTask, kCall, kUses };
float* scratch(Use use, size_t floats);

// Threads that the machine can run at once, asked for once.
int hardware_threads();

// Whether the processor brings what is read in order in time by itself, if it is asked for once and shortly before, as AMD's
// does; Intel's reads faster where what comes long after is asked for as well.
extern const bool reads_ahead;

}  // namespace pythia
