// Fuzzed blocks: every version's numbers, and those of a GPU's source emulated on a CPU, are the reference's, bit for bit,
// whatever the numbers: infinities, NaN, subnormal ones, and ones whose squares overflow.
#define PYTHIA_EMULATE_CUDA
#include "cuda.cu"

#include "../native_test.h"

using namespace pythia;

namespace {

struct Buffers {
  std::unique_ptr<float[]> free, settled, scale, zero, factor, owed, cost, errors;
  std::unique_ptr<uint8_t[]> codes;
};

bool check(const char* name, bool (*beam)(const Beam&), std::initializer_list<int64_t> places, Random& random) {
  Beam b{};
  b.rows = random.pick({1, 2, 5}), b.places = random.pick(places);
  b.width = random.pick({2, 3, 4, 7, 8, 9, 16, 17, 31, kBeamWidth});
  b.top = random.pick({3, 7, 15, 255}), b.apart = random.pick({0, 1, 40});
  b.first = random.upto(5), b.row_stride = b.rows + random.upto(3), b.factor_stride = b.places + random.upto(3);
  b.window = b.first + b.places + b.apart + random.upto(3);
  const size_t rows = size_t(b.rows * b.width), cells = size_t(b.places * b.row_stride);
  const size_t last = size_t((b.places - 1) * b.row_stride + b.rows), kept = rows * size_t(b.window);
  Buffers x;
  // As long as what is read, and no longer.
  x.free = random.normal(last), x.settled = random.normal(last), x.scale = random.normal(last), x.zero.reset(new float[last]);
  for (size_t i = 0; i < last; ++i)
    x.scale[i] = 0.05f + std::fabs(x.scale[i]), x.zero[i] = float(random.upto(b.top));
  const size_t factors = size_t((b.places - 1) * b.factor_stride + b.places);
  x.factor = random.normal(factors, 0.3f);
  for (int64_t i = 0; i < b.places; ++i) x.factor[size_t(i * b.factor_stride + i)] = 1.0f + 0.1f * float(random.upto(9));
  x.owed = random.normal(rows * size_t(b.places)), x.cost = random.normal(rows);
  const bool fresh = random.upto(1);  // at the beginning there is one rounding; later there may be as many as fit
  for (size_t i = 0; i < rows; ++i)
    x.cost[i] = i % size_t(b.width) == 0 ? 0 : fresh || !random.upto(4) ? INFINITY : std::fabs(x.cost[i]);
  x.errors = random.normal(kept), x.codes.reset(new uint8_t[kept]);
  for (size_t i = 0; i < kept; ++i) x.codes[i] = uint8_t(random.upto(255));
  // A weight that is exact, and one beyond its grid.
  if (random.upto(1)) x.owed[0] = 0, x.settled[0] = 0, x.free[0] = x.scale[0] * (1 - x.zero[0]), x.free[last - 1] = 1e4f;
  (void)cells;
  const bool hostile = !random.upto(2);
  if (hostile) {
    const std::pair<float*, size_t> all[] = {{x.free.get(), last}, {x.settled.get(), last}, {x.scale.get(), last}, {x.zero.get(), last},
                                             {x.factor.get(), factors}, {x.owed.get(), rows * size_t(b.places)}, {x.cost.get(), rows}};
    const int64_t one = random.upto(9);  // one of them, or all
    const size_t every = size_t(random.pick({2, 10, 1000}));
    for (int64_t i = 0; i < 7; ++i)
      if (one == i || one > 6) random.spoil(all[i].first, all[i].second, every);
  }
  b.free = x.free.get(), b.settled = x.settled.get(), b.scale = x.scale.get(), b.zero = x.zero.get();
  b.factor = x.factor.get(), b.owed = x.owed.get();

  const std::vector<float> cost(x.cost.get(), x.cost.get() + rows), errors(x.errors.get(), x.errors.get() + kept);
  const std::vector<uint8_t> codes(x.codes.get(), x.codes.get() + kept);
  b.cost = x.cost.get(), b.errors = x.errors.get(), b.codes = x.codes.get();
  const bool finite = beam(b);
  std::vector<float> wanted_cost = cost, wanted_errors = errors;
  std::vector<uint8_t> wanted_codes = codes;
  b.cost = wanted_cost.data(), b.errors = wanted_errors.data(), b.codes = wanted_codes.data();
  bool same = beam_reference(b) == finite && (finite || hostile);
  for (size_t i = 0; i < rows; ++i) {
    same &= x.cost[i] == wanted_cost[i] || (std::isnan(x.cost[i]) && std::isnan(wanted_cost[i]));
    if (!std::isfinite(wanted_cost[i])) continue;  // what there is not holds anything
    for (size_t j = i * size_t(b.window); j < (i + 1) * size_t(b.window); ++j)
      same &= x.errors[j] == wanted_errors[j] && x.codes[j] == wanted_codes[j];
  }
  if (!same)
    std::printf("%s: rows %lld, places %lld, width %lld, top %lld, apart %lld\n", name, (long long)b.rows,
                (long long)b.places, (long long)b.width, (long long)b.top, (long long)b.apart);
  return same;
}

}  // namespace

int main(int argc, char** argv) {
  const int failed = run(argc, argv, [](const Version& version, Random& random, size_t) {
    return check(version.name, version.beam, {1, 3, 16, 32, kBeamPlaces}, random);
  });
  const auto on_gpu = [](const Beam& b) {
    if (pythia_cuda_beam(&b, nullptr) != 0) std::abort();
    bool finite = true;  // of a row that has no rounding left the least cost is NaN
    for (int64_t i = 0; i < b.rows * b.width; i += b.width) {
      const float* cost = b.cost + i;
      finite &= std::any_of(cost, cost + b.width, [](float c) { return std::isfinite(c); });
    }
    return finite;
  };
  Random random{std::mt19937(argc > 1 ? unsigned(std::atoi(argv[1])) : 0)};
  size_t wrong = 0;
  for (int i = argc > 2 ? std::atoi(argv[2]) : 200; i; --i) wrong += !check("cuda, emulated", on_gpu, {1, 3, 16, 31, 32}, random);
  std::printf("ran: cuda, emulated\n%zu failures\n", wrong);
  return failed || wrong;
}
