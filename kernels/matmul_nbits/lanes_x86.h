// Vectors of AVX-512 with VNNI, or of AVX2.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace pythia {
namespace PYTHIA_ISA {
namespace {

#ifdef __AVX512VNNI__
constexpr int64_t kLanes = 16;
using Ints = __m512i;
using Floats = __m512;
using Bytes = __m128i;  // one of each lane
inline Ints load(const void* p) { return _mm512_loadu_si512(p); }
inline Ints load(const void* p, int64_t bytes) { return _mm512_maskz_loadu_epi8((uint64_t(1) << bytes) - 1, p); }
inline Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
inline Floats load_floats(const float* p, int64_t count) {
  return _mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p);
}
inline void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
inline void store(void* p, Ints v) { _mm512_storeu_si512(p, v); }
inline Ints broadcast(int32_t x) { return _mm512_set1_epi32(x); }
inline Floats broadcast(float x) { return _mm512_set1_ps(x); }
inline Ints low_nibbles(Ints v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
inline Ints high_nibbles(Ints v) { return low_nibbles(_mm512_srli_epi32(v, 4)); }
inline Ints low_threes(Ints v) { return _mm512_and_si512(v, _mm512_set1_epi8(7)); }
inline Ints high_threes(Ints v) { return low_threes(_mm512_srli_epi32(v, 4)); }
// Of each byte 16 bits, whose bytes have one half each in their lowest bits, and others above.
inline Ints spread_bytes(const void* p) {
  const Ints v = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)p));
  return _mm512_or_si512(v, _mm512_slli_epi32(v, 4));
}
inline Ints low_twos(Ints v) { return _mm512_and_si512(v, _mm512_set1_epi8(3)); }
inline Ints high_twos(Ints v) { return low_twos(_mm512_srli_epi32(v, 2)); }
// Codes of 3 bits from the top bits of three vectors' nibbles; what is in their own top bits is nothing.
inline Ints gather_tops(Ints a, Ints b, Ints c) {
  constexpr int kChoose = 0xca;  // by each bit of the first
  const Ints two = _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x11), _mm512_srli_epi32(a, 3), _mm512_srli_epi32(b, 2), kChoose);
  return _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x44), _mm512_srli_epi32(c, 1), two, kChoose);
}
inline Floats gather(const float* p, Ints offsets) { return _mm512_i32gather_ps(offsets, p, 4); }
inline Floats to_float(Ints v) { return _mm512_cvtepi32_ps(v); }
inline Ints mul(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
inline Ints sub(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
inline Ints sub_bytes(Ints a, Ints b) { return _mm512_sub_epi8(a, b); }
inline Ints widen_bytes(const uint8_t* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline Ints unpack_nibbles(const uint8_t* p) {  // of each byte the low half, then the high one
  const Ints v = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i*)p));
  return low_nibbles(_mm512_or_si512(v, _mm512_slli_epi64(v, 28)));
}
inline Ints centred(Ints v) { return _mm512_xor_si512(v, _mm512_set1_epi8(char(0x80))); }
inline Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline Ints max(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
inline Ints abs_bits(Ints of_float) { return _mm512_and_si512(of_float, _mm512_set1_epi32(0x7fffffff)); }
inline int32_t reduce_add(Ints v) { return _mm512_reduce_add_epi32(v); }
inline int32_t reduce_max(Ints v) { return _mm512_reduce_max_epi32(v); }
inline Ints round_to_int(Floats v) { return _mm512_cvtps_epi32(v); }  // half to even
inline Bytes narrow_to_bytes(Ints v) { return _mm512_cvtepi32_epi8(v); }
inline void store_bytes(void* p, Bytes v) { _mm_storeu_si128((__m128i*)p, v); }
template <int n>
inline Ints shift_left(Ints v) { return _mm512_slli_epi32(v, n); }
template <int n>
inline Ints shift_right(Ints v) { return _mm512_srai_epi32(v, n); }  // with its sign
inline Ints bit_xor(Ints a, Ints b) { return _mm512_xor_si512(a, b); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats fmadd(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats permute(Floats from, Ints places) { return _mm512_permutexvar_ps(places, from); }
inline __m256 add_halves(Floats v) { return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)); }
inline Ints unpacklo_32(Ints a, Ints b) { return _mm512_unpacklo_epi32(a, b); }
inline Ints unpackhi_32(Ints a, Ints b) { return _mm512_unpackhi_epi32(a, b); }
inline Ints unpacklo_64(Ints a, Ints b) { return _mm512_unpacklo_epi64(a, b); }
inline Ints unpackhi_64(Ints a, Ints b) { return _mm512_unpackhi_epi64(a, b); }
// Of four vectors' quarters the first, second, third and last of each.
inline void transpose_quarters(const Ints* from, Ints* to, int64_t apart) {
  const Ints a = _mm512_shuffle_i32x4(from[0], from[4], 0x88), b = _mm512_shuffle_i32x4(from[8], from[12], 0x88);
  const Ints c = _mm512_shuffle_i32x4(from[0], from[4], 0xdd), d = _mm512_shuffle_i32x4(from[8], from[12], 0xdd);
  to[0] = _mm512_shuffle_i32x4(a, b, 0x88), to[2 * apart] = _mm512_shuffle_i32x4(a, b, 0xdd);
  to[apart] = _mm512_shuffle_i32x4(c, d, 0x88), to[3 * apart] = _mm512_shuffle_i32x4(c, d, 0xdd);
}
constexpr bool kCentred = false;  // codes of 8 bits are taken as they are
// By name: around the intrinsic GCC 12 moves every sum to and fro, which costs prompts a fifth of their speed.
template <int kBits>
inline Ints dot(Ints into, Ints w, Ints x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(into) : "v"(w), "vm"(x));
  return into;
}
template <int kBits>
inline Ints dot_short(Ints into, Ints w, Ints x) { return dot<kBits>(into, w, x); }
template <int kBits>
inline Ints widened(Ints sums) { return sums; }
// Of a vector the lanes at `places`, the first `count` of them; zeros in the others.
inline Floats permute_first(Floats from, Ints places, int64_t count) {
  return _mm512_maskz_permutexvar_ps(__mmask16((1u << count) - 1), places, from);
}
#else
constexpr int64_t kLanes = 8;
using Ints = __m256i;
using Floats = __m256;
using Bytes = __m128i;  // one of each lane
inline Ints load(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
// The first `count` dwords of a vector. By masks: a copy of as many bytes would be waited for when it is read back.
inline Ints first(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int32_t(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Ints load(const void* p, int64_t bytes) { return _mm256_maskload_epi32((const int*)p, first(bytes / 4)); }
inline Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
inline Floats load_floats(const float* p, int64_t count) { return _mm256_maskload_ps(p, first(count)); }
inline void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
inline void store(void* p, Ints v) { _mm256_storeu_si256((__m256i*)p, v); }
inline Ints broadcast(int32_t x) { return _mm256_set1_epi32(x); }
inline Floats broadcast(float x) { return _mm256_set1_ps(x); }
inline Ints low_nibbles(Ints v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
inline Ints high_nibbles(Ints v) { return low_nibbles(_mm256_srli_epi32(v, 4)); }
inline Ints low_threes(Ints v) { return _mm256_and_si256(v, _mm256_set1_epi8(7)); }
inline Ints high_threes(Ints v) { return low_threes(_mm256_srli_epi32(v, 4)); }
inline Ints spread_bytes(const void* p) {
  const Ints v = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p));
  return _mm256_or_si256(v, _mm256_slli_epi32(v, 4));
}
inline Ints low_twos(Ints v) { return _mm256_and_si256(v, _mm256_set1_epi8(3)); }
inline Ints high_twos(Ints v) { return low_twos(_mm256_srli_epi32(v, 2)); }
inline Ints gather_tops(Ints a, Ints b, Ints c) {
  const Ints first = _mm256_and_si256(_mm256_srli_epi32(a, 3), _mm256_set1_epi8(0x11));
  const Ints second = _mm256_and_si256(_mm256_srli_epi32(b, 2), _mm256_set1_epi8(0x22));
  const Ints third = _mm256_and_si256(_mm256_srli_epi32(c, 1), _mm256_set1_epi8(0x44));
  return _mm256_or_si256(_mm256_or_si256(first, second), third);
}
inline Floats gather(const float* p, Ints offsets) { return _mm256_i32gather_ps(p, offsets, 4); }
inline Floats to_float(Ints v) { return _mm256_cvtepi32_ps(v); }
inline Ints mul(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
inline Ints sub(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
inline Ints sub_bytes(Ints a, Ints b) { return _mm256_sub_epi8(a, b); }
inline Ints widen_bytes(const uint8_t* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
inline Ints unpack_nibbles(const uint8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  const Ints v = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
  return low_nibbles(_mm256_or_si256(v, _mm256_slli_epi64(v, 28)));
}
inline Ints centred(Ints v) { return _mm256_xor_si256(v, _mm256_set1_epi8(char(0x80))); }
inline Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline Ints max(Ints a, Ints b) { return _mm256_max_epi32(a, b); }
inline Ints abs_bits(Ints of_float) { return _mm256_and_si256(of_float, _mm256_set1_epi32(0x7fffffff)); }
inline int32_t reduce_add(Ints v) {
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
inline int32_t reduce_max(Ints v) {
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
inline Ints round_to_int(Floats v) { return _mm256_cvtps_epi32(v); }  // half to even
inline Bytes narrow_to_bytes(Ints v) {
  const Ints dwords = _mm256_shuffle_epi8(v, _mm256_set1_epi32(0x0c080400));
  return _mm_unpacklo_epi32(_mm256_castsi256_si128(dwords), _mm256_extracti128_si256(dwords, 1));
}
inline void store_bytes(void* p, Bytes v) { _mm_storel_epi64((__m128i*)p, v); }
template <int n>
inline Ints shift_left(Ints v) { return _mm256_slli_epi32(v, n); }
template <int n>
inline Ints shift_right(Ints v) { return _mm256_srai_epi32(v, n); }
inline Ints bit_xor(Ints a, Ints b) { return _mm256_xor_si256(a, b); }
inline Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats fmadd(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats permute(Floats from, Ints places) { return _mm256_permutevar8x32_ps(from, places); }
inline __m256 add_halves(Floats v) { return v; }
inline Ints unpacklo_32(Ints a, Ints b) { return _mm256_unpacklo_epi32(a, b); }
inline Ints unpackhi_32(Ints a, Ints b) { return _mm256_unpackhi_epi32(a, b); }
inline Ints unpacklo_64(Ints a, Ints b) { return _mm256_unpacklo_epi64(a, b); }
inline Ints unpackhi_64(Ints a, Ints b) { return _mm256_unpackhi_epi64(a, b); }
inline void transpose_quarters(const Ints* from, Ints* to, int64_t apart) {
  to[0] = _mm256_permute2x128_si256(from[0], from[4], 0x20);
  to[apart] = _mm256_permute2x128_si256(from[0], from[4], 0x31);
}
constexpr bool kCentred = true;  // codes of 8 bits are taken from their middle: sums of two products fit into 16 bits
template <int kBits>
inline Ints dot(Ints into, Ints w, Ints x) {
  Ints pairs;
  if (kBits == 4) {
    pairs = _mm256_maddubs_epi16(w, x);
  } else {
    pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(centred(w)), _mm256_sign_epi8(x, centred(w)));
  }
  return _mm256_add_epi32(into, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
// As `dot`, in sums that `widened` makes those of dwords; of 4 bits 16 bits hold eight times 2 * 15 * 127.
template <int kBits>
inline Ints dot_short(Ints into, Ints w, Ints x) {
  return kBits == 4 ? _mm256_add_epi16(into, _mm256_maddubs_epi16(w, x)) : dot<kBits>(into, w, x);
}
template <int kBits>
inline Ints widened(Ints sums) {
  return kBits == 4 ? _mm256_madd_epi16(sums, _mm256_set1_epi16(1)) : sums;
}
inline Floats permute_first(Floats from, Ints places, int64_t count) {
  return _mm256_and_ps(permute(from, places), _mm256_castsi256_ps(first(count)));
}
#endif

// Of each 2 * kRun bytes those at even places, then the others.
template <int kRun>
inline Bytes deinterleave(Bytes v) {
  return _mm_shuffle_epi8(v, kRun == 4 ? _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)
                                       : _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15));
}

using Four = __m128;
inline Four load_four(const float* p) { return _mm_loadu_ps(p); }
inline void store(float* p, Four v) { _mm_storeu_ps(p, v); }
inline Four add(Four a, Four b) { return _mm_add_ps(a, b); }
// The sums of four vectors each.
inline Four reduce_add(const Floats* v) {
  __m256 h[4];
  for (int i = 0; i < 4; ++i) h[i] = add_halves(v[i]);
  const __m256 t = _mm256_hadd_ps(_mm256_hadd_ps(h[0], h[1]), _mm256_hadd_ps(h[2], h[3]));
  return _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
}

}  // namespace
}  // namespace PYTHIA_ISA
}  // namespace pythia
