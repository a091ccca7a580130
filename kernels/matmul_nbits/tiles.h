// AMX: eight registers of 16 rows of 64 bytes, and products of such tiles. Written by hand, since compilers' own intrinsics
// take literals alone, and GCC's do not say that they read memory. PYTHIA_EMULATE_TILES has them in plain C++, for tests.
#pragma once

#include <cstdint>
#include <cstring>

namespace pythia {
namespace PYTHIA_ISA {
namespace {

// What LDTILECFG reads (Intel's Software Developer's Manual, volume 1, 18.2).
struct TileShapes {
  uint8_t palette = 1, start = 0, none[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

#ifndef PYTHIA_EMULATE_TILES
inline void shape_tiles(const TileShapes& shapes) { __asm__ volatile("ldtilecfg %0" ::"m"(shapes)); }
inline void release_tiles() { __asm__ volatile("tilerelease" ::: "memory"); }
template <int kTo>
inline void load_tile(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTo) : "memory");
}
template <int kFrom>
inline void store_tile(void* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kFrom) : "memory");
}
template <int kTile>
inline void clear_tile() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile) : "memory");
}
// Adds A's rows of int8 times B's columns, of which a row of B holds four numbers each.
template <int kTo, int kA, int kB>
inline void multiply_tiles() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kTo), "i"(kA), "i"(kB) : "memory");
}
#else
struct Tiles {
  TileShapes shapes;
  int8_t bytes[8][16][64];
};
thread_local Tiles tiles;
inline void shape_tiles(const TileShapes& shapes) { tiles.shapes = shapes, std::memset(tiles.bytes, 0, sizeof tiles.bytes); }
inline void release_tiles() {}
template <int kTo>
inline void load_tile(const void* from, int64_t stride) {
  for (int r = 0; r < tiles.shapes.rows[kTo]; ++r)
    std::memcpy(tiles.bytes[kTo][r], static_cast<const char*>(from) + r * stride, tiles.shapes.bytes[kTo]);
}
template <int kFrom>
inline void store_tile(void* to, int64_t stride) {
  for (int r = 0; r < tiles.shapes.rows[kFrom]; ++r)
    std::memcpy(static_cast<char*>(to) + r * stride, tiles.bytes[kFrom][r], tiles.shapes.bytes[kFrom]);
}
template <int kTile>
inline void clear_tile() {
  std::memset(tiles.bytes[kTile], 0, sizeof tiles.bytes[kTile]);
}
template <int kTo, int kA, int kB>
inline void multiply_tiles() {
  for (int r = 0; r < tiles.shapes.rows[kTo]; ++r)
    for (int n = 0; n < tiles.shapes.bytes[kTo] / 4; ++n) {
      int32_t sum;
      std::memcpy(&sum, tiles.bytes[kTo][r] + 4 * n, 4);
      for (int k = 0; k < tiles.shapes.bytes[kA]; ++k)
        sum += tiles.bytes[kA][r][k] * tiles.bytes[kB][k / 4][4 * n + k % 4];
      std::memcpy(tiles.bytes[kTo][r] + 4 * n, &sum, 4);
    }
}
#endif

}  // namespace
}  // namespace PYTHIA_ISA
}  // namespace pythia
