#include "draw.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace pythia {
namespace {

struct Candidate {
  float logit, weight;
  int64_t token;
};
using Candidates = std::vector<Candidate>;

bool before(const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit > b.logit : a.token < b.token; }

// Calls found(i) for numbers of which `wanted` is true. Whole runs without one are passed over: a compiler makes vectors of
// the test.
template <typename Wanted, typename Found>
void gather(const float* values, int64_t count, Wanted wanted, Found found) {
  constexpr int64_t kRun = 64;
  for (int64_t begin = 0; begin < count; begin += kRun) {
    const int64_t end = std::min(begin + kRun, count);
    uint32_t some = 0;
    for (int64_t i = begin; i < end; ++i) some |= uint32_t(wanted(values[i]));
    for (int64_t i = begin; some && i < end; ++i)
      if (wanted(values[i])) found(i);
  }
}

// A bound from below of the `k`-th largest logit: that of as many groups' largest ones. Each number of a run is in a group
// of its own, so that runs are compared as vectors.
template <int64_t kGroups>
float bound(const Drawing& d, int64_t k) {
  float most[kGroups];
  std::copy(d.logits, d.logits + kGroups, most);
  for (int64_t begin = kGroups; begin + kGroups <= d.count; begin += kGroups)
    for (int64_t i = 0; i < kGroups; ++i) most[i] = d.logits[begin + i] > most[i] ? d.logits[begin + i] : most[i];
  std::nth_element(most, most + k - 1, most + kGroups, [](float a, float b) { return a > b; });
  return most[k - 1];
}
float bound(const Drawing& d, int64_t k) {
  if (k <= 64 && d.count >= 128) return bound<128>(d, k);
  if (k <= 512 && d.count >= 1024) return bound<1024>(d, k);
  return -std::numeric_limits<float>::max();
}

float factor(const Drawing& d) { return float(std::min(1 / d.temperature, 1e30)); }  // beyond 1e30 all but the likeliest weigh nothing

// The `k` likeliest tokens, in any order, and what they weigh. The others are not weighed: the exponential costs most.
double likeliest(const Drawing& d, int64_t k, const Version& version, Candidates& all) {
  all.clear();
  const float least = bound(d, k);
  gather(d.logits, d.count, [&](float x) { return x >= least; }, [&](int64_t i) { all.push_back({d.logits[i], 0, i}); });
  std::nth_element(all.begin(), all.begin() + (k - 1), all.end(), before);
  all.resize(size_t(k));
  thread_local std::vector<float> logits, weights;
  logits.resize(size_t(k)), weights.resize(size_t(k));
  for (size_t i = 0; i < size_t(k); ++i) logits[i] = all[i].logit;
  version.exponentials(logits.data(), k, factor(d), weights.data());
  double total = 0;
  for (size_t i = 0; i < size_t(k); ++i) all[i].weight = weights[i], total += double(weights[i]);
  return total;
}

// Of tokens in their order, the first `count` of which weigh `sum`, with the last of them.
struct Reached {
  size_t count;
  double sum;
  int64_t token;
};

// How many of the candidates it takes to weigh more than `mass`, together with what weighs `sum`; or all. They come first
// then. By halves: no more is sorted than is near the last one.
Reached reach(Candidates& all, double mass, double sum = 0) {
  size_t begin = 0, end = all.size();
  while (end - begin > 32) {
    const size_t middle = (begin + end) / 2;
    std::nth_element(all.begin() + int64_t(begin), all.begin() + int64_t(middle), all.begin() + int64_t(end), before);
    double half = 0;
    for (size_t i = begin; i < middle; ++i) half += double(all[i].weight);
    if (sum + half > mass)
      end = middle;
    else
      sum += half, begin = middle;
  }
  std::sort(all.begin() + int64_t(begin), all.begin() + int64_t(end), before);
  for (; begin < end; ++begin)
    if ((sum += double(all[begin].weight)) > mass) return {begin + 1, sum, all[begin].token};
  return {end, sum, all[end - 1].token};  // the sum may fall short by a rounding
}

// All tokens. Most draws fall on the first few; else they are told apart by classes of weights within a fifth of each
// other or so, and only the class is looked into in which a sum is reached.
class Weighed {
 public:
  Weighed(const Drawing& d, const Version& version) : d_(d) {
    thread_local std::vector<float> memory;
    memory.resize(size_t(d.count)), weights_ = memory.data();
    total_ = version.exponentials(d.logits, d.count, factor(d), weights_);
  }

  double total() const { return total_; }

  Reached reach(double mass, Candidates& some) {
    if (!counted_) {
      constexpr float kHeavy = 0.1f;  // beside the likeliest's weight, which is 1
      const double heavy = take([](float w) { return w >= kHeavy; }, some);
      if (heavy > mass * (1 + 1e-9)) return pythia::reach(some, mass);
      count();
    }
    int64_t c = 0, last = kCount - 1;
    double sum = 0;
    while (last > 0 && masses_[last] == 0) --last;
    for (; c < last && !(sum + masses_[c] > mass); ++c) sum += masses_[c];
    take([&](float w) { return of(w) == c; }, some);
    return pythia::reach(some, mass, sum);
  }

 private:
  static constexpr int64_t kApart = 4;
  static constexpr int32_t kCount = 160;  // down to 2^-40
  static int32_t of(float weight) {
    int32_t bits;
    std::memcpy(&bits, &weight, sizeof bits);
    const int32_t c = (0x3f800000 >> 21) - (bits >> 21);
    return c < 0 ? 0 : c < kCount ? c : kCount - 1;
  }

  template <typename Wanted>
  double take(Wanted wanted, Candidates& some) const {
    double mass = 0;
    some.clear();
    gather(weights_, d_.count, wanted, [&](int64_t i) {
      some.push_back({d_.logits[i], weights_[i], i});
      mass += double(weights_[i]);
    });
    return mass;
  }

  void count() {
    double masses[kApart][kCount] = {};  // of every fourth token, or each sum would wait for the one before it
    int64_t i = 0;
    for (; i + kApart <= d_.count; i += kApart)
      for (int64_t j = 0; j < kApart; ++j) masses[j][of(weights_[i + j])] += double(weights_[i + j]);
    for (; i < d_.count; ++i) masses[0][of(weights_[i])] += double(weights_[i]);
    for (int64_t c = 0; c < kCount; ++c) masses_[c] = (masses[0][c] + masses[1][c]) + (masses[2][c] + masses[3][c]);
    counted_ = true;
  }

  const Drawing& d_;
  float* weights_;
  double total_, masses_[kCount];
  bool counted_ = false;
};

double at_least(double mass) { return std::nextafter(mass, -1.0); }  // what is more than this is at least `mass`

}  // namespace

int64_t draw(const Drawing& d, const Version& version) {
  thread_local Candidates some;
  const double share = d.top_p * (1 - 1e-12);
  if (!d.top_k || d.top_k >= d.count) {
    Weighed all(d, version);
    const double kept = d.top_p < 1 ? all.reach(at_least(share * all.total()), some).sum : all.total();
    return all.reach(d.u * kept, some).token;
  }
  double total = likeliest(d, d.top_k, version, some);
  if (d.top_p < 1) {
    const Reached kept = reach(some, at_least(share * total));
    some.resize(kept.count), total = kept.sum;
  }
  return reach(some, d.u * total).token;
}

}  // namespace pythia
