// Fuzzed products: every version within float32's rounding of the reference. Numbers that are not finite, or whose products
// overflow, stay in their row and their column. A row gives the same bits by itself as among a few.
#include "../native_test.h"

using namespace pythia;

namespace {

bool check(const Version& version, Random& random, size_t i) {
  if (!version.product) return true;
  Product p{};
  p.exact = random.upto(2) == 0;
  p.bits = random.pick({2, 3, 4, 8}), p.block = random.pick({16, 32, 64, 128, 256});
  p.rows = random.pick({1, 2, 3, 4, 5, 6, 7, 9, 12, 15, 16, 17, 33, 70}), p.columns = random.pick({1, 3, 16, 31, 33, 64, 70});
  p.depth = random.pick({1, 16, 100, 256, 512, 768, 1000, 2048});
  if (p.bits == 3) p.depth = random.pick({128, 250, 256, 384, 512, 768, 1000, 2048});
  if (p.bits == 3 && p.numbers() % kNarrow) p.bits = 4;
  // As long as what is read, and no longer.
  const size_t numbers = size_t(p.rows * p.depth), scales = size_t(p.columns * p.blocks());
  const size_t bytes = size_t(p.columns * p.row_bytes()), zeros = size_t(p.columns * p.zero_bytes());
  auto x = random.normal(numbers), scale = random.normal(scales, 0.1f), bias = random.normal(size_t(p.columns));
  std::unique_ptr<uint8_t[]> codes(new uint8_t[bytes]), zero(new uint8_t[zeros]);
  for (size_t j = 0; j < bytes; ++j) codes[j] = uint8_t(random.upto(255));
  for (size_t j = 0; j < zeros; ++j) zero[j] = uint8_t(random.upto(255));
  if (random.upto(1))  // sums at their largest
    std::fill(codes.get(), codes.get() + bytes, uint8_t(random.pick({0, 255})));
  if (random.upto(1)) std::fill(x.get(), x.get() + std::min<int64_t>(p.depth, p.block), 0.0f);
  if (random.upto(9) == 0) x[size_t(random.upto(int64_t(numbers) - 1))] = i % 2 ? NAN : INFINITY;
  int64_t spoilt_row = -1, spoilt_column = -1;
  if (!random.upto(3)) {
    spoilt_row = random.upto(p.rows - 1), spoilt_column = random.upto(p.columns - 1);
    random.spoil(x.get() + spoilt_row * p.depth, size_t(p.depth), 10);
    random.spoil(scale.get() + spoilt_column * p.blocks(), size_t(p.blocks()), 3), bias[size_t(spoilt_column)] = random.hostile();
  }
  p.x = x.get(), p.codes = codes.get(), p.scale = scale.get();
  p.zero = random.upto(1) ? zero.get() : nullptr, p.bias = random.upto(1) ? bias.get() : nullptr;

  const size_t results = size_t(p.rows * p.columns);
  std::unique_ptr<float[]> y(new float[results]), wanted(new float[results]);
  p.y = y.get();
  product(*version.product, p, kTwoThreads);
  p.y = wanted.get();
  product(reference_product, p, kTwoThreads);
  // The largest that one product of this case can be, times the number of sums.
  const double unit = 4.0 * 0.5 * double(1 << p.bits), bound = 3e-7 * unit * std::sqrt(double(p.depth)) + 1e-6;
  bool same = true;
  for (size_t j = 0; j < results; ++j) {
    if (int64_t(j) / p.columns == spoilt_row || int64_t(j) % p.columns == spoilt_column) continue;
    same &= p.exact && !std::isfinite(wanted[j]) ? !std::isfinite(y[j]) : std::isnan(wanted[j]) ? std::isnan(y[j]) : std::fabs(double(y[j]) - wanted[j]) <= bound;
  }
  if (p.rows <= kFewRows && !p.exact) {
    std::unique_ptr<float[]> alone(new float[size_t(p.columns)]);
    const int64_t m = p.rows - 1;
    const float* among = y.get() + m * p.columns;
    p.rows = 1, p.x = x.get() + m * p.depth, p.y = alone.get();
    product(*version.product, p, kTwoThreads);
    for (int64_t n = 0; n < p.columns; ++n) same &= same_number(alone[size_t(n)], among[n]);
  }
  if (!same)
    std::printf("%s: rows %lld, depth %lld, columns %lld, bits %lld, block %lld, zeros %d, bias %d\n", version.name,
                (long long)p.rows, (long long)p.depth, (long long)p.columns, (long long)p.bits, (long long)p.block,
                p.zero != nullptr, p.bias != nullptr);
  return same;
}

}  // namespace

int main(int argc, char** argv) { return run(argc, argv, check); }
