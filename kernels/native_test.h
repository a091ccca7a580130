// What the native tests share: shapes from a seed, buffers of exactly the size that is needed (a sanitizer sees the first
// step outside), two threads, and the versions that run here.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "versions.h"

namespace pythia {

struct Random {
  std::mt19937 bits;
  int64_t pick(std::initializer_list<int64_t> of) { return of.begin()[bits() % of.size()]; }
  int64_t upto(int64_t n) { return int64_t(bits() % uint64_t(n + 1)); }
  std::unique_ptr<float[]> normal(size_t n, float by = 1.0f) {
    std::normal_distribution<float> draw;
    std::unique_ptr<float[]> x(new float[n]);
    for (size_t i = 0; i < n; ++i) x[i] = by * draw(bits);
    return x;
  }
  // A number that arithmetic stumbles over: infinite, none, subnormal, or large enough for sums and squares to overflow.
  float hostile() {
    const float of[] = {INFINITY, -INFINITY, NAN, -NAN, 0.0f, -0.0f, 1e-45f, -1e-40f, FLT_MIN, FLT_MAX, -FLT_MAX, 3e38f, 1e22f, -1e19f};
    return of[bits() % (sizeof of / sizeof *of)];
  }
  // One number in `every` of x [n], and one at least, becomes hostile.
  void spoil(float* x, size_t n, size_t every) {
    if (!n) return;
    for (size_t i = 0; i < n; ++i)
      if (bits() % every == 0) x[i] = hostile();
    x[bits() % n] = hostile();
  }
};

inline bool same_number(float x, float y) { return std::isnan(x) ? std::isnan(y) : !std::memcmp(&x, &y, sizeof x); }

inline const Parallel kTwoThreads{[](void*, size_t n, void (*fn)(void*, size_t), void* data) {
                                    std::thread second([=] { for (size_t i = 1; i < n; i += 2) fn(data, i); });
                                    for (size_t i = 0; i < n; i += 2) fn(data, i);
                                    second.join();
                                  },
                                  nullptr};

// main of a test: `check(version, random, case)` draws a case and says whether the version passes it.
// Usage: <test> [seed] [cases]
template <typename Check>
int run(int argc, char** argv, Check check) {
  const unsigned seed = argc > 1 ? unsigned(std::atoi(argv[1])) : 0;
  const size_t cases = argc > 2 ? size_t(std::atoi(argv[2])) : 200;
  size_t failed = 0, run = 0;
  for (size_t v = 0; v + 1 < kVersionCount; ++v) {  // the last is the reference itself
    const Version& version = kVersions[v];
    if (!version.runs_here()) {
      std::printf("skipped: this processor does not run %s\n", version.name);
      continue;
    }
    ++run;
    std::printf("ran: %s\n", version.name);
    Random random{std::mt19937(seed)};
    for (size_t i = 0; i < cases; ++i) failed += !check(version, random, i);
  }
  std::printf("%zu cases, %zu versions, %zu failures\n", cases, run, failed);
  return failed || !run ? 1 : 0;
}

}  // namespace pythia
