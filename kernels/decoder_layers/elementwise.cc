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

// How much of a standard normal distribution lies below x, to 3e-7: half of 1 + erf(x / sqrt(2)).
// erf is odd, so that half of it is x P(x^2) / Q(x^2). These P and Q have the least largest error times max(1, |x|) up to
// 5.7 (4e-8; fitted in float64 by least squares whose weights follow the errors). All coefficients are positive: no sum
// cancels. What lies below -5.6 is less than 1.1e-8, and counts as nothing.
inline Floats normal_below(Floats x) {
  const Floats near = max(min(x, broadcast(5.7f)), broadcast(-5.7f)), u = near * near;
  Floats p = broadcast(2.12310635e-8f), q = broadcast(1.17110554e-6f);
  p = fmadd(p, u, broadcast(6.59267616e-6f)), q = fmadd(q, u, broadcast(8.21887269e-5f));
  p = fmadd(p, u, broadcast(1.94340193e-4f)), q = fmadd(q, u, broadcast(2.02796044e-3f));
  p = fmadd(p, u, broadcast(4.83188491e-3f)), q = fmadd(q, u, broadcast(3.00516708e-2f));
  p = fmadd(p, u, broadcast(3.62822634e-2f)), q = fmadd(q, u, broadcast(2.57609704e-1f));
  p = fmadd(p, u, broadcast(3.98942056e-1f)), q = fmadd(q, u, broadcast(1.0f));
  return (Floats)(~(x < -5.6f) & (Ints)fmadd(near, p / q, broadcast(0.5f)));
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

namespace {
constexpr int64_t kRun = 64 * kLanes;  // as many float32 sums of a lane lose little
}

double exponentials(const float* x, int64_t n, float by, float* y) {
  Floats largest = broadcast(x[0]);
  Ints odd = {};  // not 0 where a number was not finite
  bool finite = true;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Floats v = load(x + i);
    largest = max(v, largest);
    odd |= ((Ints)v & 0x7fffffff) > 0x7f7fffff;
  }
  float most = reduce_max(largest);
  for (; i < n; ++i) most = x[i] > most ? x[i] : most, finite &= __builtin_fabsf(x[i]) <= __FLT_MAX__;
  for (int lane = 0; lane < kLanes; ++lane) finite &= !odd[lane];
  if (!finite) return double(__builtin_nanf(""));
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kRun) {
    const int64_t end = min(begin + kRun, n);
    Floats sum = {};
    for (i = begin; i + kLanes <= end; i += kLanes) {
      const Floats e = exp((load(x + i) - most) * by);
      store(y + i, e);
      sum += e;
    }
    total += double(reduce_add(sum));
    if (i == end) continue;
    float rest[kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) rest[lane] = i + lane < end ? x[i + lane] : most;
    store(rest, exp((load(rest) - most) * by));
    for (int64_t lane = 0; i + lane < end; ++lane) y[i + lane] = rest[lane], total += double(rest[lane]);
  }
  return total;
}

void masses(const float* weights, int64_t n, const float least[kLeasts], double sums[kLeasts]) {
  for (int j = 0; j < kLeasts; ++j) sums[j] = 0;
  for (int64_t begin = 0; begin < n; begin += kRun) {
    const int64_t end = min(begin + kRun, n);
    Floats some[kLeasts] = {};
    const auto add = [&](Floats w) {
      for (int j = 0; j < kLeasts; ++j) some[j] += (Floats)((Ints)w & (w >= least[j]));
    };
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) add(load(weights + i));
    if (i < end) {
      float rest[kLanes] = {};
      std::memcpy(rest, weights + i, size_t(end - i) * sizeof(float));
      add(load(rest));
    }
    for (int j = 0; j < kLeasts; ++j) sums[j] += double(reduce_add(some[j]));
  }
}

double mass(const float* weights, int64_t n, float least) {
  constexpr int kHalf = kLanes / 2;  // floats, which are a whole vector of doubles
  typedef float Half __attribute__((vector_size(4 * kHalf)));
  typedef int32_t Bits __attribute__((vector_size(4 * kHalf)));
  typedef double Doubles __attribute__((vector_size(8 * kHalf)));
  constexpr int kApart = 4;  // sums, or each would wait for the one before it
  Doubles sums[kApart] = {};
  int64_t i = 0;
  for (; i + kApart * kHalf <= n; i += kApart * kHalf)
    for (int j = 0; j < kApart; ++j) {
      Half w;
      std::memcpy(&w, weights + i + j * kHalf, sizeof w);
      sums[j] += __builtin_convertvector((Half)((Bits)w & (w >= least)), Doubles);
    }
  double sum = 0;
  for (int lane = 0; lane < kHalf; ++lane) sum += (sums[0][lane] + sums[1][lane]) + (sums[2][lane] + sums[3][lane]);
  for (; i < n; ++i) sum += weights[i] >= least ? double(weights[i]) : 0;
  return sum;
}

}  // namespace PYTHIA_ISA
}  // namespace pythia
