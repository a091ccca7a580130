// Every version of pythia::RotaryAttention against the reference, on fuzzed shapes: rotary_attention_test [seed] [cases].
#include "fuzz.h"

using namespace pythia;

namespace {

// The outputs are the reference's to 1e-5; the cache, places that the call must not touch included, to the bit. Numbers that
// are not finite, or whose products overflow, stay in their head: the others' outputs are as without them.
bool agrees(const Version& version, Random& random, size_t index) {
  Case c = random.upto(9)
               ? fuzzed(random, 1 + random.upto(2), 1 + random.upto(4),
                        random.pick({1, 1, 1, 2, 3, 4, 5, 8, 9, 17, 63, 64, 65, 130}), random.pick({0, 0, 1, 3, 64, 100, 700}))
               // enough cached tokens for one head that the length is split between threads
               : fuzzed(random, 1, 1, 1 + random.upto(7), 1024 + random.upto(999));
  const Attention& a = c.a;
  const int64_t spoilt = random.upto(3) ? -1 : random.upto(a.batch * a.heads - 1);  // row of the batch, and head
  if (spoilt >= 0) c.spoil(random, spoilt);
  const Cached before(c);
  attend_reference(a, kTwoThreads);
  const auto wanted = copied(c.out, c.outs);
  const Cached wanted_cache(c);
  before.restore(c);
  std::fill_n(c.out.get(), c.outs, NAN);
  version.attend(a, kTwoThreads);
  double worst = 0, most = 1e-6;
  for (size_t i = 0; i < c.outs; ++i) {
    const int64_t query = int64_t(i) / (a.heads * a.head_dim) % a.fresh;
    if (int64_t(i) / (a.heads * a.head_dim * a.fresh) * a.heads + int64_t(i) / a.head_dim % a.heads == spoilt) continue;
    const double error = std::fabs(double(c.out[i]) - wanted[i]);
    if (!(error < 1e9)) worst = 1e9;  // NaN, or not written
    if (a.total - a.fresh + query < c.hidden) continue;
    worst = std::max(worst, error), most = std::max(most, double(std::fabs(wanted[i])));
  }
  const bool cached = same_bits(wanted_cache.without(a, spoilt), Cached(c).without(a, spoilt));
  if (worst <= 1e-5 * most && cached) return true;
  print(version.name, index, worst, most, cached, a);
  return false;
}

}  // namespace

int main(int argc, char** argv) { return run(argc, argv, agrees); }
