// How the layers are gone through: which phase comes after which, and what is shared between threads.
//
// With a parallel residual a layer has three phases that are worth sharing: the products that read a normalised vector (QKV,
// and h_to_4h with its activation), attention by heads, and the products that add up (dense and 4h_to_h, with the residual).
// What lies between them, normalising and rounding, is shared where there are rows enough.
//
// Where logits of the last tokens alone are wanted, the last layer computes its keys and values of all tokens, and what comes
// behind attention of those tokens only.
#include "layers.h"

#include <algorithm>
#include <cstring>

#include "../team.h"

namespace pythia {
namespace {

size_t up(size_t n) { return (n + 15) / 16 * 16; }

class Run {
 public:
  Run(const Layers& layers, const std::vector<LayerWeights>& weights, const std::vector<LayerCache>& caches,
      const Attention& attention, const float* x, float* y, const Ending* ending, const Version& version)
      : layers_(layers),
        weights_(weights),
        caches_(caches),
        attention_(attention),
        version_(version),
        steps_(*version.product),
        ending_(ending),
        kept_(ending ? ending->kept : attention.fresh),
        rows_(attention.batch * attention.fresh),
        out_(y) {
    const size_t rows = size_t(rows_), hidden = size_t(layers.hidden), inner = size_t(layers.inner);
    const size_t stream = fewer() ? rows * hidden : 0;  // else it is y
    const size_t sizes[] = {rows * hidden, rows * hidden, rows * 3 * hidden, rows * hidden, rows * inner,
                            rows * hidden, rows * hidden, stream};
    float** places[] = {&normed_[0], &normed_[1], &qkv_, &mixed_, &up_, &from_attention_, &from_mlp_, &y_};
    size_t all = 0, rounded[kLinears] = {};
    for (size_t size : sizes) all += pythia::up(size);
    for (const LayerWeights& w : weights)
      for (int i = 0; i < kLinears; ++i)
        for (int64_t m : {rows_, attention.batch * kept_}) {  // fewer rows may need more
          Product p = w.linear[i];
          p.rows = m;
          rounded[i] = std::max(rounded[i], pythia::up(steps_.floats(p)));
        }
    for (size_t size : rounded) all += size;
    float* memory = scratch(kLayers, all);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; ++i) *places[i] = memory, memory += pythia::up(sizes[i]);
    for (int i = 0; i < kLinears; ++i) rounded_[i] = memory, memory += rounded[i];
    if (!fewer()) y_ = y;
    if (y_ != x) std::memcpy(y_, x, rows * hidden * sizeof(float));
  }

  void all(const Parallel& parallel) {
    for (size_t i = 0; i < weights_.size(); ++i)
      fewer() && i + 1 == weights_.size() ? last_layer(weights_[i], caches_[i], parallel)
                                          : layer(weights_[i], caches_[i], parallel);
    if (!ending_) return;
    for_rows(parallel, [&](int64_t m) {
      float* y = y_ + m * layers_.hidden;
      version_.normalize({1, layers_.hidden, layers_.epsilon, y, 1, {ending_->scale, nullptr}, {ending_->shift, nullptr}, {y, nullptr}});
    });
  }

  // Multiplications.
  double work() const {
    double a_row = 0;
    for (const LayerWeights& w : weights_) {
      for (const Product& p : w.linear) a_row += double(p.depth) * double(p.columns);
      a_row += 2.0 * double(attention_.total) * double(layers_.hidden);
    }
    return a_row * double(rows_);
  }

 private:
  Product of(const LayerWeights& w, Which which, const float* x, float* y) const {
    Product p = w.linear[which];
    p.rows = rows_, p.x = x, p.y = y;
    return p;
  }

  // Whether fewer tokens come out than go in.
  bool fewer() const { return kept_ < attention_.fresh; }

  void layer(const LayerWeights& w, const LayerCache& cache, const Parallel& parallel) {
    const bool together = layers_.parallel_residual;
    normalize(w, 0, together ? 2 : 1, parallel);
    multiply(parallel, {{kQkv, of(w, kQkv, normed_[0], qkv_)}, {kUp, of(w, kUp, normed_[1], up_)}}, together ? 2 : 1);
    attend(cache, parallel);
    const Task dense{kDense, of(w, kDense, mixed_, from_attention_)}, down{kDown, of(w, kDown, up_, from_mlp_)};
    if (together) return add(parallel, {dense, down}, 2);
    add(parallel, {dense, down}, 1);
    mlp_up(w, parallel);
    add(parallel, {down, {}}, 1);
  }

  void last_layer(const LayerWeights& w, const LayerCache& cache, const Parallel& parallel) {
    normalize(w, 0, 1, parallel);
    multiply(parallel, {{kQkv, of(w, kQkv, normed_[0], qkv_)}, {}}, 1);
    attend(cache, parallel, attention_.fresh - kept_);
    keep_last();
    const Task dense{kDense, of(w, kDense, mixed_, from_attention_)}, down{kDown, of(w, kDown, up_, from_mlp_)};
    if (!layers_.parallel_residual) add(parallel, {dense, {}}, 1);
    mlp_up(w, parallel);
    layers_.parallel_residual ? add(parallel, {dense, down}, 2) : add(parallel, {down, {}}, 1);
  }

  void attend(const LayerCache& cache, const Parallel& parallel, int64_t unread = 0) const {
    Attention a = attention_;
    a.unread = unread;
    a.qkv = qkv_, a.out = mixed_, a.key = cache.key, a.value = cache.value;
    a.key_scale = cache.key_scale, a.value_scale = cache.value_scale;
    version_.attend(a, parallel);
  }

  void mlp_up(const LayerWeights& w, const Parallel& parallel) const {
    normalize(w, 1, 1, parallel);
    multiply(parallel, {{kUp, of(w, kUp, normed_[1], up_)}, {}}, 1);
  }

  // From here on there are each row's last tokens alone, in the memory of the output.
  void keep_last() {
    const size_t size = size_t(kept_ * layers_.hidden) * sizeof(float);
    for (int64_t b = 0; b < attention_.batch; ++b) {
      const int64_t to = b * kept_ * layers_.hidden;
      const int64_t from = ((b + 1) * attention_.fresh - kept_) * layers_.hidden;
      std::memcpy(out_ + to, y_ + from, size);
      std::memmove(mixed_ + to, mixed_ + from, size);
    }
    y_ = out_, rows_ = attention_.batch * kept_;
  }

  struct Task {
    Which which;
    Product p;
  };
  struct Pair {
    Task first, second;
  };
  // What a phase's tasks read.
  struct Phase {
    const Run* run;
    const Task* tasks;
    int count;
    int64_t share[2], begins;  // columns for a task; the first task of the second product
  };

  // Calls f(row) for all rows.
  template <typename F>
  void for_rows(const Parallel& parallel, F f) const {
    if (rows_ < kFewRows) {
      for (int64_t m = 0; m < rows_; ++m) f(m);
      return;
    }
    parallel(size_t(rows_), [](void* data, size_t m) { (*static_cast<F*>(data))(int64_t(m)); }, &f);
  }

  void round(const Task* tasks, int count, int64_t m) const {
    for (int i = 0; i < count; ++i) steps_.round(tasks[i].p, rounded_[tasks[i].which], m, m + 1);
  }

  // The normalised rows of y, from the `first` one on.
  void normalize(const LayerWeights& w, int first, int count, const Parallel& parallel) const {
    for_rows(parallel, [&](int64_t m) {
      Normalization norm{1, layers_.hidden, layers_.epsilon, y_ + m * layers_.hidden, count, {}, {}, {}};
      for (int i = 0; i < count; ++i) {
        norm.scale[i] = w.scale[first + i], norm.shift[i] = w.shift[first + i];
        norm.y[i] = normed_[first + i] + m * layers_.hidden;
      }
      version_.normalize(norm);
    });
  }

  void prepare(const Parallel& parallel, const Task* tasks, int count) const {
    for (int i = 0; i < count; ++i) steps_.begin(tasks[i].p, rounded_[tasks[i].which]);
    for_rows(parallel, [&](int64_t m) { round(tasks, count, m); });
  }

  // One product or two that read vectors of their own.
  void multiply(const Parallel& parallel, const Pair& pair, int count) const {
    const Task* tasks = &pair.first;
    prepare(parallel, tasks, count);
    Phase phase{this, tasks, count, {}, 0};
    int64_t all = 0;
    for (int i = 0; i < count; ++i) {
      phase.share[i] = columns_for_a_task(steps_, tasks[i].p);
      phase.begins = all;
      all += (tasks[i].p.columns + phase.share[i] - 1) / phase.share[i];
    }
    parallel(size_t(all), [](void* data, size_t task) {
      const Phase& phase = *static_cast<Phase*>(data);
      const int i = phase.count == 2 && int64_t(task) >= phase.begins;
      const int64_t from = (int64_t(task) - (i ? phase.begins : 0)) * phase.share[i];
      phase.run->some(phase.tasks[i], from, std::min(from + phase.share[i], phase.tasks[i].p.columns));
    }, &phase);
  }

  void some(const Task& task, int64_t from, int64_t to) const {
    steps_.multiply(task.p, rounded_[task.which], from, to);
    if (task.which == kUp)
      for (int64_t m = 0; m < rows_; ++m) version_.activate(layers_.activation, up_ + m * layers_.inner + from, to - from);
  }

  // One product or two of the same width, added to y.
  void add(const Parallel& parallel, const Pair& pair, int count) const {
    const Task* tasks = &pair.first;
    prepare(parallel, tasks, count);
    Phase phase{this, tasks, count, {columns_for_a_task(steps_, tasks[0].p, count == 2 ? &tasks[1].p : nullptr)}, 0};
    const int64_t width = layers_.hidden;
    parallel(size_t((width + phase.share[0] - 1) / phase.share[0]), [](void* data, size_t task) {
      const Phase& phase = *static_cast<Phase*>(data);
      const int64_t from = int64_t(task) * phase.share[0];
      phase.run->sum(phase.tasks, phase.count, from, std::min(from + phase.share[0], phase.run->layers_.hidden));
    }, &phase);
  }

  void sum(const Task* tasks, int count, int64_t from, int64_t to) const {
    for (int i = 0; i < count; ++i) steps_.multiply(tasks[i].p, rounded_[tasks[i].which], from, to);
    for (int64_t m = 0; m < rows_; ++m) {
      const int64_t at = m * layers_.hidden;
      const float *a = tasks[0].p.y + at, *b = tasks[1].p.y + at;
      float* y = y_ + at;
      if (count == 2)
        for (int64_t i = from; i < to; ++i) y[i] = (a[i] + b[i]) + y[i];
      else
        for (int64_t i = from; i < to; ++i) y[i] = a[i] + y[i];
    }
  }

  const Layers& layers_;
  const std::vector<LayerWeights>& weights_;
  const std::vector<LayerCache>& caches_;
  const Attention& attention_;
  const Version& version_;
  const ProductSteps& steps_;
  const Ending* ending_;
  int64_t kept_, rows_;  // tokens of a row at the end; rows of y
  float *out_, *y_, *normed_[2], *qkv_, *mixed_, *up_, *from_attention_, *from_mlp_, *rounded_[kLinears];
};

}  // namespace

void run_layers(const Layers& layers, const std::vector<LayerWeights>& weights, const std::vector<LayerCache>& caches,
                const Attention& attention, const float* x, float* y, const Ending* ending, const Version& version,
                const Parallel& parallel, double worth) {
  Run run(layers, weights, caches, attention, x, y, ending, version);
  if (run.work() < worth) return run.all(kAlone);
  lead(parallel, [](void* data, const Parallel& shared) { static_cast<Run*>(data)->all(shared); }, &run);
}

}  // namespace pythia
