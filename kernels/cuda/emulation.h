// A GPU's thread blocks on one thread of a CPU, for tests: each thread of a block is a fiber, which gives way where threads
// wait for one another. One block runs after the other, in a fixed order. Blocks are whole warps.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "../half.h"

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define PYTHIA_UNROLL
#define PYTHIA_LAUNCH(kernel, grid, block, stream, ...) \
  (void)(stream), pythia::emulated::launch(grid, block, [&] { kernel(__VA_ARGS__); })

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };

struct __half { uint16_t bits; };  // aggregates: shared memory of them is not initialised
struct __nv_bfloat16 { uint16_t bits; };
inline float __half2float(__half x) { return pythia::float_of(x.bits); }
inline __half __float2half_rn(float x) { return {pythia::half_of(x)}; }
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (std::isnan(x)) return {0x7FFF};
  return {uint16_t((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
}
inline float __fmul_rn(float x, float y) { return x * y; }  // compiled without contraction
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fdiv_rn(float x, float y) { return x / y; }

namespace pythia {
namespace emulated {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 1 << 17;

// Threads that have arrived, and how often all have.
struct Meeting {
  unsigned arrived = 0, times = 0;
};

// A change of stacks. swapcontext would ask the system about signals every time. Any register may change meanwhile, whatever
// GCC finds when it reads these functions (noipa). AddressSanitizer would take a jump for the end of all functions on the stack
// that is left, as it does at longjmp's. GCC's two built-in functions may not meet in one function.
#if defined(__clang__)
struct Place { jmp_buf kept; };
#define PYTHIA_CHANGES_STACKS __attribute__((noinline, no_sanitize("address")))
#define PYTHIA_STOP_AT(place) _setjmp((place).kept)
[[noreturn]] PYTHIA_CHANGES_STACKS inline void go_on(Place& place) { _longjmp(place.kept, 1); }
#else
struct Place { void* kept[5]; };
#define PYTHIA_CHANGES_STACKS __attribute__((noipa, no_sanitize_address))
#define PYTHIA_STOP_AT(place) __builtin_setjmp((place).kept)
[[noreturn]] PYTHIA_CHANGES_STACKS inline void go_on(Place& place) { __builtin_longjmp(place.kept, 1); }
#endif

struct Fiber {
  Place place;
  ucontext_t beginning;  // of a fiber that has not run yet
  std::unique_ptr<char[]> stack;
  bool begun = false;
  dim3 index;
  unsigned shuffles = 0;
  bool done = false;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Meeting> warps;
  std::vector<float> exchanged;  // [2][threads]: shuffles take turns, so that none overwrites what is still to be read
  std::vector<uint32_t> fragments;  // [2][threads][6] of products likewise
  Meeting all;
  unsigned current = 0;
  Place scheduler;
  const std::function<void()>* body = nullptr;
};

inline Block block;
inline dim3 block_index, block_size, grid_size;

inline Fiber& self() { return block.fibers[block.current]; }
PYTHIA_CHANGES_STACKS inline void give_way() {
  if (!PYTHIA_STOP_AT(self().place)) go_on(block.scheduler);
}
// Return when the fiber gives way.
PYTHIA_CHANGES_STACKS inline void resume(Fiber& fiber) {
  if (PYTHIA_STOP_AT(block.scheduler)) return;
  if (fiber.begun) go_on(fiber.place);
  fiber.begun = true;
  setcontext(&fiber.beginning);
}
inline void meet(Meeting& meeting, unsigned threads) {
  const unsigned before = meeting.times;
  if (++meeting.arrived == threads) {
    meeting.arrived = 0, ++meeting.times;
    return;
  }
  while (meeting.times == before) give_way();
}
inline void run_fiber() {
  for (;;) {  // one block's thread after another's
    (*block.body)();
    self().done = true;
    give_way();
  }
}

inline void start(Fiber& fiber, unsigned thread) {
  fiber.index = dim3(thread, 0, 0), fiber.shuffles = 0, fiber.done = false;
  if (fiber.stack) return;
  fiber.stack.reset(new char[kStack]);
  getcontext(&fiber.beginning);
  fiber.beginning.uc_stack.ss_sp = fiber.stack.get(), fiber.beginning.uc_stack.ss_size = kStack;
  fiber.beginning.uc_link = nullptr;
  makecontext(&fiber.beginning, run_fiber, 0);
}

inline void launch(dim3 grid, dim3 size, const std::function<void()>& body) {
  const unsigned threads = size.x;
  grid_size = grid, block_size = size, block.body = &body;
  if (block.fibers.size() < threads) block.fibers.resize(threads);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = dim3(x, y, z);
        block.all = {}, block.warps.assign(threads / kWarp, {}), block.exchanged.assign(2 * threads, 0);
        block.fragments.assign(2 * threads * 6, 0);
        for (unsigned thread = 0; thread < threads; ++thread) start(block.fibers[thread], thread);
        for (unsigned left = threads; left;)
          for (unsigned t = 0; t < threads; ++t)
            if (!block.fibers[t].done) {
              block.current = t;
              resume(block.fibers[t]);
              left -= block.fibers[t].done;
            }
      }
}

inline float shuffle_xor(float value, unsigned by) {
  const unsigned turn = self().shuffles++ % 2 * block_size.x, me = block.current;
  block.exchanged[turn + me] = value;
  meet(block.warps[me / kWarp], kWarp);
  return block.exchanged[turn + (me ^ by)];
}

// mma.m16n8k16 of a warp: which lane has what, PTX ISA says. `widen` gives the number of 16 bits.
inline void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1, float (*widen)(uint16_t)) {
  const unsigned turn = self().shuffles++ % 2 * block_size.x, me = block.current, first = me / kWarp * kWarp;
  uint32_t* mine = &block.fragments[(turn + me) * 6];
  std::memcpy(mine, a, 16), mine[4] = b0, mine[5] = b1;
  meet(block.warps[me / kWarp], kWarp);
  const auto number = [&](unsigned lane, unsigned word, unsigned half) {
    return widen(uint16_t(block.fragments[(turn + first + lane) * 6 + word] >> 16 * half));
  };
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = me % kWarp / 4 + 8 * (i / 2), column = me % 4 * 2 + i % 2;
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned owner = k % 8 / 2, late = k / 8;  // of column k of the first, and of row k of the second
      c[i] += number(row % 8 * 4 + owner, 2 * late + row / 8, k % 2) * number(column * 4 + owner, 4 + late, k % 2);
    }
  }
}

}  // namespace emulated
}  // namespace pythia

#define threadIdx (pythia::emulated::self().index)
#define blockIdx (pythia::emulated::block_index)
#define gridDim (pythia::emulated::grid_size)
inline void __syncthreads() { pythia::emulated::meet(pythia::emulated::block.all, pythia::emulated::block_size.x); }
inline float __shfl_xor_sync(unsigned, float value, int by) { return pythia::emulated::shuffle_xor(value, unsigned(by)); }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error of the emulation"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 132, cudaSuccess; }
inline cudaError_t cudaMallocAsync(void** at, size_t bytes, cudaStream_t) { return *at = std::malloc(bytes), cudaSuccess; }
inline cudaError_t cudaFreeAsync(void* at, cudaStream_t) { return std::free(at), cudaSuccess; }
inline cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t rows,
                                     cudaMemcpyKind, cudaStream_t) {
  for (size_t i = 0; i < rows; ++i)
    std::memcpy(static_cast<char*>(to) + i * to_pitch, static_cast<const char*>(from) + i * from_pitch, width);
  return cudaSuccess;
}
