// A product of activations with weights of 4 or 8 bits, the activations rounded to int8 on the way.
//
// Of each row of x, each block of `block` numbers has a scale, max|x| / 127, and codes round(x * (1 / scale)), half to even. A
// block whose scale would be below the normal numbers counts as zeros; where a number is not finite the scale is NaN.
// y[m, n] is the sum over blocks of scale(x) * scale(w) * sum(code(x) * (code(w) - zero)), plus bias. The inner sums are
// of integers and exact.
#pragma once

#include <cstdint>

#include "../parallel.h"

namespace pythia {

struct Product {
  int64_t rows, depth, columns;  // x is [rows, depth], y is [rows, columns]
  int64_t bits, block;           // 4 or 8; 16, 32, 64, 128 or 256
  const float* x;
  const uint8_t* codes;  // [columns, blocks, block * bits / 8], of 4 bits the low one first; the last block is whole
  const float* scale;    // [columns, blocks]
  const uint8_t* zero;   // [columns, ceil(blocks * bits / 8)], packed as codes are; null: 2^(bits - 1)
  const float* bias;     // [columns], or null
  float* y;

  int64_t blocks() const { return (depth + block - 1) / block; }
  int64_t block_bytes() const { return block * bits / 8; }
  int64_t zero_bytes() const { return (blocks() * bits + 7) / 8; }
  int32_t middle() const { return 1 << (bits - 1); }
  int32_t zero_of(int64_t column, int64_t b) const {
    if (!zero) return middle();
    const uint8_t* of = zero + column * zero_bytes();
    return bits == 8 ? of[b] : of[b / 2] >> (b % 2 * 4) & 15;
  }
};

void product_reference(const Product&, const Parallel&);
namespace avx2 {
void product(const Product&, const Parallel&);
}
namespace avx512vnni {
void product(const Product&, const Parallel&);
}
namespace amx {
void product(const Product&, const Parallel&);
}
namespace amx_emulated {
void product(const Product&, const Parallel&);
}

}  // namespace pythia
