// Vectors of float at the width of the instruction set that a file is compiled for, by the compiler's own vector types:
// 4 lanes (SSE2, NEON), 8 (AVX2 with FMA and F16C) or 16 (AVX-512F). Everything here has internal linkage, since one
// source is compiled several times. PYTHIA_LANES sets the width by hand: the tests run 16 lanes in plain C++ with it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"

#if defined(PYTHIA_LANES)
#elif defined(__AVX512F__)
#define PYTHIA_AVX512
#elif defined(__AVX2__)
#define PYTHIA_AVX2
#elif defined(__ARM_NEON) && defined(__aarch64__)
#define PYTHIA_NEON
#endif

#if defined(PYTHIA_AVX512) || defined(PYTHIA_AVX2)
#include <immintrin.h>
#elif defined(PYTHIA_NEON)
#include <arm_neon.h>
#endif

namespace {

#if defined(PYTHIA_LANES)
constexpr int kLanes = PYTHIA_LANES;
#elif defined(PYTHIA_AVX512)
constexpr int kLanes = 16;
#elif defined(PYTHIA_AVX2)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef int8_t Codes __attribute__((vector_size(kLanes)));

inline Floats broadcast(float x) { return x - Floats{}; }

// ---- to and from memory

inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

inline Floats load(const uint16_t* half) {
#if defined(PYTHIA_AVX512)
  return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(half)));
#elif defined(PYTHIA_AVX2)
  return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half)));
#elif defined(PYTHIA_NEON)
  return (Floats)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(half)));
#else
  Floats v;
  for (int i = 0; i < kLanes; ++i) v[i] = pythia::float_of(half[i]);
  return v;
#endif
}

inline void store(uint16_t* half, Floats v) {
#if defined(PYTHIA_AVX512)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(half), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(PYTHIA_AVX2)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(half), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(PYTHIA_NEON)
  vst1_u16(half, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v)));
#else
  for (int i = 0; i < kLanes; ++i) half[i] = pythia::half_of(v[i]);
#endif
}

inline Floats load(const int8_t* code) {
#if defined(PYTHIA_AVX512)
  return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(code))));
#elif defined(PYTHIA_AVX2)
  return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(code))));
#elif defined(PYTHIA_NEON)
  int32_t word;
  std::memcpy(&word, code, sizeof word);
  const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(word)));
  return (Floats)vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
#else
  Codes v;
  std::memcpy(&v, code, sizeof v);
  return __builtin_convertvector(v, Floats);
#endif
}

// v holds whole numbers of one byte.
inline void store(int8_t* code, Floats v) {
  const Codes codes = __builtin_convertvector(__builtin_convertvector(v, Ints), Codes);
  std::memcpy(code, &codes, sizeof codes);
}

inline float to_float(float x) { return x; }
inline float to_float(uint16_t half) { return pythia::float_of(half); }
inline float to_float(int8_t code) { return code; }

// ---- arithmetic

// a * b + c rounded once, where there is such an instruction. Files are compiled without contraction of expressions, so
// that what is cached has the same bits on every processor; only sums of products are asked to fuse.
inline Floats fmadd(Floats a, Floats b, Floats c) {
#if defined(PYTHIA_AVX512)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(PYTHIA_AVX2)
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(PYTHIA_NEON)
  return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

// Of a NaN and a number: the second argument.
inline Floats max(Floats a, Floats b) { return a > b ? a : b; }
inline Floats min(Floats a, Floats b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// 1 / v, to 3e-7 of it; of |v| between 2^-60 and 2^60. A division takes several times as long.
inline Floats reciprocal(Floats v) {
#if defined(PYTHIA_AVX512)
  const Floats near = (Floats)_mm512_rcp14_ps((__m512)v);
#elif defined(PYTHIA_AVX2)
  const Floats near = (Floats)_mm256_rcp_ps((__m256)v);
#else
  return 1.0f / v;
#endif
#if defined(PYTHIA_AVX512) || defined(PYTHIA_AVX2)
  return near * (2.0f - v * near);  // Newton's step
#endif
}

// To the nearest whole number, ties to even, for |v| < 2^22: adding 1.5 * 2^23 leaves no room for a fraction.
inline Floats round(Floats v) {
  const Floats magic = broadcast(12582912.0f);
  return (v + magic) - magic;
}

// out[i] = sum of the lanes of v[i], for kLanes vectors.
inline Floats reduce_add(const Floats v[kLanes]) {
#if defined(PYTHIA_AVX2) || defined(PYTHIA_AVX512)
  __m256 half[kLanes];  // of 16 lanes the halves are added first
  for (int i = 0; i < kLanes; ++i) {
#if defined(PYTHIA_AVX512)
    half[i] = _mm256_add_ps(_mm512_castps512_ps256((__m512)v[i]),
                            _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd((__m512)v[i]), 1)));
#else
    half[i] = (__m256)v[i];
#endif
  }
  Floats out;
  for (int i = 0; i < kLanes; i += 8) {
    const __m256* h = half + i;
    const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(h[0], h[1]), _mm256_hadd_ps(h[2], h[3]));
    const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(h[4], h[5]), _mm256_hadd_ps(h[6], h[7]));
    const __m256 eight = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    std::memcpy(reinterpret_cast<float*>(&out) + i, &eight, sizeof eight);
  }
  return out;
#elif defined(PYTHIA_NEON)
  return (Floats)vpaddq_f32(vpaddq_f32((float32x4_t)v[0], (float32x4_t)v[1]),
                            vpaddq_f32((float32x4_t)v[2], (float32x4_t)v[3]));
#else
  Floats out = {};
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < kLanes; ++j) out[i] += v[i][j];
  return out;
#endif
}

inline float reduce_add(Floats v) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += v[i];
  return total;
}

inline float reduce_max(Floats v) {
  float most = v[0];
  for (int i = 1; i < kLanes; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

// e^x for x <= 0, to 2e-7 relative. Below -87 it is 0: nothing beside the 1 of a row's largest score, and no subnormal
// number slows what follows. NaN stays NaN.
// 2^n e^r with n = round(x / ln 2) and a Taylor polynomial for |r| <= ln(2) / 2, whose remainder is r^8 / 8! < 6e-9.
inline Floats exp(Floats x) {
  const Ints least = x < -87.0f;
  x = least ? broadcast(-87.0f) : x;
  const Floats n = round(x * 1.44269504088896341f);
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts, the first exact times n
  Floats p = broadcast(1.0f / 5040);
  p = fmadd(p, r, broadcast(1.0f / 720));
  p = fmadd(p, r, broadcast(1.0f / 120));
  p = fmadd(p, r, broadcast(1.0f / 24));
  p = fmadd(p, r, broadcast(1.0f / 6));
  p = fmadd(p, r, broadcast(0.5f));
  p = fmadd(p, r, broadcast(1.0f));
  p = fmadd(p, r, broadcast(1.0f));
  const Words bits = ((Words)__builtin_convertvector(n, Ints) + 127u) << 23;
  Floats power;
  std::memcpy(&power, &bits, sizeof power);
  return (Floats)(~least & (Ints)(p * power));
}

}  // namespace
