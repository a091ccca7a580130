// Slow and obvious, in double: what every other version is checked against.
#include <cmath>
#include <limits>

#include "elementwise.h"

namespace pythia {

void normalize_reference(const Normalization& norm) {
  for (int64_t r = 0; r < norm.rows; ++r) {
    const float* x = norm.x + r * norm.width;
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < norm.width; ++i) mean += x[i] / double(norm.width);
    for (int64_t i = 0; i < norm.width; ++i) variance += (x[i] - mean) * (x[i] - mean) / double(norm.width);
    for (int which = 0; which < norm.count; ++which)
      for (int64_t i = 0; i < norm.width; ++i)
        norm.y[which][r * norm.width + i] = float(
            (x[i] - mean) / std::sqrt(variance + double(norm.epsilon)) * norm.scale[which][i] + norm.shift[which][i]);
  }
}

void activate_reference(Activation which, float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const double x = values[i];
    double y = 0;
    switch (which) {
      case Activation::kGelu: y = x * std::erfc(-x / std::sqrt(2.0)) / 2; break;
      case Activation::kGeluTanh:
        y = x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))) / 2;
        break;
      case Activation::kRelu: y = x < 0 ? 0 : x; break;
      case Activation::kRelu2: y = x < 0 ? 0 : x * x; break;
      case Activation::kSilu: y = x / (1 + std::exp(-x)); break;
      case Activation::kMish: y = x * std::tanh(std::log1p(std::exp(x))); break;
    }
    values[i] = float(y);
  }
}

double exponentials_reference(const float* x, int64_t count, float by, float* y) {
  double most = double(x[0]), total = 0;
  for (int64_t i = 0; i < count; ++i)
    if (!std::isfinite(x[i])) return std::numeric_limits<double>::quiet_NaN();
  for (int64_t i = 1; i < count; ++i) most = std::fmax(most, double(x[i]));
  for (int64_t i = 0; i < count; ++i) y[i] = float(std::exp((double(x[i]) - most) * double(by))), total += double(y[i]);
  return total;
}

void masses_reference(const float* weights, int64_t count, const float least[kLeasts], double sums[kLeasts]) {
  for (int j = 0; j < kLeasts; ++j) sums[j] = mass_reference(weights, count, least[j]);
}

double mass_reference(const float* weights, int64_t count, float least) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += weights[i] >= least ? double(weights[i]) : 0;
  return sum;
}

}  // namespace pythia
