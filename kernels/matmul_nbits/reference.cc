// Slow and obvious: what the others are held to.
#include <cfloat>
#include <cmath>
#include <vector>

#include "product.h"

namespace pythia {

namespace {

int32_t code_of(const Product& p, int64_t n, int64_t k) {
  const uint8_t* codes = p.codes + n * p.row_bytes();
  if (p.bits != 3) return codes[k * p.bits / 8] >> (k * p.bits % 8) & ((1 << p.bits) - 1);
  const int64_t plane = p.plane(), piece = k / (2 * plane) % 4, at = k % (2 * plane);
  codes += k / (8 * plane) * 3 * plane + at / 2;
  const int nibble = int(at % 2 * 4);
  if (piece < 3) return codes[piece * plane] >> nibble & 7;
  int32_t code = 0;
  for (int i = 0; i < 3; ++i) code |= (codes[i * plane] >> (nibble + 3) & 1) << i;
  return code;
}

void multiply(const Product& p, const float*, int64_t from, int64_t to) {
  const int64_t blocks = p.blocks();
  std::vector<int32_t> code(size_t(blocks * p.block));
  std::vector<float> scale(static_cast<size_t>(blocks));
  for (int64_t m = 0; m < p.rows; ++m) {
    for (int64_t b = 0; b < blocks && !p.exact; ++b) {
      float largest = 0;
      bool finite = true;
      for (int64_t i = 0; i < p.block; ++i) {
        const int64_t k = b * p.block + i;
        const float x = k < p.depth ? std::fabs(p.x[m * p.depth + k]) : 0;
        if (x > largest) largest = x;
        finite &= std::isfinite(x);
      }
      const bool nothing = largest / 127 < FLT_MIN;
      scale[size_t(b)] = nothing || !finite ? 1 : largest / 127;
      for (int64_t i = 0; i < p.block; ++i) {
        const int64_t k = b * p.block + i;
        const float x = k < p.depth && finite && !nothing ? p.x[m * p.depth + k] : 0;
        code[size_t(k)] = int32_t(std::nearbyint(x * (1 / scale[size_t(b)])));
      }
      if (!finite) scale[size_t(b)] = NAN;
    }
    for (int64_t n = from; n < to; ++n) {
      double sum = p.bias ? p.bias[n] : 0;
      for (int64_t b = 0; b < blocks; ++b) {
        double inner = 0;
        for (int64_t i = 0; i < p.block; ++i) {
          const int64_t k = b * p.block + i;
          const int32_t w = code_of(p, n, k);
          const double x = !p.exact ? code[size_t(k)] : k < p.depth ? p.x[m * p.depth + k] : 0;
          inner += x * (w - p.zero_of(n, b));
        }
        sum += (p.exact ? 1.0 : double(scale[size_t(b)])) * p.scale[n * blocks + b] * inner;
      }
      p.y[m * p.columns + n] = float(sum);
    }
  }
}

}  // namespace

const ProductSteps reference_product{[](const Product&) { return size_t(0); }, [](const Product&, float*) {},
                                     [](const Product&, float*, int64_t, int64_t) {}, multiply,
                                     [](const Product&) { return int64_t(1) << 17; }};

}  // namespace pythia
