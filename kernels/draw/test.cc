// Fuzzed draws: the token is the one that a plain sum over the whole sorted vocabulary gives, in double, wherever the number
// drawn is not within float32's rounding of a boundary.
#include "draw.h"

#include <numeric>

#include "../native_test.h"

using namespace pythia;

namespace {

bool exponentials(const Version& version, Random& random) {
  const int64_t n = 1 + random.upto(300);
  auto x = random.normal(size_t(n), 10);
  if (!random.upto(3)) x[size_t(random.upto(n - 1))] = random.pick({0, 1}) ? FLT_MAX : -FLT_MAX;
  const float by = random.upto(1) ? 1.0f : random.upto(1) ? 0.3f : 1e30f, most = *std::max_element(x.get(), x.get() + n);
  std::unique_ptr<float[]> y(new float[size_t(n)]);
  const double sum = version.exponentials(x.get(), n, by, y.get());
  double wanted = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double one = std::exp((double(x[size_t(i)]) - double(most)) * double(by));
    if (!(std::fabs(y[size_t(i)] - one) <= 3e-5 * one + 1e-37)) return std::printf("exp is %g, not %g\n", y[size_t(i)], one), false;
    wanted += one;
  }
  float least[kLeasts];
  double sums[kLeasts];
  for (float& t : least) t = y[size_t(random.upto(n - 1))];
  version.masses(y.get(), n, least, sums);
  for (int j = 0; j < kLeasts; ++j) {
    double heavier = 0;
    for (int64_t i = 0; i < n; ++i) heavier += y[size_t(i)] >= least[j] ? double(y[size_t(i)]) : 0;
    if (!(std::fabs(sums[j] - heavier) <= 1e-5 * heavier)) return std::printf("mass %g, not %g\n", sums[j], heavier), false;
    if (!(std::fabs(version.mass(y.get(), n, least[j]) - heavier) <= 1e-14 * heavier)) return std::printf("mass is not %g\n", heavier), false;
  }
  return std::fabs(sum - wanted) <= 3e-5 * wanted;
}

bool check(const Version& version, Random& random, size_t i) {
  if (!exponentials(version, random)) return false;
  const int64_t n = random.pick({1, 2, 40, 1000, 4096, 4099});
  auto x = random.normal(size_t(n), random.pick({1, 4}));
  for (int64_t j = 0; j < n; ++j) x[size_t(j)] = std::nearbyint(x[size_t(j)] * 10) / 10;  // equals are among them
  const double temperatures[] = {1e-300, 0.01, 0.3, 1, 4};
  Drawing d{x.get(), n, temperatures[random.upto(4)], random.upto(1) ? 0 : 1 + random.upto(60), 1, double(random.upto(1 << 20)) / ((1 << 20) + 1)};
  if (random.upto(1)) d.top_p = 0.01 + 0.98 * double(random.upto(1000)) / 1000;
  std::vector<int64_t> order(size_t(n), 0);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return x[size_t(a)] > x[size_t(b)]; });
  if (d.top_k && d.top_k < n) order.resize(size_t(d.top_k));
  std::vector<double> sums;
  for (int64_t token : order)
    sums.push_back((sums.empty() ? 0 : sums.back()) + std::exp((double(x[size_t(token)]) - double(x[size_t(order[0])])) / d.temperature));
  size_t kept = order.size();
  bool near = false;
  if (d.top_p < 1) {
    for (kept = 0; kept < order.size() && sums[kept] < d.top_p * sums.back(); ++kept) {}
    for (double sum : sums) near |= std::fabs(sum / sums.back() - d.top_p) < 1e-5;
    kept = std::min(kept + 1, order.size());
  }
  const double total = sums[kept - 1];
  size_t at = 0;
  while (at + 1 < kept && sums[at] <= d.u * total) ++at;
  for (double sum : sums) near |= std::fabs(sum / total - d.u) < 1e-5;
  const int64_t token = draw(d, version);
  if (!random.upto(9)) {
    float& spoilt = x[size_t(random.upto(n - 1))];
    const float was = spoilt, odd[] = {INFINITY, -INFINITY, NAN, -NAN};
    spoilt = odd[random.upto(3)];
    if (draw(d, version) != kNotFinite) return std::printf("%s: a logit that is not finite\n", version.name), false;
    spoilt = was;
  }
  if (near || token == order[at]) return token >= 0 && token < n;
  return std::printf("%s %zu: token %ld, not %ld\n", version.name, i, long(token), long(order[at])), false;
}

}  // namespace

int main(int argc, char** argv) { return run(argc, argv, check); }
