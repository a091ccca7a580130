// The product on a CPU with AMX: many rows by tiles of 16 x 16 sums; few rows, which wait for memory, as by AVX-512.
//
// A tile's sums of a block leave for memory, where vectors scale them and add them up. Tiles do not wait for that: while they
// multiply a block, the one before it is stored, tile by tile just before each is needed again, and that before it scaled, in
// slices between the products.
#include "panel.h"
#include "tiles.h"

namespace pythia {
namespace PYTHIA_ISA {
namespace {

constexpr int64_t kHeight = 16;  // rows of a tile
constexpr int64_t kFewest = 12;  // rows that tiles are worth it for

// Sums of a strip: up to two tiles' rows, and a panel's columns.
struct Sums {
  alignas(64) float total[2 * kHeight][kTile];
  alignas(64) int32_t inner[2][2 * kHeight][kTile];  // of the last two blocks
  alignas(64) float first[kTile];                    // what every row begins with
};

// What brings the sums of one block to scale, some rows at a time.
template <bool kOwed>
struct Scaling {
  const int32_t (*inner)[kTile];
  float (*total)[kTile];
  const float* of_x;   // [2, blocks, 16], as `sum`
  const int32_t* sum;
  int64_t second;      // how far the second 16 are from the first
  Floats of_w[kVectors], zero[kVectors];

  template <int kFrom, int kTo>
  void rows() const {
    for (int r = kFrom; r < kTo; ++r) {
      const int64_t at = r / kHeight * second + r % kHeight;
      const Floats by = broadcast(of_x[at]);
      for (int v = 0; v < kVectors; ++v) {
        Floats whole = to_float(load(inner[r] + v * kLanes));
        if (kOwed) whole = fmadd(broadcast(float(sum[at])), zero[v], whole);  // exact: below 2^24
        float* to = total[r] + v * kLanes;
        store(to, fmadd(mul(whole, by), of_w[v], load_floats(to)));
      }
    }
  }
};

struct Nothing {
  template <int kFrom, int kTo>
  void rows() const {}
};

// Stores what a tile of sums holds and empties it, where a block begins.
template <int kWhich>
inline void change(bool begins, int32_t (*last)[kTile]) {
  if (!begins) return;
  store_tile<kWhich>(last[kWhich / 2 * kHeight] + kWhich % 2 * kLanes, kTile * 4);
  clear_tile<kWhich>();
}

// Multiplies a block of kSteps tiles' depth.
template <int kTall, int kSteps, int kDone, typename Meanwhile>
inline void steps_of(const int8_t* x, int64_t second, int64_t step, const uint8_t* w, int32_t (*last)[kTile],
                     const Meanwhile& scaling) {
  constexpr int kSlice = 8 / kSteps, kAt = kDone * 2 * kTall * kSlice;
  constexpr bool kBegins = kDone == 0;
  load_tile<6>(w, kTile * 4);
  load_tile<4>(x, step);
  change<0>(kBegins, last);
  multiply_tiles<0, 4, 6>();
  scaling.template rows<kAt, kAt + kSlice>();
  load_tile<7>(w + kLanes * 4, kTile * 4);
  change<1>(kBegins, last);
  multiply_tiles<1, 4, 7>();
  scaling.template rows<kAt + kSlice, kAt + 2 * kSlice>();
  if constexpr (kTall == 2) {
    load_tile<5>(x + second, step);
    change<2>(kBegins, last);
    multiply_tiles<2, 5, 6>();
    scaling.template rows<kAt + 2 * kSlice, kAt + 3 * kSlice>();
    change<3>(kBegins, last);
    multiply_tiles<3, 5, 7>();
    scaling.template rows<kAt + 3 * kSlice, kAt + 4 * kSlice>();
  }
  if constexpr (kDone + 1 < kSteps)
    steps_of<kTall, kSteps, kDone + 1>(x + kHeight * step, second, step, w + step * kTile, last, scaling);
}

// Hands a strip's sums over, and begins anew.
inline void finish(const Product& p, int64_t m, int64_t n, int64_t height, Sums& s) {
  const int64_t rows = p.rows - m < height ? p.rows - m : height, columns = p.columns - n;
  for (int64_t r = 0; r < rows; ++r) {
    float* y = p.y + (m + r) * p.columns + n;
    if (columns >= kTile)
      for (int v = 0; v < kVectors; ++v) store(y + v * kLanes, load_floats(s.total[r] + v * kLanes));
    else
      std::memcpy(y, s.total[r], size_t(columns) * sizeof(float));
  }
  for (int64_t r = 0; r < height; ++r) std::memcpy(s.total[r], s.first, sizeof s.first);
}

// The rows from m to `end`, strip by strip, each block by block, without a pause between strips.
template <int kTall, int kSteps, bool kOwed>
void strips_of(const Product& p, const Rounded& x, const Panel<true>& panel, int64_t m, int64_t end, int64_t n, Sums& s) {
  constexpr int64_t kRows = kTall * kHeight;
  const int64_t blocks = x.blocks, count = (end - m + kRows - 1) / kRows * blocks;
  struct {
    int64_t m, b;
  } now{m, 0}, scaled{m, 0};
  for (int64_t i = 0; i < count + 2; ++i) {
    int32_t (*last)[kTile] = s.inner[(i + 1) & 1];  // where block i - 1 is stored; i - 2 is in the other
    const int64_t at = x.place(scaled.m, scaled.b);
    Scaling<kOwed> scaling{s.inner[i & 1], s.total, x.scale + at, x.sum + at, blocks * kHeight, {}, {}};
    for (int v = 0; v < kVectors; ++v) {
      scaling.of_w[v] = load_floats(panel.scale + scaled.b * kTile + v * kLanes);
      if (kOwed) scaling.zero[v] = to_float(load(panel.zero + scaled.b * kTile + v * kLanes));
    }
    if (i < count) {
      const int8_t* codes = x.codes + now.m * x.stride + now.b * p.block * kHeight;
      const uint8_t* weights = panel.codes + now.b * p.block * kTile;
      if (i < 2)
        steps_of<kTall, kSteps, 0>(codes, kHeight * x.stride, x.step, weights, last, Nothing());
      else
        steps_of<kTall, kSteps, 0>(codes, kHeight * x.stride, x.step, weights, last, scaling);
      if (++now.b == blocks) now = {now.m + kRows, 0};
    } else {
      if (i == count) {
        change<0>(true, last), change<1>(true, last);
        if (kTall == 2) change<2>(true, last), change<3>(true, last);
      }
      if (i >= 2) scaling.template rows<0, kRows>();
    }
    if (i >= 2 && ++scaled.b == blocks) {
      finish(p, scaled.m, n, kRows, s);
      scaled = {scaled.m + kRows, 0};
    }
  }
}

template <int kSteps, bool kOwed>
void columns_of(const Product& p, const Rounded& x, const Panel<true>& panel, int64_t n) {
  Sums s;
  for (int64_t i = 0; i < kTile; ++i) s.first[i] = p.bias && n + i < p.columns ? p.bias[n + i] : 0;
  for (auto& row : s.total) std::memcpy(row, s.first, sizeof row);
  const int64_t tall = (p.rows + kHeight - 1) / (2 * kHeight) * (2 * kHeight);  // where one tile is left, or none
  strips_of<2, kSteps, kOwed>(p, x, panel, 0, tall, n, s);
  if (tall < p.rows) strips_of<1, kSteps, kOwed>(p, x, panel, tall, p.rows, n, s);
}

template <int kSteps>
void columns_of(const Product& p, const Rounded& x, int64_t n) {
  const Panel<true> panel(p, n);
  p.bits == 8 && panel.zero ? columns_of<kSteps, true>(p, x, panel, n) : columns_of<kSteps, false>(p, x, panel, n);
}

bool tiled(const Product& p) { return p.rows >= kFewest && !p.exact; }
Rounded rounded(const Product& p, const float* memory) { return Rounded(p, kTiled, const_cast<float*>(memory)); }

size_t floats(const Product& p) {
  return tiled(p) ? rounded(p, nullptr).floats(p) : avx512vnni::product_steps.floats(p);
}

void begin(const Product& p, float* memory) {
  if (tiled(p)) rounded(p, memory).begin(p);
}

void round(const Product& p, float* memory, int64_t from, int64_t to) {
  if (!tiled(p)) return avx512vnni::product_steps.round(p, memory, from, to);
  Rounded x = rounded(p, memory);
  for (int64_t m = from; m < to; ++m) x.row(p, m);
}

void multiply(const Product& p, const float* memory, int64_t from, int64_t to) {
  if (!tiled(p)) return avx512vnni::product_steps.multiply(p, memory, from, to);
  const Rounded x = rounded(p, memory);
  TileShapes shapes;
  shapes.bytes[4] = shapes.bytes[5] = uint16_t(x.step);   // of x
  shapes.rows[6] = shapes.rows[7] = uint8_t(x.step / 4);  // of weights
  shape_tiles(shapes);
  for (int64_t n = from; n < to; n += kTile)
    p.block <= 64 ? columns_of<1>(p, x, n) : p.block == 128 ? columns_of<2>(p, x, n) : columns_of<4>(p, x, n);
  release_tiles();
}

int64_t worth(const Product& p) { return tiled(p) ? 1 << 20 : avx512vnni::product_steps.worth(p); }

}  // namespace

const ProductSteps product_steps{floats, begin, round, multiply, worth};

}  // namespace PYTHIA_ISA
}  // namespace pythia
