#include "team.h"

#include <algorithm>
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
      const uint32_t mine = 1 + team.joined_.fetch_add(1, std::memory_order_relaxed);
      Wait wait;
      while (!team.closed_.load(std::memory_order_acquire))
        if (team.take(mine))
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
  static constexpr uint32_t kParts = 8;

  // Works on one task of the phase, if there is one: the next of the thread's own part, since what it prefetched at the end of
  // one task is the beginning of the next; else the last of another part.
  bool take(uint32_t mine) {
    for (uint32_t i = 0; i < kParts; ++i) {
      std::atomic<uint64_t>& part = parts_[(mine + i) % kParts].left;
      uint64_t now = part.load(std::memory_order_relaxed);
      while (uint32_t(now) < now >> 32) {
        const uint64_t then = i == 0 ? now + 1 : now - (uint64_t(1) << 32);
        if (!part.compare_exchange_weak(now, then, std::memory_order_acquire, std::memory_order_relaxed)) continue;
        try {
          fn_(data_, i == 0 ? uint32_t(now) : uint32_t(now >> 32) - 1);
        } catch (...) {  // tasks do no more than work in memory that they ask for
          failed_.store(true, std::memory_order_relaxed);
        }
        done_.fetch_add(1, std::memory_order_release);
        return true;
      }
    }
    return false;
  }

  static void share(void* self, size_t n, void (*fn)(void*, size_t), void* data) {
    if (n == 1) return fn(data, 0);
    Team& team = *static_cast<Team*>(self);
    team.fn_ = fn, team.data_ = data;
    team.done_.store(0, std::memory_order_relaxed);
    const uint64_t parts = std::min(1 + team.joined_.load(std::memory_order_relaxed), kParts);
    for (uint64_t i = parts; i-- > 0;)
      team.parts_[i].left.store(n * (i + 1) / parts << 32 | n * i / parts, std::memory_order_release);
    while (team.take(0)) {
    }
    Wait wait;
    while (team.done_.load(std::memory_order_acquire) < n) wait();
    if (team.failed_.load(std::memory_order_relaxed)) throw std::bad_alloc();
  }

  void (*lead_)(void*, const Parallel&);
  void* lead_data_;
  std::thread::id leader_;
  // Who takes a task of a phase reads these; they change when all its tasks are done.
  void (*fn_)(void*, size_t) = nullptr;
  void* data_ = nullptr;
  struct alignas(64) Part {
    std::atomic<uint64_t> left{0};  // the end of the tasks that nobody has taken, and in the low half their beginning
  };
  Part parts_[kParts];  // of the phase, as many as threads are there when it begins; the leader's is the first
  std::atomic<uint32_t> joined_{0};
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
