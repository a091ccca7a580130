// Activations, rounded to int8.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstring>

#include "lanes.h"
#include "product.h"

namespace pythia {
namespace PYTHIA_ISA {
namespace {

// How codes lie. Of 4 bits the even four of each eight come before the odd four, as the halves of a dword of weights do.
enum Order {
  kApart,     // in rows; of 4 bits a whole vector of even fours before that of the odd ones
  kTogether,  // in rows
  kTiled,     // 16 rows' first `step` codes, then their next ones
};

// x in codes, each row padded with zeros to whole vectors; of tiles there are whole ones, with zeros for rows beyond the last.
struct Rounded {
  Order order;
  int64_t stride, blocks, step;
  int8_t* codes;  // [rows, stride]
  float* scale;   // [rows, blocks]; of tiles [rows / 16, blocks, 16], as the two below
  int32_t* sum;   // of codes
  float* owed;    // what a weight's code of one more would add: scale * sum

  Rounded(const Product& p, Order as, float* memory)
      : order(as),
        stride((p.blocks() * p.block + 2 * kStep - 1) / (2 * kStep) * (2 * kStep)),
        blocks(p.blocks()),
        step(p.block < 64 ? p.block : 64) {
    const int64_t places = rows_of(p) * blocks;
    codes = reinterpret_cast<int8_t*>(memory), memory += rows_of(p) * stride / 4;
    scale = memory, owed = memory + places, sum = reinterpret_cast<int32_t*>(memory + 2 * places);
  }

  size_t floats(const Product& p) const { return size_t(rows_of(p) * (3 * blocks + stride / 4)); }

  // Zeros for the rows beyond the last.
  void begin(const Product& p) {
    if (rows_of(p) == p.rows) return;
    const int64_t last = rows_of(p) - 16;
    std::memset(codes + last * stride, 0, size_t(16 * stride));
    std::memset(scale + last * blocks, 0, size_t(16 * blocks) * sizeof(float));
    std::memset(sum + last * blocks, 0, size_t(16 * blocks) * sizeof(float));
  }

  int64_t place(int64_t m, int64_t b) const {
    return order == kTiled ? (m / 16 * blocks + b) * 16 + m % 16 : m * blocks + b;
  }

  void row(const Product& p, int64_t m) {
    if (order != kTiled) std::memset(codes + m * stride, 0, size_t(stride));
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t begin = b * p.block;
      const float* x = p.x + m * p.depth + begin;
      float padded[256];
      if (begin + p.block > p.depth) {
        std::memset(padded, 0, sizeof padded);
        std::memcpy(padded, x, size_t(p.depth - begin) * sizeof(float));
        x = padded;
      }
      Ints most = broadcast(0);  // magnitudes as integers order as they do themselves, NaN above all
      for (int64_t i = 0; i < p.block; i += kLanes) most = max(most, abs_bits(load(x + i)));
      const int32_t bits = reduce_max(most);
      float largest;
      std::memcpy(&largest, &bits, sizeof largest);
      const bool finite = bits < 0x7f800000;
      const bool nothing = largest / 127 < FLT_MIN;  // a scale that is not exact would give codes beyond 127
      const float by = !finite ? NAN : nothing ? 1 : largest / 127;
      const Floats inverse = broadcast(1 / by);  // as ONNX Runtime does, so that codes are the same
      Ints total = broadcast(0);
      for (int64_t i = 0; i < p.block; i += kLanes) {
        const Ints code = round_to_int(mul(load_floats(x + i), inverse));
        total = add(total, code);
        put(p, m, begin + i, narrow_to_bytes(code));
      }
      const int64_t at = place(m, b);
      scale[at] = by, sum[at] = finite ? reduce_add(total) : 0, owed[at] = by * float(sum[at]);
    }
  }

 private:
  int64_t rows_of(const Product& p) const { return order == kTiled ? (p.rows + 15) / 16 * 16 : p.rows; }

  void put(const Product& p, int64_t m, int64_t k, Bytes code) {
    int8_t* to = codes + m * stride + k;
    if (order == kTiled) to = codes + m / 16 * 16 * stride + k / step * 16 * step + m % 16 * step + k % step;
    if (p.bits == 8) return store_bytes(to, code);
    if (order != kApart) return store_bytes(to, deinterleave<4>(code));
    alignas(16) int8_t both[kLanes];
    store_bytes(both, deinterleave<kLanes / 2>(code));
    to = codes + m * stride + k / (2 * kStep) * (2 * kStep) + k % (2 * kStep) / 2;
    std::memcpy(to, both, kLanes / 2), std::memcpy(to + kStep, both + kLanes / 2, kLanes / 2);
  }
};

// The implied zero of codes as they are read, of fewer bits than 4 as 4; and what is taken off them beforehand.
inline int32_t middle(const Product& p) { return p.bits == 8 ? 128 : 8; }
inline int32_t base(const Product& p) { return p.bits == 8 && kCentred ? 128 : 0; }

}  // namespace
}  // namespace PYTHIA_ISA
}  // namespace pythia
