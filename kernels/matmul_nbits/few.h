// Few rows: a column's codes are read as they lie, and multiplied by some rows at once.
//
// What it takes is the time in which the memory gives the weights, as long as nothing else waits for memory. So weights are
// read from end to end, by one instruction of one loop (the processor foretells each instruction's next address, and loses
// track when columns or unrolled steps take turns), and scales are prefetched as far ahead as codes are: a scale that has to
// be waited for holds up everything behind it. Both together took two fifths off the time of one row (Zen 5).
#pragma once

#include "narrow.h"
#include "rounded.h"

namespace pythia {
namespace PYTHIA_ISA {
namespace {

// A vector of weights' bytes as it lies: with 4 bits, of each dword the even codes, then the odd ones.
template <int kBits>
constexpr int64_t kReach = kLanes * 32 / kBits;

// Prefetches what is read soon, for the first cache alone; or twice: soon, and long before, to have it in the second one.
// Once is for Zen 5, where 6 KB ahead beat 4, 8, 12 and 16 (benchmarks/README.md).
constexpr uintptr_t kOnly = 3 << 11, kSoon = 1 << 12, kLater = 1 << 15;  // bytes of codes
inline void prefetch(uintptr_t at, bool twice, uintptr_t only = kOnly, uintptr_t soon = kSoon, uintptr_t later = kLater) {
  if (twice) {
    ask_for<kFirst>(at + soon);
    ask_for<kSecond>(at + later);
  } else {
    ask_for<kFirstAlone>(at + only);
  }
}
// The same of scales, which go along with codes: `bytes` of these have one.
inline void prefetch_scales(const float* scale, bool twice, uintptr_t bytes) {
  constexpr uintptr_t kOne = sizeof(float);
  prefetch(uintptr_t(scale), twice, kOnly / bytes * kOne, kSoon / bytes * kOne, kLater / bytes * kOne);
}

template <int kBits>
inline Ints dot_nibbles(Ints into, Ints w, const int8_t* codes) {
  if (kBits == 8) return dot_short<8>(into, w, load(codes));
  return dot_short<4>(dot_short<4>(into, low_nibbles(w), load(codes)), high_nibbles(w), load(codes + kStep));
}

inline Floats load_up_to(const float* from, int64_t count) {
  return count < kLanes ? load_floats(from, count) : load_floats(from);
}

// How codes are read: as they are stored; of fewer bits than 4, a few columns at a time brought into the form of 4
// (narrow.h), or vector by vector: of 2 bits, or of 3, where a plane is one vector or two.
enum Form { kStored, kWidened, kTwos, kThrees, kThreesOfTwo };

// What is multiplied of a vector in the form of 4 bits: each byte's low half, and its high one.
struct Halves {
  Ints low, high;
};

// Vector i of the form of 4 bits, of codes of 3 bits that begin at `column` with a chunk (narrow.h).
template <int kPer>  // vectors of a plane
inline Halves threes(const uint8_t* column, int64_t i, bool twice) {
  constexpr int64_t kPlane = kPer * kLanes * 4;
  const uint8_t* at = column + i / (4 * kPer) * (3 * kPlane) + i % kPer * kLanes * 4;
  const int64_t piece = i / kPer % 4;
  if (piece < 3) prefetch(uintptr_t(at + piece * kPlane), twice);
  const Ints v = piece < 3 ? load(at + piece * kPlane) : gather_tops(load(at), load(at + kPlane), load(at + 2 * kPlane));
  return {low_threes(v), high_threes(v)};
}

// The same of codes of 2 bits.
inline Halves twos(const uint8_t* column, int64_t i, bool twice) {
  constexpr int64_t kFrom = kLanes * 2;
  const uint8_t* at = column + i * kFrom;
  if (i * kFrom % 64 == 0) prefetch(uintptr_t(at), twice);
  const Ints v = spread_bytes(at);
  return {low_twos(v), high_twos(v)};
}

// Without kAhead nothing is prefetched.
template <int kBits, Form kForm, int kBlock, int kRows, bool kAhead = true>
struct Columns {
  static constexpr bool kWide = kForm == kWidened;
  static constexpr bool kTwo = kForm == kTwos, kThree = kForm == kThrees || kForm == kThreesOfTwo, kByVector = kTwo || kThree;
  static constexpr int kPer = kForm == kThreesOfTwo ? 2 : 1;
  // A vector holds blocks, or a block vectors.
  static constexpr int64_t kBytes = kBlock * kBits / 8;
  static constexpr int64_t kHeld = kBlock < kReach<kBits> ? kReach<kBits> / kBlock : 1;
  static constexpr int64_t kTaken = kBlock < kReach<kBits> ? 1 : kBlock / kReach<kBits>;

  const Product& p;
  const Rounded& x;
  int64_t m;     // the first row
  bool twice;    // whether memory is prefetched long before as well
  Ints places[kLanes];  // of each vector of kLanes blocks, whose scale each lane wants

  Floats zeros_alike() const { return broadcast(float(base(p) - middle(p))); }

  // What is to be taken off codes of column n, in blocks b to b + here.
  Floats zeros(int64_t n, int64_t b, int64_t here) const {
    if (!p.zero) return zeros_alike();
    uint8_t bytes[kLanes] = {};
    const int64_t bits = kForm != kStored ? p.zero_bits() : kBits;
    std::memcpy(bytes, p.zero + n * p.zero_bytes() + b * bits / 8, size_t((here * bits + 7) / 8));
    if (kForm != kStored && bits == 2) {
      uint8_t two[kLanes / 4];
      std::memcpy(two, bytes, sizeof two);
      widen_2(two, kLanes, 0, bytes, false);
    }
    return to_float(sub(broadcast(base(p)), kBits == 4 ? unpack_nibbles(bytes) : widen_bytes(bytes)));
  }

  // Of one column, whose codes begin at `weights`, kRows vectors that add up to its outputs.
  void column(const uint8_t* weights, int64_t n, Floats* to) const {
    const int64_t blocks = x.blocks, stride = x.stride;
    const int8_t* codes = x.codes + m * stride;
    const float *of_x = x.scale + m * blocks, *owed = x.owed + m * blocks;
    Floats sums[kRows];  // of its own: what `to` points at could be anything
    for (int r = 0; r < kRows; ++r) sums[r] = broadcast(0.0f);
    for (int64_t b = 0; b < blocks; b += kLanes) {
      const int64_t here = blocks - b < kLanes ? blocks - b : kLanes;
      const float* scale = p.scale + n * blocks + b;
      if (kAhead) prefetch_scales(scale, twice, kBytes);
      const Floats of_w = load_up_to(scale, here), zero = zeros(n, b, here);
      Floats scales[kRows];
      for (int r = 0; r < kRows; ++r) {
        scales[r] = mul(of_w, load_up_to(of_x + r * blocks + b, here));
        sums[r] = fmadd(mul(of_w, load_up_to(owed + r * blocks + b, here)), zero, sums[r]);
      }
      const int64_t vectors = here / kHeld;
      for (int64_t v = 0; v < vectors; ++v) {
        Ints inner[kRows];
        for (int r = 0; r < kRows; ++r) inner[r] = broadcast(0);
        for (int64_t t = 0; t < kTaken; ++t, weights += kLanes * 4, codes += kReach<kBits>) {
          if (kAhead && !kWide) prefetch(uintptr_t(weights), twice);
          const Ints w = load(weights);
          for (int r = 0; r < kRows; ++r) inner[r] = dot_nibbles<kBits>(inner[r], w, codes + r * stride);
        }
        for (int r = 0; r < kRows; ++r)
          sums[r] = fmadd(to_float(widened<kBits>(inner[r])), permute(scales[r], places[v]), sums[r]);
      }
      if (here % kHeld) {
        const Ints w = load(weights, here % kHeld * kBytes);
        for (int r = 0; r < kRows; ++r) {
          const Ints inner = dot_nibbles<kBits>(broadcast(0), w, codes + r * stride);
          sums[r] = fmadd(to_float(widened<kBits>(inner)), permute(scales[r], places[vectors]), sums[r]);
        }
      }
    }
    for (int r = 0; r < kRows; ++r) to[r] = sums[r];
  }

  static Halves halves(const uint8_t* column, int64_t i, bool twice) {
    if constexpr (kTwo)
      return twos(column, i, twice);
    else
      return threes<kPer>(column, i, twice);
  }

  // What is stored of so many bytes in the form of 4 bits.
  static constexpr int64_t stored(int64_t bytes) { return kTwo ? bytes / 2 : kThree ? bytes / 4 * 3 : bytes; }

  // The same of codes of 2 and 3 bits, for one row: no code is written before it is multiplied. `begin` is what `beginnings`
  // gives.
  Floats column_by_vector(const uint8_t* weights, int64_t n, const uint8_t* begin) const {
    constexpr int64_t kVectorsOf = kTwo ? kTaken : 4 * kPer;  // of 3 bits a chunk in the form of 4
    const int64_t blocks = x.blocks;
    const int8_t* codes = x.codes + m * x.stride;
    Floats sum = broadcast(0.0f);
    for (int64_t b = 0; b < blocks; b += kLanes) {
      const int64_t here = blocks - b < kLanes ? blocks - b : kLanes;
      const float* scale = p.scale + n * blocks + b;
      prefetch_scales(scale, twice, stored(kBytes));
      const Floats of_w = load_up_to(scale, here), zero = zeros(n, b, here);
      const Floats scales = mul(of_w, load_up_to(x.scale + m * blocks + b, here));
      sum = fmadd(mul(of_w, load_up_to(x.owed + m * blocks + b, here)), zero, sum);
      for (int64_t v = 0; v < here / kHeld; v += kVectorsOf / kTaken, weights += stored(kVectorsOf * kLanes * 4)) {
#pragma GCC unroll 8
        for (int64_t i = 0; i < kVectorsOf; i += kTaken, begin += kLanes * 4) {
          Ints inner = load(begin);
#pragma GCC unroll 8
          for (int64_t t = 0; t < kTaken; ++t, codes += kReach<kBits>) {
            const Halves w = halves(weights, i + t, twice);
            inner = dot_short<4>(dot_short<4>(inner, w.low, load(codes)), w.high, load(codes + kStep));
          }
          sum = fmadd(to_float(widened<kBits>(inner)), permute(scales, places[v + i / kTaken]), sum);
        }
      }
    }
    return sum;
  }

  // What sums of products begin with, so that codes of 3 bits count as 4 more each, and those of 2 as 6, where their zero
  // point is implied: that of 4 bits, as narrow.h has it.
  const uint8_t* beginnings() const {
    const int64_t count = x.blocks / kHeld;
    uint8_t* all = reinterpret_cast<uint8_t*>(scratch(kTask, size_t(count * kLanes)));
    const int8_t* codes = x.codes + m * x.stride;
    const Ints more = broadcast(p.zero ? 0 : kTwo ? 0x06060606 : 0x04040404);
    for (int64_t v = 0; v < count; ++v) {
      Ints begin = broadcast(0);
      for (int64_t t = 0; t < 2 * kTaken; ++t, codes += kStep) begin = dot_short<4>(begin, more, load(codes));
      store(all + v * kLanes * 4, begin);
    }
    return all;
  }

  void operator()(int64_t from, int64_t to) const {
    const uint8_t* begin = kByVector ? beginnings() : nullptr;
    if constexpr (kRows == 1) from = short_columns(from, to, begin);
    if constexpr (kByVector) {
      for (int64_t n = from; n < to; n += 4) {
        const int64_t columns = to - n < 4 ? to - n : 4;
        Floats sums[4][kRows] = {};
        for (int64_t c = 0; c < columns; ++c) sums[c][0] = column_by_vector(p.codes + (n + c) * p.row_bytes(), n + c, begin);
        put(sums, n, columns);
      }
      return;
    }
    const int64_t row_bytes = x.blocks * kBytes;
    const uint8_t* weights = p.codes + from * row_bytes;
    uint8_t* wide = kWide ? reinterpret_cast<uint8_t*>(scratch(kTask, size_t(row_bytes))) : nullptr;  // of 4 columns
    const Widen widen(p, twice);
    for (int64_t n = from; n < to; n += 4) {
      const int64_t columns = to - n < 4 ? to - n : 4;
      Floats sums[4][kRows] = {};
      if (kWide) widen.columns(n, columns, wide), weights = wide;
      for (int64_t c = 0; c < columns; ++c, weights += row_bytes) column(weights, n + c, sums[c]);
      put(sums, n, columns);
    }
  }

  // One row's outputs of short columns; returns the first column that is not done.
  int64_t short_columns(int64_t from, int64_t to, const uint8_t* begin) const {
    switch (x.blocks) {
      case 1: return together<1>(from, to, begin);
      case 2: return together<2>(from, to, begin);
      case 4: return together<4>(from, to, begin);
      case 6: return together<6>(from, to, begin);  // 768 in groups of 128
      case 8: return together<8>(from, to, begin);
      case 16: return together<16>(from, to, begin);
      default: return from;
    }
  }

  // Columns of kBlocks blocks: what is worked out of scales serves as many as share a vector of them, and x stays in
  // registers. The same sums as `column` gives.
  template <int kBlocks>
  int64_t together(int64_t from, int64_t to, [[maybe_unused]] const uint8_t* begin) const {
    constexpr int64_t kVectorsOf = kBlocks * kBytes / (kLanes * 4), kCodes = kVectorsOf * (kBits == 4 ? 2 : 1);
    constexpr bool kSlower = kBits == 8 && kBlocks == 6;  // by a tenth, with AVX-512
    if constexpr (kSlower || kBlocks > kLanes || kBlocks % kHeld || kCodes > 16 || (kThree && kVectorsOf % (4 * kPer))) {
      return from;
    } else {
      constexpr int64_t kShare = kLanes / kBlocks, kGroup = kShare < 4 ? 4 : kShare, kUsed = kShare * kBlocks;
      if (p.zero && kBlocks * (kForm != kStored ? p.zero_bits() : kBits) % 8) return from;
      alignas(64) uint8_t wide[kWide ? kGroup * kBlocks * kBytes : 1];
      const Widen widen(p, twice);
      float again[2][kLanes];
      Ints own[kShare];  // where each column's blocks are in a vector
      for (int64_t c = 0; c < kShare; ++c) {
        int32_t place[kLanes];
        for (int64_t i = 0; i < kLanes; ++i) {
          const int64_t b = i % kBlocks;
          again[0][i] = x.scale[m * kBlocks + b], again[1][i] = x.owed[m * kBlocks + b];
          place[i] = int32_t((c * kBlocks + i) % kLanes);
        }
        own[c] = load(place);
      }
      const Floats of_x = load_floats(again[0]), owed_of_x = load_floats(again[1]);
      Ints codes[kCodes];
      for (int64_t i = 0; i < kCodes; ++i) codes[i] = load(x.codes + m * x.stride + i * kStep);
      Floats zero = zeros_alike();
      constexpr int64_t kColumnBytes = stored(kBlocks * kBytes);
      const uint8_t* weights = p.codes + from * kColumnBytes;
      int64_t n = from;
      for (; n + kGroup <= to; n += kGroup) {
        if (kWide) widen.columns(n, kGroup, wide), weights = wide;
        Floats scales = zero, owed = zero;
#pragma GCC unroll 4
        for (int64_t four = 0; four < kGroup; four += 4) {
          Floats sums[4];
#pragma GCC unroll 4
          for (int64_t c = 0; c < 4; ++c) {
            const int64_t at = (four + c) % kShare;
            if (at == 0) {
              const float* scale = p.scale + (n + four + c) * kBlocks;
              if (kAhead) prefetch_scales(scale, twice, stored(kBytes));
              const Floats of_w = load_up_to(scale, kUsed);
              if (p.zero) zero = zeros(n + four + c, 0, kUsed);
              scales = mul(of_w, of_x), owed = mul(mul(of_w, owed_of_x), zero);
            }
            Floats sum = permute_first(owed, own[at], kBlocks);
#pragma GCC unroll 16
            for (int64_t v = 0; v < kVectorsOf / kTaken; ++v) {
              Ints inner = kByVector ? load(begin + v * kLanes * 4) : broadcast(0);
#pragma GCC unroll 16
              for (int64_t t = 0; t < kTaken; ++t) {
                const Ints* of = codes + (v * kTaken + t) * (kBits == 4 ? 2 : 1);
                if constexpr (kByVector) {
                  const Halves w = halves(weights, v * kTaken + t, twice);
                  inner = dot_short<4>(dot_short<4>(inner, w.low, of[0]), w.high, of[1]);
                  continue;
                }
                const uint8_t* at = weights + (v * kTaken + t) * kLanes * 4;
                if (kAhead && !kWide) prefetch(uintptr_t(at), twice);
                const Ints w = load(at);
                if (kBits == 8)
                  inner = dot_short<8>(inner, w, of[0]);
                else
                  inner = dot_short<4>(dot_short<4>(inner, low_nibbles(w), of[0]), high_nibbles(w), of[1]);
              }
              sum = fmadd(to_float(widened<kBits>(inner)), permute(scales, places[at * (kVectorsOf / kTaken) + v]), sum);
            }
            weights += kColumnBytes;
            sums[c] = sum;
          }
          Four y = reduce_add(sums);
          if (p.bias) y = add(y, load_four(p.bias + n + four));
          store(p.y + m * p.columns + n + four, y);
        }
      }
      return n;
    }
  }

  // Writes the outputs of up to four columns.
  void put(const Floats (*sums)[kRows], int64_t n, int64_t columns) const {
    for (int r = 0; r < kRows; ++r) {
      const Floats four[4] = {sums[0][r], sums[1][r], sums[2][r], sums[3][r]};
      Four y = reduce_add(four);
      float* out = p.y + (m + r) * p.columns + n;
      if (columns == 4) {
        if (p.bias) y = add(y, load_four(p.bias + n));
        store(out, y);
        continue;
      }
      alignas(16) float apart[4];
      store(apart, y);
      for (int64_t c = 0; c < columns; ++c) out[c] = apart[c] + (p.bias ? p.bias[n + c] : 0);
    }
  }
};

template <int kBits, Form kForm, int kBlock, int kRows, bool kAhead = true>
void rows_of(const Product& p, const Rounded& x, int64_t m, int64_t from, int64_t to) {
  // On Zen 4 one row of 8 bits takes a fifth less time without prefetching. By eight lanes it takes a twentieth more, and codes
  // of 4 bits take longer as well.
  if constexpr (kAhead && kBits == 8 && kRows == 1 && kLanes == 16)
    if (prefetch_policy == PrefetchPolicy::kFloatsOnce) return rows_of<kBits, kForm, kBlock, kRows, false>(p, x, m, from, to);
  Columns<kBits, kForm, kBlock, kRows, kAhead> columns{p, x, m, prefetch_policy != PrefetchPolicy::kOnce, {}};
  for (int64_t v = 0; v < kLanes; ++v) {
    int32_t place[kLanes];
    for (int64_t i = 0; i < kLanes; ++i)
      place[i] = int32_t(kBlock < kReach<kBits> ? (v * kLanes + i) * 32 / kBits / kBlock % kLanes : v);
    columns.places[v] = load(place);
  }
  columns(from, to);
}

constexpr int kRowsRead = kLanes == 16 ? 8 : 4;  // at once, as registers allow

template <int kBits, Form kForm, int kBlock, int kRows = kRowsRead>
void up_to(int64_t end, const Product& p, const Rounded& x, int64_t m, int64_t from, int64_t to) {
  if (end - m == kRows) return rows_of<kBits, kForm, kBlock, kRows>(p, x, m, from, to);
  if constexpr (kRows > 1) up_to<kBits, kForm, kBlock, kRows - 1>(end, p, x, m, from, to);
}

// One row of 3 bits; false where chunks do not go into as many blocks as a vector has scales of.
template <Form kForm, int kBlock>
bool one_of_threes(const Product& p, const Rounded& x, int64_t from, int64_t to) {
  constexpr int64_t kPer = kForm == kThreesOfTwo ? 2 : 1;
  if constexpr (kBlock < 32 * kPer) return false;
  if (p.bits != 3 || p.rows != 1 || p.plane() != kPer * kLanes * 4) return false;
  rows_of<4, kForm, kBlock, 1>(p, x, 0, from, to);
  return true;
}

// One row of 2 bits; false where a column is not whole vectors.
template <int kBlock>
bool one_of_twos(const Product& p, const Rounded& x, int64_t from, int64_t to) {
  if (p.bits != 2 || p.rows != 1 || p.numbers() % kReach<4>) return false;
  rows_of<4, kTwos, kBlock, 1>(p, x, 0, from, to);
  return true;
}

// Whether rows are fastest one after another: columns so short that their codes stay near meanwhile.
inline bool one_by_one(const Product& p) {
  const int64_t blocks = p.blocks();
  return p.rows * p.row_bytes() <= 1024 && blocks <= kLanes && (blocks & (blocks - 1)) == 0;
}

template <int kBits, Form kForm, int kBlock>
void few(const Product& p, const Rounded& x, int64_t from, int64_t to) {
  if constexpr (kForm == kWidened) {
    if (one_of_twos<kBlock>(p, x, from, to)) return;
    if (one_of_threes<kThrees, kBlock>(p, x, from, to)) return;
    if constexpr (kLanes == 8)
      if (one_of_threes<kThreesOfTwo, kBlock>(p, x, from, to)) return;
  } else if (one_by_one(p)) {  // what is brought into form serves several rows
    for (int64_t m = 0; m < p.rows; ++m) rows_of<kBits, kForm, kBlock, 1>(p, x, m, from, to);
    return;
  }
  const int64_t times = (p.rows + kRowsRead - 1) / kRowsRead;
  for (int64_t i = 0; i < times; ++i)
    up_to<kBits, kForm, kBlock>(p.rows * (i + 1) / times, p, x, p.rows * i / times, from, to);
}

template <int kBits, Form kForm = kStored>
void few(const Product& p, const Rounded& x, int64_t from, int64_t to) {
  switch (p.block) {
    case 16: return few<kBits, kForm, 16>(p, x, from, to);
    case 32: return few<kBits, kForm, 32>(p, x, from, to);
    case 64: return few<kBits, kForm, 64>(p, x, from, to);
    case 128: return few<kBits, kForm, 128>(p, x, from, to);
    default: return few<kBits, kForm, 256>(p, x, from, to);
  }
}

}  // namespace
}  // namespace PYTHIA_ISA
}  // namespace pythia
