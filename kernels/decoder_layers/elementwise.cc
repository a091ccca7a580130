// Normalisation and activations on a CPU; compiled once for each instruction set, into the namespace PYTHIA_ISA.
#include "elementwise.h"

#include "../vector.h"

namespace pythia {
namespace PYTHIA_ISA {
namespace {

// Calls f(vector of x, place) for all of a row; of what is left over the last lanes are zeros.
template <typename F>
inline void each(const float* x, int64_t n, F f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(load(x + i), i);
  if (i == n) return;
  float rest[kLanes] = {};
  std::memcpy(rest, x + i, size_t(n - i) * sizeof(float));
  f(load(rest), i);
}

// 1 / (1 + e^-x).
inline Floats sigmoid(Floats x) {
  const Ints negative = x < 0.0f;
  const Floats e = exp(negative ? x : -x);
  return (negative ? e : broadcast(1.0f)) * reciprocal(1.0f + e);
}

// How much of a standard normal distribution lies below x, to 4e-7 of it.
// erfc(z) = t e^(-z^2 + p(t)) with t = 1 / (1 + z / 2): Numerical Recipes (third edition, 6.2.2), relative error 1.2e-7.
inline Floats normal_below(Floats x) {
  const Ints negative = x < 0.0f;
  const Floats z = min((negative ? -x : x) * 0.70710678118654752f, broadcast(20.0f));  // beyond it nothing is left
  const Floats t = reciprocal(1.0f + 0.5f * z);
  Floats p = broadcast(0.17087277f);
  p = fmadd(p, t, broadcast(-0.82215223f));
  p = fmadd(p, t, broadcast(1.48851587f));
  p = fmadd(p, t, broadcast(-1.13520398f));
  p = fmadd(p, t, broadcast(0.27886807f));
  p = fmadd(p, t, broadcast(-0.18628806f));
  p = fmadd(p, t, broadcast(0.09678418f));
  p = fmadd(p, t, broadcast(0.37409196f));
  p = fmadd(p, t, broadcast(1.00002368f));
  p = fmadd(p, t, broadcast(-1.26551223f));
  const Floats tail = 0.5f * t * exp(p - z * z);
  return negative ? tail : 1.0f - tail;
}

template <Activation kWhich>
inline Floats activated(Floats x) {
  if (kWhich == Activation::kGelu) return x * normal_below(x);
  if (kWhich == Activation::kGeluTanh)  // (1 + tanh(a)) / 2 is the sigmoid of 2 a
    return x * sigmoid(x * 1.5957691216057308f * fmadd(x * x, broadcast(0.044715f), broadcast(1.0f)));
  if (kWhich == Activation::kSilu) return x * sigmoid(x);
  if (kWhich == Activation::kMish) {  // tanh(log(1 + e^x)) by the smaller of e^x and e^-x
    const Ints negative = x < 0.0f;
    const Floats e = exp(negative ? x : -x), own = negative ? e * (e + 2.0f) : 1.0f + 2.0f * e;
    return x * (own * reciprocal(own + (negative ? broadcast(2.0f) : 2.0f * e * e)));
  }
  const Floats positive = x < 0.0f ? Floats{} : x;  // NaN stays
  return kWhich == Activation::kRelu ? positive : positive * positive;
}

template <Activation kWhich>
void activate_all(float* x, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, activated<kWhich>(load(x + i)));
  if (i == n) return;
  float rest[kLanes] = {};
  std::memcpy(rest, x + i, size_t(n - i) * sizeof(float));
  store(rest, activated<kWhich>(load(rest)));
  std::memcpy(x + i, rest, size_t(n - i) * sizeof(float));
}

}  // namespace

void normalize(const Normalization& norm) {
  const int64_t n = norm.width;
  for (int64_t r = 0; r < norm.rows; ++r) {
    const float* x = norm.x + r * n;
    Floats sum = {};
    each(x, n, [&](Floats v, int64_t) { sum += v; });
    const float mean = reduce_add(sum) / float(n);
    Floats squares = {};
    each(x, n, [&](Floats v, int64_t i) {
      Floats apart = v - mean;
      if (n - i < kLanes)
        for (int64_t lane = n - i; lane < kLanes; ++lane) apart[lane] = 0;
      squares = fmadd(apart, apart, squares);
    });
    const float by = 1.0f / __builtin_sqrtf(reduce_add(squares) / float(n) + norm.epsilon);
    for (int which = 0; which < norm.count; ++which) {
      const float *scale = norm.scale[which], *shift = norm.shift[which];
      float* y = norm.y[which] + r * n;
      int64_t i = 0;
      for (; i + kLanes <= n; i += kLanes)
        store(y + i, fmadd((load(x + i) - mean) * by, load(scale + i), load(shift + i)));
      for (; i < n; ++i) y[i] = (x[i] - mean) * by * scale[i] + shift[i];
    }
  }
}

void activate(Activation which, float* x, int64_t n) {
  switch (which) {
    case Activation::kGelu: return activate_all<Activation::kGelu>(x, n);
    case Activation::kGeluTanh: return activate_all<Activation::kGeluTanh>(x, n);
    case Activation::kRelu: return activate_all<Activation::kRelu>(x, n);
    case Activation::kRelu2: return activate_all<Activation::kRelu2>(x, n);
    case Activation::kSilu: return activate_all<Activation::kSilu>(x, n);
    case Activation::kMish: return activate_all<Activation::kMish>(x, n);
  }
}

}  // namespace PYTHIA_ISA
}  // namespace pythia
