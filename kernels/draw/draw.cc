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

// A class of weights: from `least` on, below `below`.
struct Class {
  float least, below;
  bool holds(float weight) const { return (weight >= least) & (weight < below); }
};

// All tokens. Most draws fall on the first few. Else what weighs a given sum is sought by classes of weights: eight sums in one
// pass say in which class it is reached, and only what is in there is copied, divided again, and sorted once it is little.
class Weighed {
 public:
  Weighed(const Drawing& d, const Version& version) : d_(d), version_(version) {
    thread_local std::vector<float> memory;
    memory.resize(2 * size_t(d.count)), weights_ = memory.data(), some_ = weights_ + d.count;
    thread_local std::vector<int64_t> tokens;
    tokens.resize(size_t(d.count)), tokens_ = tokens.data();
    total_ = version.exponentials(d.logits, d.count, factor(d), weights_);
  }

  double total() const { return total_; }  // NaN: a logit is not finite

  Reached reach(double mass, Candidates& found) {
    constexpr float kHeavy = 0.1f, kMost = 1.0001f;  // the likeliest's weight is 1
    int64_t count = 0;
    double sum = 0;
    if (!counted_) {
      count = copy(weights_, d_.count, {kHeavy, kMost}, [](int64_t i) { return i; });
      for (int64_t i = 0; i < count; ++i) sum += double(some_[i]);
    }
    if (sum > mass * (1 + 1e-9)) {
      sum = 0;
    } else {
      if (!counted_) version_.masses(weights_, d_.count, kFirst, sums_), counted_ = true;
      Class in{std::numeric_limits<float>::min(), kMost};  // what weighs 0 is never drawn
      sum = 0;
      count = narrow(weights_, d_.count, kFirst, sums_, mass, in, sum, [](int64_t i) { return i; });
      for (int64_t before = d_.count; count > kFew && count < before;) {
        const float by = std::pow(in.least / in.below, 1.0f / (kLeasts + 1));
        float least[kLeasts];
        double sums[kLeasts];
        for (int j = 0; j < kLeasts; ++j) least[j] = (j ? least[j - 1] : in.below) * by;
        version_.masses(some_, before = count, least, sums);
        count = narrow(some_, count, least, sums, mass, in, sum, [this](int64_t i) { return tokens_[i]; });
      }
      sum = version_.mass(weights_, d_.count, in.below);
    }
    found.clear();
    for (int64_t i = 0; i < count; ++i) found.push_back({d_.logits[tokens_[i]], some_[i], tokens_[i]});
    return pythia::reach(found, mass, sum);
  }

 private:
  static constexpr int64_t kFew = 48;
  static constexpr float kFirst[kLeasts] = {0.4f, 0.13f, 0.04f, 0.013f, 4e-3f, 1e-3f, 1e-4f, 1e-6f};

  // Copies what is in a class to the front of some_ and tokens_; returns how many those are.
  template <typename Token>
  int64_t copy(const float* weights, int64_t count, const Class& in, Token token) {
    constexpr int64_t kRun = 64;
    int64_t found = 0;
    for (int64_t begin = 0; begin < count; begin += kRun) {
      const int64_t end = std::min(begin + kRun, count);
      uint32_t some = 0;  // a compiler makes vectors of this test
      for (int64_t i = begin; i < end; ++i) some |= uint32_t(in.holds(weights[i]));
      for (int64_t i = begin; some && i < end; ++i) {  // each is written, and counted if it is wanted: no branch to guess
        const float w = weights[i];
        some_[found] = w, tokens_[found] = token(i), found += in.holds(w);
      }
    }
    return found;
  }

  // Makes `in` the class among its parts in which `mass` is reached, adds to `sum` what is heavier, and copies what is in it.
  template <typename Token>
  int64_t narrow(const float* weights, int64_t count, const float* least, const double* sums, double mass, Class& in, double& sum,
                 Token token) {
    const auto part = [&](int j) { return Class{j < kLeasts ? least[j] : in.least, j ? least[j - 1] : in.below}; };
    int j = 0;
    while (j < kLeasts && !(sum + sums[j] > mass)) ++j;
    if (j == kLeasts)  // the sums may fall short by a rounding: of classes with something in them the last
      while (j && std::none_of(weights, weights + count, [&](float w) { return part(j).holds(w); })) --j;
    if (j) sum += sums[j - 1];
    in = part(j);
    return copy(weights, count, in, token);
  }

  const Drawing& d_;
  const Version& version_;
  float *weights_, *some_;
  int64_t* tokens_;
  double total_, sums_[kLeasts];
  bool counted_ = false;
};
constexpr float Weighed::kFirst[];

bool finite(const Drawing& d) {
  uint32_t odd = 0;
  for (int64_t i = 0; i < d.count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, d.logits + i, sizeof bits);
    odd |= uint32_t(int32_t(bits & 0x7fffffff) > 0x7f7fffff);
  }
  return !odd;
}

double at_least(double mass) { return std::nextafter(mass, -1.0); }  // what is more than this is at least `mass`

}  // namespace

int64_t draw(const Drawing& d, const Version& version) {
  thread_local Candidates some;
  const double share = d.top_p * (1 - 1e-12);
  if (!d.top_k || d.top_k >= d.count) {
    Weighed all(d, version);
    if (all.total() != all.total()) return kNotFinite;
    if (!(d.top_p < 1)) return all.reach(d.u * all.total(), some).token;
    const Reached kept = all.reach(at_least(share * all.total()), some);
    const int64_t token = all.reach(d.u * kept.sum, some).token;
    const auto place = [&](int64_t of) { return Candidate{d.logits[of], 0, of}; };
    return before(place(kept.token), place(token)) ? kept.token : token;  // no rounding leads to what top_p leaves out
  }
  if (!finite(d)) return kNotFinite;
  double total = likeliest(d, d.top_k, version, some);
  if (d.top_p < 1) {
    const Reached kept = reach(some, at_least(share * total));
    some.resize(kept.count), total = kept.sum;
  }
  return reach(some, d.u * total).token;
}

}  // namespace pythia
