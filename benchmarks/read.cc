// How often a second can this machine read so many bytes? read BYTES THREADS prints it.
//
// Each thread adds up its part of one array, over and over for a tenth of a second; the median of five such spans.
// Nothing is shared and nobody waits, so it is the most that a step which has to read as many bytes could do.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

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

double passes_per_second(const std::vector<uint64_t>& data, unsigned threads) {
  using Clock = std::chrono::steady_clock;
  std::atomic<uint64_t> kept{0};
  std::vector<double> found(threads);
  std::vector<std::thread> team;
  const auto began = Clock::now();
  for (unsigned t = 0; t < threads; ++t)
    team.emplace_back([&, t] {
      const size_t from = data.size() * t / threads, to = data.size() * (t + 1) / threads;
      size_t passes = 0;
      std::chrono::duration<double> spent{};
      do {
        kept += sum(data.data() + from, to - from);
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
  const std::vector<uint64_t> data(std::strtoull(given[1], nullptr, 10) / 8, 1);
  const unsigned threads = std::strtoul(given[2], nullptr, 10);
  std::vector<double> spans;
  for (int i = 0; i < 5; ++i) spans.push_back(passes_per_second(data, threads));
  std::sort(spans.begin(), spans.end());
  std::printf("%.3f\n", spans[2]);
}
