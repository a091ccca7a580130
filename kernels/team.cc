#include "team.h"

#include <atomic>
#include <cstdint>
#include <new>
#include <thread>

#ifdef PYTHIA_X86
#include <immintrin.h>
#endif

namespace pythia {
namespace {

void relax() {
#ifdef PYTHIA_X86
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Wait {
 public:
  void operator()() {
    if (++turns_ < kSpins)
      relax();
    else
      std::this_thread::yield();
  }

 private:
  static constexpr int kSpins = 1000;  // some tens of microseconds
  int turns_ = 0;
};

class Team {
 public:
  Team(void (*lead)(void*, const Parallel&), void* data)
      : lead_(lead), lead_data_(data), leader_(std::this_thread::get_id()) {}

  // One thread's part of the call.
  static void join(void* self, size_t) {
    Team& team = *static_cast<Team*>(self);
    if (std::this_thread::get_id() != team.leader_) {
      Wait wait;
      while (!team.closed_.load(std::memory_order_acquire))
        if (team.take())
          wait = {};
        else
          wait();
      return;
    }
    if (team.closed_.load(std::memory_order_relaxed)) return;
    struct Close {
      std::atomic<bool>& closed;
      ~Close() { closed.store(true, std::memory_order_release); }
    } close{team.closed_};
    team.lead_(team.lead_data_, {share, self});
  }

 private:
  // Works on one task of the phase, if there is one.
  bool take() {
    uint64_t now = next_.load(std::memory_order_relaxed);
    if (uint32_t(now) >= now >> 32) return false;
    now = next_.fetch_add(1, std::memory_order_acquire);
    if (uint32_t(now) >= now >> 32) return false;
    try {
      fn_(data_, uint32_t(now));
    } catch (...) {  // tasks do no more than work in memory that they ask for
      failed_.store(true, std::memory_order_relaxed);
    }
    done_.fetch_add(1, std::memory_order_release);
    return true;
  }

  static void share(void* self, size_t n, void (*fn)(void*, size_t), void* data) {
    if (n == 1) return fn(data, 0);
    Team& team = *static_cast<Team*>(self);
    team.fn_ = fn, team.data_ = data;
    team.done_.store(0, std::memory_order_relaxed);
    team.next_.store(uint64_t(n) << 32, std::memory_order_release);
    while (team.take()) {
    }
    Wait wait;
    while (team.done_.load(std::memory_order_acquire) < n) wait();
    if (team.failed_.load(std::memory_order_relaxed)) throw std::bad_alloc();
  }

  void (*lead_)(void*, const Parallel&);
  void* lead_data_;
  std::thread::id leader_;
  // Who takes a task of the phase that `next_` is of reads these; they change when all its tasks are done.
  void (*fn_)(void*, size_t) = nullptr;
  void* data_ = nullptr;
  alignas(64) std::atomic<uint64_t> next_{0};  // how many tasks the phase has, and in the low half the next one
  alignas(64) std::atomic<uint32_t> done_{0};
  alignas(64) std::atomic<bool> closed_{false};
  std::atomic<bool> failed_{false};
};

}  // namespace

void lead(const Parallel& of, void (*lead)(void*, const Parallel&), void* data) {
  Team team(lead, data);
  of(size_t(hardware_threads()), Team::join, &team);
}

const Parallel kAlone{[](void*, size_t n, void (*fn)(void*, size_t), void* data) {
                        for (size_t i = 0; i < n; ++i) fn(data, i);
                      },
                      nullptr};

}  // namespace pythia
