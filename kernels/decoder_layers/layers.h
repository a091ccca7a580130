// The layers of a decoder, checked and without ONNX Runtime: raw pointers and sizes. README.md has the contract.
//
// Parallel residual: y = x + attention(norm0(x)) + mlp(norm1(x)); sequential: m = x + attention(norm0(x)), y = m +
// mlp(norm1(m)).
#pragma once

#include <vector>

#include "../versions.h"

namespace pythia {

enum Which { kQkv, kDense, kUp, kDown, kLinears };

struct LayerWeights {
  const float* scale[2];     // [hidden], of the two normalisations
  const float* shift[2];     // [hidden]
  Product linear[kLinears];  // without rows, x and y
};

struct LayerCache {
  void *key, *value;               // [batch, heads, room, head_dim]
  float *key_scale, *value_scale;  // [batch, heads, room] for int8, otherwise null
};

struct Layers {
  int64_t hidden, inner;  // inner: of the MLP
  float epsilon;
  Activation activation;
  bool parallel_residual;
  bool exact;  // activations stay in float32
};

// Fewer multiplications than this are over before another thread has woken up.
constexpr double kWorthWaking = 8e6;

// What comes behind the layers: the last tokens of each row are normalised, and no others are computed to the end.
struct Ending {
  const float *scale, *shift;  // [hidden]
  int64_t kept;                // tokens of a row, 1 to fresh
};

// Every layer, one after another, of x [batch * fresh, hidden]; y is as large, or with an ending [batch * kept, hidden].
// `attention` has what all layers share; what is a layer's own in it is not read. Work is shared with `parallel` from
// `worth` multiplications on.
void run_layers(const Layers&, const std::vector<LayerWeights>&, const std::vector<LayerCache>&,
                const Attention& attention, const float* x, float* y, const Ending*, const Version&,
                const Parallel& parallel, double worth = kWorthWaking);

}  // namespace pythia
