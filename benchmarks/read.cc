// How often a second can this machine read so many bytes? read BYTES THREADS prints it.
//
// Each thread adds up its part of one array, over and over for a tenth of a second; the median of five such spans.
// Nothing is shared and nobody waits, so it is the most that a step which has to read as many bytes could do. The array is in
// pages of 2 MB where the system has them: in small ones, scattered over memory, one thread reads half as fast, and slower than
// weights are read from a file that was written in large pieces.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

uint64_t sum(const uint64_t* data, size_t count) {
  uint64_t lanes[32] = {};
  size_t i = 0;
  for (; i + 32 <= count; i += 32)
    for (size_t lane = 0; lane < 32; ++lane) lanes[lane] += data[i + lane];
  uint64_t total = 0;
  for (; i < count; ++i) total += data[i];
  for (uint64_t lane : lanes) total += lane;
  return total;
}

double passes_per_second(const uint64_t* data, size_t size, unsigned threads) {
  using Clock = std::chrono::steady_clock;
  std::atomic<uint64_t> kept{0};
  std::vector<double> found(threads);
  std::vector<std::thread> team;
  const auto began = Clock::now();
  for (unsigned t = 0; t < threads; ++t)
    team.emplace_back([&, t] {
      const size_t from = size * t / threads, to = size * (t + 1) / threads;
      size_t passes = 0;
      std::chrono::duration<double> spent{};
      do {
        kept += sum(data + from, to - from);
        ++passes;
        spent = Clock::now() - began;
      } while (spent.count() < 0.1);
      found[t] = passes / spent.count();
    });
  for (auto& thread : team) thread.join();
  if (kept == 1) std::puts("");  // what was summed is used
  double total = 0;
  for (double one : found) total += one;
  return total / threads;
}

}  // namespace

int main(int count, char** given) {
  if (count != 3) return 2;
  constexpr size_t kPage = size_t(2) << 20;
  const size_t bytes = std::strtoull(given[1], nullptr, 10), whole = (bytes + kPage - 1) / kPage * kPage;
  void* data = std::aligned_alloc(kPage, whole);
  if (!data) return 1;
#ifdef __linux__
  madvise(data, whole, MADV_HUGEPAGE);
#endif
  std::memset(data, 1, whole);
  const unsigned threads = std::strtoul(given[2], nullptr, 10);
  std::vector<double> spans;
  for (int i = 0; i < 5; ++i) spans.push_back(passes_per_second(static_cast<uint64_t*>(data), bytes / 8, threads));
  std::sort(spans.begin(), spans.end());
  std::printf("%.3f\n", spans[2]);
}
