// What a layer does beside products and attention: two normalisations of one vector, and the activation of its MLP.
//
// And what a draw (../draw/draw.h) does of all logits x and their weights y:
// - exponentials: y[i] = e^((x[i] - max x) * by), at most 1e30. Returns their sum; NaN, and no y, where an x is not finite.
// - masses: sums[j] is the sum of all weights of least[j] or more, added in float32.
// - mass: one such sum, added in double.
#pragma once

#include <cstdint>

namespace pythia {

// (x - mean) / sqrt(variance + epsilon) of each row, times each scale and plus each shift.
struct Normalization {
  int64_t rows, width;
  float epsilon;
  const float* x;  // [rows, width]
  int count;       // how many times it is scaled and shifted: 1 or 2
  const float* scale[2];  // [width]
  const float* shift[2];
  float* y[2];  // [rows, width]
};

// By the names of pythia_export/model/neox.py.
enum class Activation { kGelu, kGeluTanh, kRelu, kRelu2, kSilu, kMish };
constexpr const char* kActivations[] = {"gelu", "gelu_tanh", "relu", "relu2", "silu", "mish"};

constexpr int kLeasts = 8;

// In double; the other versions (../versions.h) are one source, elementwise.cc.
void normalize_reference(const Normalization&);
void activate_reference(Activation, float* x, int64_t count);
double exponentials_reference(const float* x, int64_t count, float by, float* y);
void masses_reference(const float* weights, int64_t count, const float least[kLeasts], double sums[kLeasts]);
double mass_reference(const float* weights, int64_t count, float least);

}  // namespace pythia
