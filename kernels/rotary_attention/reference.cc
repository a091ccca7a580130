// Slow and obvious, in double: what every other version is held to.
#include <algorithm>
#include <cmath>
#include <vector>

#include "../half.h"
#include "attention.h"

namespace pythia {
namespace {

double read(const void* cache, const float* scale, CacheType type, int64_t place, int64_t head_dim, int64_t d) {
  const int64_t at = place * head_dim + d;
  if (type == CacheType::kFloat32) return static_cast<const float*>(cache)[at];
  if (type == CacheType::kFloat16) return float_of(static_cast<const uint16_t*>(cache)[at]);
  return float(static_cast<const int8_t*>(cache)[at]) * scale[place];
}

void write(void* cache, float* scale, CacheType type, int64_t place, const std::vector<float>& x) {
  const int64_t n = int64_t(x.size());
  if (type == CacheType::kFloat32) std::copy(x.begin(), x.end(), static_cast<float*>(cache) + place * n);
  if (type == CacheType::kFloat16)
    for (int64_t d = 0; d < n; ++d) static_cast<uint16_t*>(cache)[place * n + d] = half_of(x[d]);
  if (type == CacheType::kInt8) {
    float largest = 0, poison = 0;  // a number that is not finite makes the scale NaN, so that it is not lost
    for (float v : x) largest = std::max(largest, std::fabs(v)), poison += v * 0;
    const float s = scale[place] = largest / 127.0f + poison;
    for (int64_t d = 0; d < n; ++d)
      static_cast<int8_t*>(cache)[place * n + d] =
          s > 0 ? int8_t(std::clamp(std::nearbyint(x[d] / s), -127.0f, 127.0f)) : int8_t(0);
  }
}

std::vector<float> turned(const Attention& a, const float* x, int64_t position) {
  std::vector<float> y(x, x + a.head_dim);
  const int64_t half = a.rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float c = a.cos[position * half + i], s = a.sin[position * half + i];
    y[i] = x[i] * c - x[half + i] * s;
    y[half + i] = x[half + i] * c + x[i] * s;
  }
  return y;
}

}  // namespace

void attend_reference(const Attention& a, const Parallel&) {
  const int64_t hidden = a.heads * a.head_dim, past = a.total - a.fresh;
  for (int64_t b = 0; b < a.batch; ++b)
    for (int64_t h = 0; h < a.heads; ++h) {
      const int64_t first = (b * a.heads + h) * a.room;
      for (int64_t t = 0; t < a.fresh; ++t) {
        const float* row = a.qkv + (b * a.fresh + t) * 3 * hidden + h * a.head_dim;
        const std::vector<float> v(row + 2 * hidden, row + 2 * hidden + a.head_dim);
        write(a.key, a.key_scale, a.cache, first + past + t, turned(a, row + hidden, a.position[b * a.fresh + t]));
        write(a.value, a.value_scale, a.cache, first + past + t, v);
      }
      for (int64_t t = 0; t < a.fresh; ++t) {
        const float* row = a.qkv + (b * a.fresh + t) * 3 * hidden + h * a.head_dim;
        const std::vector<float> q = turned(a, row, a.position[b * a.fresh + t]);
        std::vector<double> weight(past + t + 1);
        double largest = -INFINITY, sum = 0;
        for (int64_t j = 0; j <= past + t; ++j) {
          double dot = 0;
          for (int64_t d = 0; d < a.head_dim; ++d)
            dot += q[d] * read(a.key, a.key_scale, a.cache, first + j, a.head_dim, d);
          weight[j] = dot / std::sqrt(double(a.head_dim)) + a.bias[b * a.bias_batch + t * a.total + j];
          largest = std::max(largest, weight[j]);
        }
        for (double& w : weight) sum += w = std::exp(w - largest);
        for (int64_t d = 0; d < a.head_dim; ++d) {
          double mixed = 0;
          for (int64_t j = 0; j <= past + t; ++j)
            mixed += weight[j] / sum * read(a.value, a.value_scale, a.cache, first + j, a.head_dim, d);
          a.out[(b * a.fresh + t) * hidden + h * a.head_dim + d] = float(mixed);
        }
      }
    }
}

}  // namespace pythia
