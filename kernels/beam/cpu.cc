// The beam on a CPU; compiled once for each instruction set, into the namespace PYTHIA_ISA. Choosing, the roundings of a
// row lie side by side in the lanes of vectors; what each is owed lies together, since it is copied from its parent's.
// Every version does the same operations on the same numbers: none fuses them, so that codes do not depend on the
// processor.
#include "beam.h"

#include <utility>

#include "../vector.h"

namespace pythia {
namespace PYTHIA_ISA {
namespace {

constexpr int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }
constexpr int64_t kWidest = kBeamWidth + kLanes, kLongest = padded(kBeamPlaces);  // with lanes that are left over

using Owed = float[kBeamWidth][kLongest];

struct alignas(64) Row {
  Owed owed[2];  // before and after a place, by turns
  float cost[kWidest];
  float errors[kBeamPlaces][kBeamWidth];  // of each place, and of each rounding that came of it
  uint8_t codes[kBeamPlaces][kBeamWidth], parents[kBeamPlaces][kBeamWidth];
};

// Both codes of every rounding: what they cost, and the error they make.
struct alignas(64) Choices {
  float cost[2 * kWidest], error[2 * kWidest], code[2 * kWidest];
};

void look(const Beam& b, const Row& row, const Owed& owed, int64_t r, int64_t k, Choices& found) {
  const int64_t here = k * b.row_stride + r, W = b.width;
  const Floats pivot = broadcast(b.factor[k * b.factor_stride + k]), top = broadcast(float(b.top)), none = broadcast(INFINITY);
  const Floats free = broadcast(b.free[here]), scale = broadcast(b.scale[here]), zero = broadcast(b.zero[here]);
  Choices second;
  alignas(64) float owed_here[kWidest] = {};
  for (int64_t s = 0; s < W; ++s) owed_here[s] = owed[s][k];
  for (int64_t s = 0; s < W; s += kLanes) {
    const Floats target = load(owed_here + s) / pivot + free, wanted = target / scale + zero;
    const Floats near = round(min(max(wanted, broadcast(0)), top));
    const Floats other = min(max(wanted > near ? near + broadcast(1) : near - broadcast(1), broadcast(0)), top);
    const Floats value = (near - zero) * scale, other_value = (other - zero) * scale;
    const Floats lost = (target - value) * pivot, other_lost = (target - other_value) * pivot, cost = load(row.cost + s);
    // min: a NaN becomes infinite.
    store(found.cost + s, min(lost * lost + cost, none)), store(found.error + s, free - value), store(found.code + s, near);
    // No second code at the end of the grid, nor to one that is exact.
    const Floats other_cost = ((near == other) | (near == wanted)) ? none : min(other_lost * other_lost + cost, none);
    store(second.cost + s, other_cost), store(second.error + s, free - other_value), store(second.code + s, other);
  }
  const size_t bytes = size_t(W) * sizeof(float);
  std::memcpy(found.cost + W, second.cost, bytes);
  std::memcpy(found.error + W, second.error, bytes);
  std::memcpy(found.code + W, second.code, bytes);
}

// The place of each choice in the order of their costs; of equal ones the earlier comes first.
void rank(const Choices& found, int64_t count, int32_t* ranks) {
  Ints lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  for (int64_t i = 0; i < count; i += kLanes) {
    const Floats cost = load(found.cost + i);
    const int64_t within = count < i + kLanes ? count : i + kLanes;
    Ints place = {};
    int64_t j = 0;
    for (; j < i; ++j) place -= broadcast(found.cost[j]) <= cost;
    for (; j < within; ++j) {
      const Floats other = broadcast(found.cost[j]);
      place -= (other < cost) | ((other == cost) & (lane > int32_t(j - i)));
    }
    for (; j < count; ++j) place -= broadcast(found.cost[j]) < cost;
    std::memcpy(ranks + i, &place, sizeof place);
  }
}

// Rounds place k; `factor` is its row of the factor, filled up. False: no choice has a finite cost.
bool take(const Beam& b, const float* factor, Row& row, const Owed& owed, Owed& next, int64_t r, int64_t k) {
  Choices found;
  int32_t ranks[2 * kWidest], chosen[2 * kWidest];
  const int64_t W = b.width;
  look(b, row, owed, r, k, found);
  rank(found, 2 * W, ranks);
  chosen[0] = 0;  // GCC does not know that there is a choice
  for (int64_t i = 0; i < 2 * W; ++i) chosen[ranks[i]] = int32_t(i);
  const float least = found.cost[chosen[0]];
  for (int64_t s = 0; s < W; ++s) {
    const int64_t i = chosen[s], parent = i < W ? i : i - W;
    const Floats error = broadcast(found.error[i]);
    for (int64_t j = 0; j < k; j += kLanes) store(next[s] + j, load(owed[parent] + j) + error * load(factor + j));
    row.cost[s] = found.cost[i] - least;
    row.errors[k][s] = found.error[i], row.codes[k][s] = uint8_t(found.code[i]), row.parents[k][s] = uint8_t(parent);
  }
  return least - least == 0;  // of an infinite one that is NaN
}

// The columns apart follow their roundings.
template <typename T>
void follow(const Beam& b, T* kept, const int64_t* origin, T* before) {
  const size_t bytes = size_t(b.apart) * sizeof(T);
  T* apart = kept + b.first + b.places;
  for (int64_t s = 0; s < b.width; ++s) std::memcpy(before + s * b.apart, apart + s * b.window, bytes);
  for (int64_t s = 0; s < b.width; ++s)
    if (origin[s] != s) std::memcpy(apart + s * b.window, before + origin[s] * b.apart, bytes);
}

}  // namespace

bool beam(const Beam& b) {
  const int64_t W = b.width, m = b.places;
  float errors_before[kBeamWidth * kBeamApart], factor[kBeamPlaces][kLongest] = {};
  uint8_t codes_before[kBeamWidth * kBeamApart];
  for (int64_t i = 0; i < m; ++i) std::memcpy(factor[i], b.factor + i * b.factor_stride, size_t(i) * sizeof(float));
  Row row{};
  bool finite = true;
  for (int64_t r = 0; r < b.rows; ++r) {
    float *cost = b.cost + r * W, *errors = b.errors + r * W * b.window;
    uint8_t* codes = b.codes + r * W * b.window;
    Owed *owed = &row.owed[0], *next = &row.owed[1];
    std::memcpy(row.cost, cost, size_t(W) * sizeof(float));
    float settled[kBeamPlaces];
    for (int64_t i = 0; i < m; ++i) settled[i] = b.settled[i * b.row_stride + r];
    for (int64_t s = 0; s < W; ++s)
      for (int64_t i = 0; i < m; ++i) (*owed)[s][i] = b.owed[(r * W + s) * m + i] + settled[i];
    for (int64_t k = m - 1; k >= 0; --k) {
      finite &= take(b, factor[k], row, *owed, *next, r, k);
      std::swap(owed, next);
    }
    std::memcpy(cost, row.cost, size_t(W) * sizeof(float));
    int64_t origin[kBeamWidth];  // where it was, what the block ends with
    bool moved = false;
    for (int64_t s = 0; s < W; ++s) {
      int64_t from = s;
      for (int64_t i = 0; i < m; ++i) {
        errors[s * b.window + b.first + i] = row.errors[i][from];
        codes[s * b.window + b.first + i] = row.codes[i][from];
        from = row.parents[i][from];
      }
      origin[s] = from, moved |= from != s;
    }
    if (moved && b.apart) {
      follow(b, errors, origin, errors_before);
      follow(b, codes, origin, codes_before);
    }
  }
  return finite;
}

}  // namespace PYTHIA_ISA
}  // namespace pythia
