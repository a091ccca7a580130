// float16 <-> float32 in plain integer arithmetic, round to nearest even. Static: each file keeps its own instructions.
#pragma once

#include <cstdint>
#include <cstring>

namespace pythia {

static inline float float_of(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16, exponent = (half >> 10) & 0x1Fu, fraction = half & 0x3FFu;
  uint32_t bits;
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24
    const float value = float(fraction) * 5.9604644775390625e-8f;
    std::memcpy(&bits, &value, 4);
    bits |= sign;
  } else {
    bits = sign | ((exponent == 31 ? 255u : exponent + 112u) << 23) | (fraction << 13);
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

static inline uint16_t half_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000u);
  bits &= 0x7FFFFFFFu;
  if (bits > 0x7F800000u) return sign | 0x7E00u;   // NaN
  if (bits >= 0x477FF000u) return sign | 0x7C00u;  // rounds to infinity
  if (bits < 0x38800000u) {  // subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    return sign | uint16_t(bits - 0x3F000000u);
  }
  bits += 0xFFFu + ((bits >> 13) & 1u);
  return sign | uint16_t((bits - 0x38000000u) >> 13);
}

}  // namespace pythia
