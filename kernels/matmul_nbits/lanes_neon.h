// Vectors of NEON with the dot product of Armv8.2: two registers are a vector, as wide as one of AVX2, whose sums they make
// in the same order. So what comes out has the same bits.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace pythia {
namespace PYTHIA_ISA {
namespace {

constexpr int64_t kLanes = 8;
struct Ints {
  int32x4_t low, high;
};
struct Floats {
  float32x4_t low, high;
};
using Bytes = int8x8_t;  // one of each lane
using Four = float32x4_t;

// Works on both halves of a vector.
template <typename F>
inline Ints bytewise(Ints v, F f) {
  return {vreinterpretq_s32_u8(f(vreinterpretq_u8_s32(v.low))), vreinterpretq_s32_u8(f(vreinterpretq_u8_s32(v.high)))};
}

inline Ints load(const void* p) {
  const uint8_t* bytes = static_cast<const uint8_t*>(p);
  return {vreinterpretq_s32_u8(vld1q_u8(bytes)), vreinterpretq_s32_u8(vld1q_u8(bytes + 16))};
}
inline Ints load(const void* p, int64_t bytes) {  // zeros beyond them
  uint8_t all[4 * kLanes] = {};
  std::memcpy(all, p, size_t(bytes));
  return load(all);
}
inline Floats load_floats(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
inline Floats load_floats(const float* p, int64_t count) {
  float all[kLanes] = {};
  std::memcpy(all, p, size_t(count) * sizeof(float));
  return load_floats(all);
}
inline void store(float* p, Floats v) { vst1q_f32(p, v.low), vst1q_f32(p + 4, v.high); }
inline void store(void* p, Ints v) {
  uint8_t* bytes = static_cast<uint8_t*>(p);
  vst1q_u8(bytes, vreinterpretq_u8_s32(v.low)), vst1q_u8(bytes + 16, vreinterpretq_u8_s32(v.high));
}
inline Ints broadcast(int32_t x) { return {vdupq_n_s32(x), vdupq_n_s32(x)}; }
inline Floats broadcast(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline Ints low_nibbles(Ints v) {
  return bytewise(v, [](uint8x16_t of) { return vandq_u8(of, vdupq_n_u8(15)); });
}
inline Ints high_nibbles(Ints v) {
  return bytewise(v, [](uint8x16_t of) { return vshrq_n_u8(of, 4); });
}
inline Ints low_threes(Ints v) {
  return bytewise(v, [](uint8x16_t of) { return vandq_u8(of, vdupq_n_u8(7)); });
}
inline Ints high_threes(Ints v) {
  return bytewise(v, [](uint8x16_t of) { return vandq_u8(vshrq_n_u8(of, 4), vdupq_n_u8(7)); });
}
inline int32x4_t spread_half(uint8x8_t bytes) {
  const uint16x8_t v = vmovl_u8(bytes);
  return vreinterpretq_s32_u16(vorrq_u16(v, vshlq_n_u16(v, 4)));
}
// Of each byte 16 bits, whose bytes have one half each in their lowest bits, and others above.
inline Ints spread_bytes(const void* p) {
  const uint8x16_t v = vld1q_u8(static_cast<const uint8_t*>(p));
  return {spread_half(vget_low_u8(v)), spread_half(vget_high_u8(v))};
}
inline Ints low_twos(Ints v) {
  return bytewise(v, [](uint8x16_t of) { return vandq_u8(of, vdupq_n_u8(3)); });
}
inline Ints high_twos(Ints v) {
  return bytewise(v, [](uint8x16_t of) { return vandq_u8(vshrq_n_u8(of, 2), vdupq_n_u8(3)); });
}
inline int32x4_t tops_of_half(int32x4_t a, int32x4_t b, int32x4_t c) {
  const uint8x16_t first = vandq_u8(vshrq_n_u8(vreinterpretq_u8_s32(a), 3), vdupq_n_u8(0x11));
  const uint8x16_t second = vandq_u8(vshrq_n_u8(vreinterpretq_u8_s32(b), 2), vdupq_n_u8(0x22));
  const uint8x16_t third = vandq_u8(vshrq_n_u8(vreinterpretq_u8_s32(c), 1), vdupq_n_u8(0x44));
  return vreinterpretq_s32_u8(vorrq_u8(vorrq_u8(first, second), third));
}
// Codes of 3 bits from the top bits of three vectors' nibbles.
inline Ints gather_tops(Ints a, Ints b, Ints c) {
  return {tops_of_half(a.low, b.low, c.low), tops_of_half(a.high, b.high, c.high)};
}
inline Floats gather(const float* p, Ints offsets) {
  int32_t at[kLanes];
  float found[kLanes];
  store(static_cast<void*>(at), offsets);
  for (int i = 0; i < kLanes; ++i) found[i] = p[at[i]];
  return load_floats(found);
}
inline Floats to_float(Ints v) { return {vcvtq_f32_s32(v.low), vcvtq_f32_s32(v.high)}; }
inline Ints mul(Ints a, Ints b) { return {vmulq_s32(a.low, b.low), vmulq_s32(a.high, b.high)}; }
inline Ints sub(Ints a, Ints b) { return {vsubq_s32(a.low, b.low), vsubq_s32(a.high, b.high)}; }
inline Ints sub_bytes(Ints a, Ints b) {
  return {vreinterpretq_s32_s8(vsubq_s8(vreinterpretq_s8_s32(a.low), vreinterpretq_s8_s32(b.low))),
          vreinterpretq_s32_s8(vsubq_s8(vreinterpretq_s8_s32(a.high), vreinterpretq_s8_s32(b.high)))};
}
inline Ints widen_bytes(uint8x8_t bytes) {
  const uint16x8_t halves = vmovl_u8(bytes);
  return {vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(halves))), vreinterpretq_s32_u32(vmovl_high_u16(halves))};
}
inline Ints widen_bytes(const uint8_t* p) { return widen_bytes(vld1_u8(p)); }
inline Ints unpack_nibbles(const uint8_t* p) {  // of each byte the low half, then the high one
  uint32_t four;
  std::memcpy(&four, p, sizeof four);
  const uint8x8_t v = vreinterpret_u8_u32(vdup_n_u32(four));
  return widen_bytes(vzip1_u8(vand_u8(v, vdup_n_u8(15)), vshr_n_u8(v, 4)));
}
inline Ints centred(Ints v) {
  return bytewise(v, [](uint8x16_t of) { return veorq_u8(of, vdupq_n_u8(0x80)); });
}
inline Ints add(Ints a, Ints b) { return {vaddq_s32(a.low, b.low), vaddq_s32(a.high, b.high)}; }
inline Ints max(Ints a, Ints b) { return {vmaxq_s32(a.low, b.low), vmaxq_s32(a.high, b.high)}; }
inline Ints abs_bits(Ints of_float) {
  const int32x4_t mask = vdupq_n_s32(0x7fffffff);
  return {vandq_s32(of_float.low, mask), vandq_s32(of_float.high, mask)};
}
inline int32_t reduce_add(Ints v) { return vaddvq_s32(vaddq_s32(v.low, v.high)); }
inline int32_t reduce_max(Ints v) { return vmaxvq_s32(vmaxq_s32(v.low, v.high)); }
inline Ints round_to_int(Floats v) { return {vcvtnq_s32_f32(v.low), vcvtnq_s32_f32(v.high)}; }  // half to even
inline Bytes narrow_to_bytes(Ints v) { return vmovn_s16(vcombine_s16(vmovn_s32(v.low), vmovn_s32(v.high))); }
inline void store_bytes(void* p, Bytes v) { vst1_s8(static_cast<int8_t*>(p), v); }
template <int n>
inline Ints shift_left(Ints v) { return {vshlq_n_s32(v.low, n), vshlq_n_s32(v.high, n)}; }
template <int n>
inline Ints shift_right(Ints v) { return {vshrq_n_s32(v.low, n), vshrq_n_s32(v.high, n)}; }  // with its sign
inline Ints bit_xor(Ints a, Ints b) { return {veorq_s32(a.low, b.low), veorq_s32(a.high, b.high)}; }
inline Floats add(Floats a, Floats b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
inline Floats mul(Floats a, Floats b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
inline Floats fmadd(Floats a, Floats b, Floats c) {
  return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}
inline float32x4_t permute_half(uint8x16x2_t from, int32x4_t places) {
  const int32x4_t bytes = vmlaq_s32(vdupq_n_s32(0x03020100), places, vdupq_n_s32(0x04040404));
  return vreinterpretq_f32_u8(vqtbl2q_u8(from, vreinterpretq_u8_s32(bytes)));
}
inline Floats permute(Floats from, Ints places) {
  const uint8x16x2_t all = {{vreinterpretq_u8_f32(from.low), vreinterpretq_u8_f32(from.high)}};
  return {permute_half(all, places.low), permute_half(all, places.high)};
}
// Of a vector the lanes at `places`, the first `count` of them; zeros in the others.
inline Floats permute_first(Floats from, Ints places, int64_t count) {
  const int32x4_t n = vdupq_n_s32(int32_t(count));
  const int32_t order[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7};
  const Ints lane = load(order);
  const Floats v = permute(from, places);
  return {vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v.low), vcgtq_s32(n, lane.low))),
          vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v.high), vcgtq_s32(n, lane.high)))};
}
inline Ints unpacklo_32(Ints a, Ints b) { return {vzip1q_s32(a.low, b.low), vzip1q_s32(a.high, b.high)}; }
inline Ints unpackhi_32(Ints a, Ints b) { return {vzip2q_s32(a.low, b.low), vzip2q_s32(a.high, b.high)}; }
inline int32x4_t lower_64(int32x4_t a, int32x4_t b) {
  return vreinterpretq_s32_s64(vzip1q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
}
inline int32x4_t upper_64(int32x4_t a, int32x4_t b) {
  return vreinterpretq_s32_s64(vzip2q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
}
inline Ints unpacklo_64(Ints a, Ints b) { return {lower_64(a.low, b.low), lower_64(a.high, b.high)}; }
inline Ints unpackhi_64(Ints a, Ints b) { return {upper_64(a.low, b.low), upper_64(a.high, b.high)}; }
inline void transpose_quarters(const Ints* from, Ints* to, int64_t apart) {
  to[0] = {from[0].low, from[4].low};
  to[apart] = {from[0].high, from[4].high};
}
constexpr bool kCentred = true;  // codes of 8 bits are taken from their middle: both factors of a dot product have signs
template <int kBits>
inline Ints dot(Ints into, Ints w, Ints x) {
  if (kBits == 8) w = centred(w);
  return {vdotq_s32(into.low, vreinterpretq_s8_s32(w.low), vreinterpretq_s8_s32(x.low)),
          vdotq_s32(into.high, vreinterpretq_s8_s32(w.high), vreinterpretq_s8_s32(x.high))};
}
template <int kBits>
inline Ints dot_short(Ints into, Ints w, Ints x) { return dot<kBits>(into, w, x); }
template <int kBits>
inline Ints widened(Ints sums) { return sums; }

// Of each 2 * kRun bytes those at even places, then the others.
template <int kRun>
inline Bytes deinterleave(Bytes v) {
  static_assert(kRun == 4, "of so many there are no more");
  const int8x8_t order = {0, 2, 4, 6, 1, 3, 5, 7};
  return vtbl1_s8(v, order);
}

inline Four load_four(const float* p) { return vld1q_f32(p); }
inline void store(float* p, Four v) { vst1q_f32(p, v); }
inline Four add(Four a, Four b) { return vaddq_f32(a, b); }
// The sums of four vectors each.
inline Four reduce_add(const Floats* v) {
  const Four low = vpaddq_f32(vpaddq_f32(v[0].low, v[1].low), vpaddq_f32(v[2].low, v[3].low));
  return vaddq_f32(low, vpaddq_f32(vpaddq_f32(v[0].high, v[1].high), vpaddq_f32(v[2].high, v[3].high)));
}

}  // namespace
}  // namespace PYTHIA_ISA
}  // namespace pythia
