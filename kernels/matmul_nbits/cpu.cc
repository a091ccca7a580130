// The product on a CPU; compiled for AVX2 and for AVX-512 with VNNI, into the namespace PYTHIA_ISA.
//
// A dword of 4-bit codes holds the even four of eight numbers in its low halves and the odd four in its high ones, so the
// codes of x lie in that order as well: no code of a weight is ever moved within its dword.
#include "few.h"
#include "many.h"

namespace pythia {
namespace PYTHIA_ISA {
namespace {

constexpr int64_t kFew = 8;  // rows; from more on it pays to bring weights into order

struct Job {
  const Product& p;
  Rounded x;
  int64_t share;  // columns, or tiles of them, for a task
};

}  // namespace

void product(const Product& p, const Parallel& parallel) {
  Job job{p, Rounded(p, p.rows > kFew ? kTogether : kApart), 0};
  if (p.rows < 8)
    for (int64_t m = 0; m < p.rows; ++m) job.x.row(p, m);
  else
    parallel(size_t(p.rows), [](void* data, size_t m) {
      Job& j = *static_cast<Job*>(data);
      j.x.row(j.p, int64_t(m));
    }, &job);
  // A task is worth the handing out from some tens of thousands of products on.
  constexpr int64_t kWorth = 1 << 17;
  if (p.rows <= kFew) {
    job.share = (kWorth / (p.depth * p.rows) + 16) / 16 * 16;  // whole lines of the cache are written
    const int64_t tasks = (p.columns + job.share - 1) / job.share;
    parallel(size_t(tasks), [](void* data, size_t task) {
      Job& j = *static_cast<Job*>(data);
      const int64_t from = int64_t(task) * j.share, to = from + j.share < j.p.columns ? from + j.share : j.p.columns;
      j.p.bits == 4 ? few<4>(j.p, j.x, from, to) : few<8>(j.p, j.x, from, to);
    }, &job);
  } else {
    job.share = kWorth / (p.depth * p.rows * kTile) + 1;
    const int64_t tiles = (p.columns + kTile - 1) / kTile, tasks = (tiles + job.share - 1) / job.share;
    parallel(size_t(tasks), [](void* data, size_t task) {
      Job& j = *static_cast<Job*>(data);
      for (int64_t t = int64_t(task) * j.share; t < int64_t(task + 1) * j.share && t * kTile < j.p.columns; ++t)
        j.p.bits == 4 ? many<4>(j.p, j.x, t * kTile) : many<8>(j.p, j.x, t * kTile);
    }, &job);
  }
}

}  // namespace PYTHIA_ISA
}  // namespace pythia
