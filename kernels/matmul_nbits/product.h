// A product of activations with weights of 2, 3, 4 or 8 bits: the activations rounded to int8 on the way, or as they are
// (`exact`).
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
  int64_t bits, block;           // 2, 3, 4 or 8; 16, 32, 64, 128 or 256
  bool exact;                    // x stays in float32
  const float* x;
  const uint8_t* codes;  // [columns, row_bytes], low bits first, of 3 bits as narrow.h says; the last block is whole
  const float* scale;    // [columns, blocks]
  const uint8_t* zero;   // [columns, ceil(blocks * zero_bits / 8)], low bits first; null: 2^(bits - 1)
  const float* bias;     // [columns], or null
  float* y;

  int64_t blocks() const { return (depth + block - 1) / block; }
  int64_t numbers() const { return blocks() * block; }  // codes of a column; of 3 bits a multiple of kNarrow
  int64_t row_bytes() const { return numbers() * bits / 8; }
  int64_t zero_bits() const { return bits == 3 ? 4 : bits; }
  int64_t zero_bytes() const { return (blocks() * zero_bits() + 7) / 8; }
  int32_t zero_of(int64_t column, int64_t b) const {
    if (!zero) return 1 << (bits - 1);
    const uint8_t* of = zero + column * zero_bytes();
    return of[b * zero_bits() / 8] >> (b * zero_bits() % 8) & ((1 << zero_bits()) - 1);
  }
  // Of 3 bits: bytes of a plane (narrow.h).
  int64_t plane() const { return numbers() % 512 == 0 ? 64 : numbers() % 256 == 0 ? 32 : 16; }
};

constexpr int64_t kNarrow = 128;

// A product in steps, for callers that hand the work out themselves. What x becomes is kept in memory of the caller's,
// `floats` of it, aligned to 64 bytes.
struct ProductSteps {
  size_t (*floats)(const Product&);
  void (*begin)(const Product&, float* memory);                                     // once, first
  void (*round)(const Product&, float* memory, int64_t from, int64_t to);           // rows, on any thread
  void (*multiply)(const Product&, const float* memory, int64_t from, int64_t to);  // columns, on any thread
  int64_t (*worth)(const Product&);  // multiplications that a task is worth the handing out for
};
constexpr int64_t kGrain = 32;   // `from` of `multiply` is a multiple of it: whole tiles, and whole lines of the cache
constexpr int64_t kFewRows = 8;  // fewer are rounded by the caller, which takes less than to hand them out

// Columns for a task, of this product and of `other` that goes along with it, or null.
int64_t columns_for_a_task(const ProductSteps&, const Product&, const Product* other = nullptr);
void product(const ProductSteps&, const Product&, const Parallel&);

extern const ProductSteps reference_product;
namespace avx2 {
extern const ProductSteps product_steps;
}
namespace avx512vnni {
extern const ProductSteps product_steps;
}
namespace neondot {
extern const ProductSteps product_steps;
}
namespace amx {
extern const ProductSteps product_steps;
}
namespace amx_emulated {
extern const ProductSteps product_steps;
}

}  // namespace pythia
