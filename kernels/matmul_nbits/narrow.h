// Codes of 2 and 3 bits, brought into the form of those of 4: two in a byte, the low half first.
//
// Of 3 bits (pythia_export/weights/narrow.py) a column is chunks of four pieces. Three are planes of nibbles, one behind the
// other, whose top bits are spare; the fourth piece's bits 0, 1 and 2 are in the spare bits of the first, second and third.
// So of a vector of each plane come four vectors of nibbles, by seven masks and three shifts, and no code leaves its nibble.
//
// One row is the exception (few.h): it is multiplied vector by vector, without writing what is made of it.
//
// What is read of codes of 4 bits is the same afterwards: the middle of a grid without zero points is moved to 8.
#pragma once

#include "lanes.h"
#include "product.h"

namespace pythia {
namespace PYTHIA_ISA {
namespace {

inline bool is_narrow(const Product& p) { return p.bits < 4; }

template <int kBytes>
struct Of {
  typedef uint32_t Words __attribute__((vector_size(kBytes)));
  typedef uint16_t Halves __attribute__((vector_size(kBytes)));
  typedef uint8_t Bytes __attribute__((vector_size(kBytes / 2)));
};

template <typename Vector>
inline Vector read(const uint8_t* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

inline void fetch(const uint8_t* at, bool twice) {
  const uintptr_t soon = uintptr_t(at) + (1 << 12);
  if (twice) {
    ask_for<kFirst>(soon);
    ask_for<kSecond>(uintptr_t(at) + (1 << 15));
  } else {
    ask_for<kFirstAlone>(soon);
  }
}

template <int kPlane>
inline void widen_3(const uint8_t* from, int64_t chunks, uint32_t raise, uint8_t* to, bool twice) {
  constexpr int kBytes = kPlane < kLanes * 4 ? kPlane : int(kLanes * 4);
  using Words = typename Of<kBytes>::Words;
  for (int64_t c = 0; c < chunks; ++c, from += 3 * kPlane, to += 4 * kPlane) {
    for (int i = 0; i < 3 * kPlane; i += 64) fetch(from + i, twice);
    for (int i = 0; i < kPlane; i += kBytes) {
      const Words a = read<Words>(from + i), b = read<Words>(from + kPlane + i), d = read<Words>(from + 2 * kPlane + i);
      const Words four[] = {(a & 0x77777777u) + raise, (b & 0x77777777u) + raise, (d & 0x77777777u) + raise,
                            ((a >> 3 & 0x11111111u) | (b >> 2 & 0x22222222u) | (d >> 1 & 0x44444444u)) + raise};
      for (int j = 0; j < 4; ++j) std::memcpy(to + j * kPlane + i, &four[j], kBytes);
    }
  }
}

// Of each byte 16 bits: its halves apart, and the codes of each half apart.
template <typename Halves>
inline Halves spread_2(Halves v) {
  v = (v | v << 4) & uint16_t(0x0f0f);
  return (v | v << 2) & uint16_t(0x3333);
}

inline void widen_2(const uint8_t* from, int64_t count, uint16_t raise, uint8_t* to, bool twice) {
  constexpr int kBytes = int(kLanes * 4);
  using Halves = typename Of<kBytes>::Halves;
  int64_t i = 0, bytes = count / 4;
  for (; i + kBytes / 2 <= bytes; i += kBytes / 2) {
    if (i % 64 == 0) fetch(from + i, twice);
    Halves v = __builtin_convertvector(read<typename Of<kBytes>::Bytes>(from + i), Halves);
    v = spread_2(v) + raise;
    std::memcpy(to + 2 * i, &v, kBytes);
  }
  for (; i < bytes; ++i) {
    const uint16_t two = uint16_t(spread_2<uint32_t>(from[i]) + raise);
    std::memcpy(to + 2 * i, &two, 2);
  }
}

// Brings codes of columns into the form of 4 bits. What it needs to know of them is found once: a column is short.
struct Widen {
  const uint8_t* codes;
  int64_t row_bytes, numbers, plane;  // plane: of 3 bits
  uint32_t raise;
  bool two, twice;

  Widen(const Product& p, bool prefetched_twice)
      : codes(p.codes),
        row_bytes(p.row_bytes()),
        numbers(p.numbers()),
        plane(p.plane()),
        raise(p.zero ? 0 : p.bits == 3 ? 0x44444444u : 0x66666666u),
        two(p.bits == 2),
        twice(prefetched_twice) {}

  // Codes [begin, end), counted from the first of column n. Both are ends of chunks: 512 codes always are, and the ends
  // of columns, which follow one another.
  void operator()(int64_t n, int64_t begin, int64_t end, uint8_t* to) const {
    const uint8_t* from = codes + n * row_bytes;
    if (two) return widen_2(from + begin / 4, end - begin, uint16_t(raise), to, twice);
    from += begin / 8 * 3;
    if (plane == 64) return widen_3<64>(from, (end - begin) / 512, raise, to, twice);
    if (plane == 32) return widen_3<32>(from, (end - begin) / 256, raise, to, twice);
    widen_3<16>(from, (end - begin) / 128, raise, to, twice);
  }
  void columns(int64_t n, int64_t count, uint8_t* to) const { (*this)(n, 0, count * numbers, to); }
};

}  // namespace
}  // namespace PYTHIA_ISA
}  // namespace pythia
