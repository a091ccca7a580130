// The beam, slow and obvious: one row, one place, one rounding after the other.
#include <algorithm>
#include <cmath>
#include <vector>

#include "beam.h"

namespace pythia {
namespace {

struct Choice {
  float cost, error;
  int64_t code, parent, index;
};

struct Rounding {
  float cost;
  std::vector<float> owed, errors;    // of each place of the block; errors are there once it is rounded
  std::vector<uint8_t> codes;
  std::vector<float> errors_before;   // of the columns apart
  std::vector<uint8_t> codes_before;
};

// False: at some place no choice has a finite cost.
bool row(const Beam& b, int64_t r) {
  const int64_t W = b.width, m = b.places;
  bool finite = true;
  std::vector<Rounding> carried;
  for (int64_t s = 0; s < W; ++s) {
    const int64_t at = r * W + s;
    const float* errors = b.errors + at * b.window + b.first + m;
    const uint8_t* codes = b.codes + at * b.window + b.first + m;
    Rounding one{b.cost[at], {}, std::vector<float>(size_t(m)), std::vector<uint8_t>(size_t(m)),
                 {errors, errors + b.apart}, {codes, codes + b.apart}};
    for (int64_t i = 0; i < m; ++i) one.owed.push_back(b.owed[at * m + i] + b.settled[i * b.row_stride + r]);
    carried.push_back(one);
  }
  for (int64_t k = m - 1; k >= 0; --k) {
    const float* L = b.factor + k * b.factor_stride;
    const int64_t here = k * b.row_stride + r;
    const float free = b.free[here], scale = b.scale[here], zero = b.zero[here], pivot = L[k], top = float(b.top);
    std::vector<Choice> choices(size_t(2 * W));
    for (int64_t s = 0; s < W; ++s) {
      const float target = carried[size_t(s)].owed[size_t(k)] / pivot + free, wanted = target / scale + zero;
      const float near = std::nearbyint(std::min(std::max(0.0f, wanted), top));  // a NaN becomes 0
      const float other = std::min(std::max(wanted > near ? near + 1 : near - 1, 0.0f), top);
      for (int64_t i : {s, W + s}) {
        const float code = i < W ? near : other, value = (code - zero) * scale, lost = (target - value) * pivot;
        // No second code at the end of the grid, nor to one that is exact.
        const bool none = i >= W && (near == other || near == wanted);
        const float cost = std::min(INFINITY, lost * lost + carried[size_t(s)].cost);  // a NaN becomes infinite
        choices[size_t(i)] = {none ? INFINITY : cost, free - value, int64_t(code), s, i};
      }
    }
    std::sort(choices.begin(), choices.end(), [](const Choice& x, const Choice& y) {
      return x.cost != y.cost ? x.cost < y.cost : x.index < y.index;
    });
    finite &= std::isfinite(choices[0].cost);
    std::vector<Rounding> next;
    for (int64_t s = 0; s < W; ++s) {
      const Choice& choice = choices[size_t(s)];
      Rounding one = carried[size_t(choice.parent)];
      one.cost = choice.cost - choices[0].cost;
      one.errors[size_t(k)] = choice.error, one.codes[size_t(k)] = uint8_t(choice.code);
      for (int64_t i = 0; i < k; ++i) one.owed[size_t(i)] += choice.error * L[i];
      next.push_back(one);
    }
    carried = next;
  }
  for (int64_t s = 0; s < W; ++s) {
    const int64_t at = r * W + s;
    const Rounding& one = carried[size_t(s)];
    b.cost[at] = one.cost;
    float* errors = std::copy(one.errors.begin(), one.errors.end(), b.errors + at * b.window + b.first);
    std::copy(one.errors_before.begin(), one.errors_before.end(), errors);
    uint8_t* codes = std::copy(one.codes.begin(), one.codes.end(), b.codes + at * b.window + b.first);
    std::copy(one.codes_before.begin(), one.codes_before.end(), codes);
  }
  return finite;
}

}  // namespace

bool beam_reference(const Beam& b) {
  bool finite = true;
  for (int64_t r = 0; r < b.rows; ++r) finite &= row(b, r);
  return finite;
}

}  // namespace pythia
