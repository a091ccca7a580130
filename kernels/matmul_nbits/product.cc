// What every version of the product shares: how it is handed out.
#include "product.h"

#include "../team.h"

namespace pythia {

int64_t columns_for_a_task(const ProductSteps& steps, const Product& p, const Product* other) {
  const int64_t a_column = p.rows * (p.depth + (other ? other->depth : 0));
  return (steps.worth(p) / a_column + kGrain) / kGrain * kGrain;
}

void product(const ProductSteps& steps, const Product& p, const Parallel& threads) {
  // Fewer multiplications take some ten microseconds. Beside other work the wait for a second thread takes longer.
  constexpr double kWorthSharing = 1 << 20;
  const Parallel& parallel = double(p.rows) * double(p.depth) * double(p.columns) < kWorthSharing ? kAlone : threads;
  struct Job {
    const ProductSteps& steps;
    const Product& p;
    float* memory;
    int64_t share;
  } job{steps, p, scratch(kCall, steps.floats(p)), columns_for_a_task(steps, p)};
  steps.begin(p, job.memory);
  if (p.rows < kFewRows)
    steps.round(p, job.memory, 0, p.rows);
  else
    parallel(size_t(p.rows), [](void* data, size_t m) {
      const Job& j = *static_cast<Job*>(data);
      j.steps.round(j.p, j.memory, int64_t(m), int64_t(m) + 1);
    }, &job);
  parallel(size_t((p.columns + job.share - 1) / job.share), [](void* data, size_t task) {
    const Job& j = *static_cast<Job*>(data);
    const int64_t from = int64_t(task) * j.share, to = from + j.share;
    j.steps.multiply(j.p, j.memory, from, to < j.p.columns ? to : j.p.columns);
  }, &job);
}

}  // namespace pythia
