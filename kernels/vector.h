// Vectors of float at the width of the instruction set that a file is compiled for, by the compiler's own vector types:
// 4 lanes (SSE2, NEON), 8 (AVX2 with FMA and F16C) or 16 (AVX-512F). Everything here has internal linkage, since one
// source is compiled several times.
#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

inline Floats all(float x) { return x - Floats{}; }

inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

inline Floats load(const uint16_t* half) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)));
#elif defined(__AVX2__)
  return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half)));
#else
  Floats v;
  for (int i = 0; i < kLanes; ++i) v[i] = pythia::float_of(half[i]);
  return v;
#endif
}

inline Floats load(const int8_t* code) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(code))));
#elif defined(__AVX2__)
  return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(code))));
#else
  Floats v;
  for (int i = 0; i < kLanes; ++i) v[i] = code[i];
  return v;
#endif
}

// a * b + c rounded once, where there is such an instruction. Files are compiled without contraction of expressions, so
// that what is cached has the same bits on every processor; only sums of products are asked to fuse.
inline Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

inline float value_of(float x) { return x; }
inline float value_of(uint16_t half) { return pythia::float_of(half); }
inline float value_of(int8_t code) { return code; }

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// Lanes are added in pairs, quarters and so on, across registers, never through memory.
#if defined(__AVX2__)
inline __m256 folded(Floats v) {
#if defined(__AVX512F__)
  return _mm256_add_ps(_mm512_castps512_ps256((__m512)v),
                       _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd((__m512)v), 1)));
#else
  return (__m256)v;
#endif
}
#endif

inline void sums(const Floats v[4], float* out) {
#if defined(__AVX2__)
  const __m256 low = _mm256_hadd_ps(folded(v[0]), folded(v[1])), high = _mm256_hadd_ps(folded(v[2]), folded(v[3]));
  const __m256 both = _mm256_hadd_ps(low, high);
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1)));
#else
  for (int i = 0; i < 4; ++i) out[i] = (v[i][0] + v[i][1]) + (v[i][2] + v[i][3]);
#endif
}

inline float sum(Floats v) {
  const Floats four[4] = {v, Floats{}, Floats{}, Floats{}};
  float out[4];
  sums(four, out);
  return out[0];
}

inline float largest(Floats v) {
  float most = v[0];
  for (int i = 1; i < kLanes; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

// e^x for x <= 0, to 2e-7 relative; below -87 it is e^-87, which is nothing beside the 1 of a row's largest score.
// 2^n e^r with n = round(x / ln 2) and a Taylor polynomial for |r| <= ln(2) / 2, whose remainder is r^8 / 8! < 6e-9.
inline Floats exp_of(Floats x) {
  const Floats magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  x = larger(x, all(-87.0f));
  const Floats n = (x * 1.44269504088896341f + magic) - magic;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts, the first exact times n
  Floats p = all(1.0f / 5040);
  for (float coefficient : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = fused(p, r, all(coefficient));
  const Ints bits = (__builtin_convertvector(n, Ints) + 127) << 23;
  Floats power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

}  // namespace
