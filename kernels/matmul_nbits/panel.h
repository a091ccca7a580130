// Weights of some columns, brought into the order of vectors: four numbers of one column in each lane.
#pragma once

#include "narrow.h"
#include "rounded.h"

namespace pythia {
namespace PYTHIA_ISA {
namespace {

// The weights of kTile columns in the order of vectors; columns beyond the last are the last again. Signed codes are what is
// left of codes when their zero point is taken off, of 8 bits their middle.
template <bool kSigned>
struct Panel {
  uint8_t* codes;  // [blocks * block / 4, kTile, 4]
  float* scale;    // [blocks, kTile]
  int32_t* zero;   // [blocks, kTile], what the sum of x's codes is multiplied by (of signed codes: of 8 bits alone)

  Panel(const Product& p, int64_t n) {
    const int64_t blocks = p.blocks(), numbers = p.numbers(), block_bytes = p.bits == 8 ? p.block : p.block / 2;
    const int64_t row_bytes = blocks * block_bytes;  // as they are read
    const int64_t unpacked = is_narrow(p) ? kLanes * row_bytes / 4 : 0;
    float* place = scratch(kTask, size_t(unpacked + numbers * kTile / 4 + (p.zero ? 2 : 1) * blocks * kTile));
    uint8_t* wide = reinterpret_cast<uint8_t*>(place);
    const Widen widen(p, false);
    place += unpacked;
    codes = reinterpret_cast<uint8_t*>(place), scale = place + numbers * kTile / 4;
    zero = p.zero ? reinterpret_cast<int32_t*>(scale + blocks * kTile) : nullptr;
    const int32_t from = kSigned ? p.bits == 8 ? 128 : 0 : base(p);
    for (int64_t v = 0; v < kVectors; ++v) {
      const int64_t first = n + v * kLanes < p.columns ? n + v * kLanes : p.columns - 1;
      const uint8_t* rows[kLanes];
      int32_t floats_apart[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t column = first + i < p.columns ? i : p.columns - 1 - first;
        rows[i] = p.codes + (first + column) * row_bytes, floats_apart[i] = int32_t(column * blocks);
        if (is_narrow(p)) {
          widen.columns(first + column, 1, wide + i * row_bytes);
          rows[i] = wide + i * row_bytes;
        }
        if (zero)
          for (int64_t b = 0; b < blocks; ++b) zero[b * kTile + v * kLanes + i] = from - p.zero_of(first + column, b);
      }
      const Ints scales_apart = load(floats_apart);
      uint8_t* to = codes + v * kLanes * 4;
      for (int64_t at = 0; at < row_bytes; at += kLanes * 4) {
        const int64_t left = row_bytes - at;
        Ints dwords[kLanes];
        for (int64_t i = 0; i < kLanes && !is_narrow(p); ++i)  // what the next columns have here
          ask_for<kFirst>(uintptr_t(rows[i]) + uintptr_t(at + kLanes * row_bytes));
        for (int64_t i = 0; i < kLanes; ++i)
          dwords[i] = left >= kLanes * 4 ? load(rows[i] + at) : load(rows[i] + at, left);
        transpose(dwords);
        for (int64_t i = 0; i < kLanes && 4 * i < left; ++i) {
          if (p.bits != 8) {
            Ints even = low_nibbles(dwords[i]), odd = high_nibbles(dwords[i]);
            if (kSigned) {
              const int64_t b = (at + 4 * i) / block_bytes;
              const Ints off = zero ? mul(load(zero + b * kTile + v * kLanes), broadcast(-0x01010101)) : broadcast(0x08080808);
              even = sub_bytes(even, off), odd = sub_bytes(odd, off);
            }
            store(to, even), store(to + kTile * 4, odd);
            to += 2 * kTile * 4;
          } else {
            store(to, kSigned ? centred(dwords[i]) : dwords[i]);
            to += kTile * 4;
          }
        }
      }
      for (int64_t b = 0; b < blocks; ++b)
        store(scale + b * kTile + v * kLanes, gather(p.scale + first * blocks + b, scales_apart));
    }
  }
};

}  // namespace
}  // namespace PYTHIA_ISA
}  // namespace pythia
