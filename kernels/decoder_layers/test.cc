// Fuzzed layers. Every version gives, to the bit, what its products, attention and elementwise parts give one after another;
// these parts give what the reference gives. Threads change nothing.
#include "layers.h"

#include <algorithm>
#include <thread>
#include <vector>

#include "../native_test.h"
#include "../rotary_attention/fuzz.h"
#include "../team.h"

using namespace pythia;

namespace {

using Floats = std::unique_ptr<float[]>;

struct Weights {
  LayerWeights of{};
  std::vector<Floats> floats;
  std::vector<std::unique_ptr<uint8_t[]>> bytes;

  const float* drawn(Random& random, int64_t n, float by) {
    floats.push_back(random.normal(size_t(n), by));
    return floats.back().get();
  }

  const uint8_t* drawn(Random& random, int64_t n) {
    bytes.emplace_back(new uint8_t[size_t(n)]);
    for (int64_t i = 0; i < n; ++i) bytes.back()[size_t(i)] = uint8_t(random.upto(255));
    return bytes.back().get();
  }

  Weights(Random& random, const Layers& layers) {
    for (int i = 0; i < 2; ++i)
      of.scale[i] = drawn(random, layers.hidden, 1), of.shift[i] = drawn(random, layers.hidden, 1);
    for (int i = 0; i < kLinears; ++i) {
      Product& p = of.linear[i];
      p.exact = layers.exact;
      p.bits = random.pick({2, 3, 4, 8}), p.block = random.pick({16, 32, 64, 128, 256});
      p.depth = i == kDown ? layers.inner : layers.hidden;
      p.columns = i == kQkv ? 3 * layers.hidden : i == kUp ? layers.inner : layers.hidden;
      if (p.bits == 3 && p.numbers() % kNarrow) p.bits = 4;
      p.codes = drawn(random, p.columns * p.row_bytes());
      p.scale = drawn(random, p.columns * p.blocks(), 0.5f / float(1 << p.bits) / std::sqrt(float(p.depth)));
      if (random.upto(1)) p.zero = drawn(random, p.columns * p.zero_bytes());
      if (random.upto(3)) p.bias = drawn(random, p.columns, 0.1f);
    }
  }
};

// The same by whole operators, each for all rows before the next. Behind attention only the last `kept` tokens of each row
// go on, at the beginning of y.
void one_by_one(const Layers& layers, const LayerWeights& w, Attention a, float* y, int64_t kept, const Version& version) {
  int64_t rows = a.batch * a.fresh;
  const int64_t d = layers.hidden;
  std::vector<float> first(size_t(rows * d)), second(first), qkv(3 * first.size()), mixed(first), up(size_t(rows * layers.inner));
  std::vector<float> from_attention(first), from_mlp(first);
  const auto norm = [&](int which, std::vector<float>& to) {
    version.normalize({rows, d, layers.epsilon, y, 1, {w.scale[which], nullptr}, {w.shift[which], nullptr}, {to.data(), nullptr}});
  };
  const auto multiply = [&](int which, const std::vector<float>& x, std::vector<float>& to) {
    Product p = w.linear[which];
    p.rows = rows, p.x = x.data(), p.y = to.data();
    product(*version.product, p, kAlone);
  };
  norm(0, first);
  multiply(kQkv, first, qkv);
  a.qkv = qkv.data(), a.out = mixed.data();
  version.attend(a, kAlone);
  for (int64_t b = 0; b < a.batch; ++b)
    for (int64_t i = 0; i < kept * d; ++i)
      for (float* values : {y, mixed.data()}) values[b * kept * d + i] = values[((b + 1) * a.fresh - kept) * d + i];
  rows = a.batch * kept;
  norm(1, second);
  multiply(kDense, mixed, from_attention);
  if (!layers.parallel_residual) {
    for (size_t i = 0; i < size_t(rows * d); ++i) y[i] = from_attention[i] + y[i];
    norm(1, second);
  }
  multiply(kUp, second, up);
  for (int64_t m = 0; m < rows; ++m) version.activate(layers.activation, up.data() + m * layers.inner, layers.inner);
  multiply(kDown, up, from_mlp);
  for (size_t i = 0; i < size_t(rows * d); ++i)
    y[i] = layers.parallel_residual ? (from_attention[i] + from_mlp[i]) + y[i] : from_mlp[i] + y[i];
}

bool elementwise(const Version& version, Random& random) {
  const int64_t rows = 1 + random.upto(2), width = 1 + random.upto(70);
  const size_t n = size_t(rows * width);
  auto x = random.normal(n, random.pick({1, 30}));
  auto scale = random.normal(size_t(width)), shift = random.normal(size_t(width));
  Floats got(new float[n]), wanted(new float[n]), two(new float[n]);
  Normalization norm{rows, width, 1e-5f, x.get(), 2, {scale.get(), shift.get()}, {shift.get(), scale.get()}, {got.get(), two.get()}};
  version.normalize(norm);
  norm.y[0] = wanted.get();
  normalize_reference(norm);
  for (size_t i = 0; i < n; ++i) {
    // Of numbers that lie close together the mean's own rounding shows.
    const float* row = x.get() + i / size_t(width) * size_t(width);
    double most = 0, mean = 0, variance = 0;
    for (int64_t j = 0; j < width; ++j) most = std::fmax(most, std::fabs(row[j])), mean += row[j] / double(width);
    for (int64_t j = 0; j < width; ++j) variance += (row[j] - mean) * (row[j] - mean) / double(width);
    const double owed = 5e-7 * most / std::sqrt(variance + 1e-5) * std::fabs(scale[i % size_t(width)]);
    if (!(std::fabs(got[i] - wanted[i]) <= 1e-5f * (1 + std::fabs(wanted[i])) + owed))
      return std::printf("normalize, width %ld: %g, not %g\n", long(width), got[i], wanted[i]), false;
  }
  for (size_t which = 0; which < sizeof kActivations / sizeof *kActivations; ++which) {
    std::copy(x.get(), x.get() + n, got.get()), std::copy(x.get(), x.get() + n, wanted.get());
    version.activate(Activation(which), got.get(), int64_t(n));
    activate_reference(Activation(which), wanted.get(), int64_t(n));
    for (size_t i = 0; i < n; ++i)
      if (!(std::fabs(got[i] - wanted[i]) <= 1.5e-6f * (1 + std::fabs(wanted[i]))))
        return std::printf("%s of %.9g is %.9g, not %.9g\n", kActivations[which], x[i], got[i], wanted[i]), false;
  }
  return true;
}

// Every activation over the whole range where it bends, and far outside.
bool bends(const Version& version) {
  std::vector<float> x{-1e30f, -1e4f, -100.0f, -1e-30f, -1e-45f, 1e-45f, 1e-30f, 100.0f, 1e4f, 1e15f};
  for (int i = -12 * 512; i <= 12 * 512; ++i) x.push_back(float(i) / 512);
  for (size_t which = 0; which < sizeof kActivations / sizeof *kActivations; ++which) {
    std::vector<float> got(x), wanted(x);
    version.activate(Activation(which), got.data(), int64_t(x.size()));
    activate_reference(Activation(which), wanted.data(), int64_t(x.size()));
    for (size_t i = 0; i < x.size(); ++i)
      if (!(std::fabs(got[i] - wanted[i]) <= 1.5e-6f * std::max(1.0f, std::fabs(wanted[i]))))
        return std::printf("%s of %.9g is %.9g, not %.9g\n", kActivations[which], x[i], got[i], wanted[i]), false;
  }
  return true;
}

// Every task of every phase is done once, whichever thread comes when.
bool shares_out() {
  size_t others = 0;
  const Parallel several{[](void* count, size_t, void (*fn)(void*, size_t), void* data) {
                           std::vector<std::thread> threads;
                           for (size_t i = 1; i <= *static_cast<size_t*>(count); ++i) threads.emplace_back(fn, data, i);
                           fn(data, 0);
                           for (std::thread& thread : threads) thread.join();
                         },
                         &others};
  for (; others < 4; ++others) {
    bool once = true;
    lead(several, [](void* data, const Parallel& shared) {
      for (size_t n = 1; n < 200; ++n) {
        std::vector<int> times(n);
        shared(n, [](void* of, size_t i) { ++(*static_cast<std::vector<int>*>(of))[i]; }, &times);
        *static_cast<bool*>(data) &= std::all_of(times.begin(), times.end(), [](int x) { return x == 1; });
      }
    }, &once);
    if (!once) return std::printf("with %zu threads a task was done twice, or never\n", others + 1), false;
  }
  return true;
}

bool agrees(const Version& version, Random& random, size_t index) {
  if (!index && !(bends(version) && shares_out())) return false;
  if (!elementwise(version, random)) return false;
  if (!version.product) return true;
  Case c = fuzzed(random, 1 + random.upto(2), 1 + random.upto(3), random.pick({1, 1, 1, 2, 3, 8, 9, 17, 40}), random.pick({0, 3, 64}));
  Attention& a = c.a;
  Layers layers{a.heads * a.head_dim, 1 + random.upto(130), 1e-5f, Activation(random.upto(5)), random.upto(2) != 0, random.upto(1) != 0};
  const size_t n = size_t(a.batch * a.fresh * layers.hidden);
  const Weights weights[] = {Weights(random, layers), Weights(random, layers)};
  auto x = random.normal(n);
  const bool ends = random.upto(1) != 0;
  const int64_t kept = ends ? 1 + random.upto(a.fresh - 1) : a.fresh;
  const size_t results = size_t(a.batch * kept * layers.hidden);
  auto scale = random.normal(size_t(layers.hidden)), shift = random.normal(size_t(layers.hidden));
  const Ending ending{scale.get(), shift.get(), kept};
  Floats got(new float[results]), wanted(new float[n]);
  std::copy(x.get(), x.get() + n, wanted.get());
  const Cached before(c);
  Case second = fuzzed(random, a.batch, a.heads, a.fresh, a.total - a.fresh);  // the second layer's cache
  if (second.cache_bytes != c.cache_bytes || second.a.head_dim != a.head_dim || second.a.room != a.room || second.a.cache != a.cache) {
    second.key.reset(new char[c.cache_bytes]()), second.value.reset(new char[c.cache_bytes]());
    second.key_scale.reset(new float[c.scales]()), second.value_scale.reset(new float[c.scales]());
    second.cache_bytes = c.cache_bytes, second.scales = c.scales;
  }
  const Cached second_before(second);
  const auto cache = [&](Case& of) {
    return LayerCache{of.key.get(), of.value.get(), c.scales ? of.key_scale.get() : nullptr, c.scales ? of.value_scale.get() : nullptr};
  };
  const std::vector<LayerCache> caches{cache(c), cache(second)};
  for (int i = 0; i < 2; ++i) {
    Attention one = a;
    one.key = caches[size_t(i)].key, one.value = caches[size_t(i)].value;
    one.key_scale = caches[size_t(i)].key_scale, one.value_scale = caches[size_t(i)].value_scale;
    one_by_one(layers, weights[i].of, one, wanted.get(), i ? kept : a.fresh, version);
  }
  if (ends) {
    const Floats before_it(new float[results]);
    std::copy(wanted.get(), wanted.get() + results, before_it.get());
    version.normalize({a.batch * kept, layers.hidden, layers.epsilon, before_it.get(), 1, {scale.get(), nullptr}, {shift.get(), nullptr}, {wanted.get(), nullptr}});
  }
  const Cached first_after(c), second_after(second);
  before.restore(c), second_before.restore(second);
  run_layers(layers, {weights[0].of, weights[1].of}, caches, a, x.get(), got.get(), ends ? &ending : nullptr, version,
             index % 3 ? kTwoThreads : kAlone, 0);
  bool same = same_bits(Cached(c), first_after) && same_bits(Cached(second), second_after);
  for (size_t i = 0; i < results; ++i) same &= same_number(got[i], wanted[i]);
  if (!same) print(version.name, index, 0, 0, false, a);
  return same;
}

}  // namespace

int main(int argc, char** argv) { return run(argc, argv, agrees); }
