// The product on a CPU; compiled for AVX2 and for AVX-512 with VNNI, into the namespace PYTHIA_ISA.
//
// A dword of 4-bit codes holds the even four of eight numbers in its low halves and the odd four in its high ones, so the
// codes of x lie in that order as well: no code of a weight is ever moved within its dword.
#include "exact.h"
#include "many.h"

namespace pythia {
namespace PYTHIA_ISA {
namespace {

constexpr int64_t kFew = 8;  // rows; from more on it pays to bring weights into order

Rounded rounded(const Product& p, const float* memory) {
  return Rounded(p, p.rows > kFew ? kTogether : kApart, const_cast<float*>(memory));
}

size_t floats(const Product& p) { return p.exact ? Turned(p, nullptr).floats(p) : rounded(p, nullptr).floats(p); }
void begin(const Product&, float*) {}

void round(const Product& p, float* memory, int64_t from, int64_t to) {
  if (p.exact) {
    for (int64_t m = from; m < to && p.rows <= kFewRows; ++m) Turned(p, memory).row(p, m);
    return;
  }
  Rounded x = rounded(p, memory);
  for (int64_t m = from; m < to; ++m) x.row(p, m);
}

void multiply(const Product& p, const float* memory, int64_t from, int64_t to) {
  if (p.exact) return multiply_exact(p, memory, from, to);
  const Rounded x = rounded(p, memory);
  if (p.rows <= kFew) return p.bits == 8 ? few<8>(p, x, from, to) : is_narrow(p) ? few<4, kWidened>(p, x, from, to) : few<4>(p, x, from, to);
  for (int64_t n = from; n < to; n += kTile) p.bits == 8 ? many<8>(p, x, n) : many<4>(p, x, n);
}

int64_t worth(const Product& p) { return p.exact ? 1 << 16 : 1 << 17; }

}  // namespace

const ProductSteps product_steps{floats, begin, round, multiply, worth};

}  // namespace PYTHIA_ISA
}  // namespace pythia
