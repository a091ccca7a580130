#include "draw.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace pythia {
namespace {

// Weights, beside the likeliest's, down to which tokens are sorted: most draws fall on the first few.
constexpr float kLeast[] = {1e-1f, 1e-3f, 1e-5f, 0};

struct Head {
  std::vector<int64_t> tokens;  // likeliest first
  double mass = 0;
};

void gather(const float* weights, int64_t count, float least, Head& head) {
  constexpr int64_t kRun = 64;
  int32_t floor;
  std::memcpy(&floor, &least, sizeof floor);
  head.tokens.clear(), head.mass = 0;
  for (int64_t begin = 0; begin < count; begin += kRun) {
    const int64_t end = std::min(begin + kRun, count);
    uint32_t some = 0;  // by the bits of numbers that are not negative, which order as they do: a compiler makes vectors of it
    for (int64_t i = begin; i < end; ++i) {
      int32_t bits;
      std::memcpy(&bits, weights + i, sizeof bits);
      some |= uint32_t(bits >= floor);
    }
    for (int64_t i = begin; some && i < end; ++i)
      if (weights[i] >= least) head.tokens.push_back(i), head.mass += double(weights[i]);
  }
}

// The likeliest tokens: at least `fewest`, that weigh at least `mass`; or all.
Head head_of(const Drawing& d, const float* weights, int64_t fewest, double mass) {
  Head head;
  for (float least : kLeast) {
    gather(weights, d.count, least, head);
    if (int64_t(head.tokens.size()) >= fewest && head.mass > mass * (1 + 1e-9)) break;
  }
  std::sort(head.tokens.begin(), head.tokens.end(), [&](int64_t a, int64_t b) {
    return d.logits[a] != d.logits[b] ? d.logits[a] > d.logits[b] : a < b;
  });
  return head;
}

}  // namespace

int64_t draw(const Drawing& d, const Version& version) {
  thread_local std::vector<float> weights;
  weights.resize(size_t(d.count));
  // Beyond 1e30 all but the likeliest weigh nothing.
  double total = version.exponentials(d.logits, d.count, float(std::min(1 / d.temperature, 1e30)), weights.data());
  const int64_t most = d.top_k && d.top_k < d.count ? d.top_k : d.count;
  const auto weight = [&](int64_t token) { return double(weights[size_t(token)]); };
  Head head;
  if (most < d.count) {
    head = head_of(d, weights.data(), most, 0);
    head.tokens.resize(size_t(most));
    total = 0;
    for (int64_t token : head.tokens) total += weight(token);
  } else {
    head = head_of(d, weights.data(), 1, std::min(d.top_p < 1 ? d.top_p : d.u, 1.0) * total);
  }
  if (d.top_p < 1) {
    double mass = 0;
    size_t kept = 0;
    while (kept < head.tokens.size() && mass < d.top_p * (1 - 1e-12) * total) mass += weight(head.tokens[kept++]);
    head.tokens.resize(std::max<size_t>(kept, 1)), total = kept ? mass : weight(head.tokens[0]);
  }
  double mass = 0;
  for (int64_t token : head.tokens)
    if ((mass += weight(token)) > d.u * total) return token;
  return head.tokens.back();  // the sum may fall short by a rounding
}

}  // namespace pythia
