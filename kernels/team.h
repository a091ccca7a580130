// Threads that go through many short phases together, for one handing out of ONNX Runtime's.
//
// To hand work out to threads that sleep takes tens of microseconds, a phase of a layer sometimes less. So threads are asked
// for once a call, and take tasks of every phase from a counter as they come free. The leader waits for nobody to begin: a
// thread that the system does not run takes no task, and the others do the work. Who waits spins for some microseconds,
// and then yields the processor to whoever wants it.
#pragma once

#include "parallel.h"

namespace pythia {

// Calls lead(data, shared) on the calling thread. Phases that it hands to `shared` are worked on by `of`'s other threads
// as well. Throws std::bad_alloc, as tasks may.
void lead(const Parallel& of, void (*lead)(void* data, const Parallel& shared), void* data);

// The calling thread alone.
extern const Parallel kAlone;

}  // namespace pythia
