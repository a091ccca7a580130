// Prefill by tensor cores, for activations of 16 bits (FlashAttention-2, arXiv 2307.08691, algorithm 1). A warp takes 16
// queries, a block four warps; cached places come a tile at a time into shared memory, in the activations' type, the values
// transposed, so that both products read two numbers at once. Scores, softmax and sums are float32; what tensor cores read,
// the queries, the cached numbers and the weights of the softmax, is rounded to the activations' type.
//
// Lanes and numbers of a product of 16 x 16 by 16 x 8 (PTX ISA, mma.m16n8k16): with g = lane / 4 and t = lane % 4, a lane has
// of the first rows g and g + 8 at columns 2t, 2t + 1, 2t + 8, 2t + 9; of the second those rows at column g; of the result
// rows g and g + 8 at columns 2t, 2t + 1. So the weights of a softmax lie already as the next product wants them.
#pragma once

#include "../../cuda/tensor.h"
#include "split.h"
#include "turn.h"

namespace pythia {
namespace cuda {
namespace tiles {

constexpr int kWarp = 32, kWarps = 4, kThreads = kWarp * kWarps;
constexpr int kRows = 16, kQueries = kRows * kWarps;  // of a warp, of a block
constexpr int kFewest = kRows;                        // queries that are worth it
constexpr int kGap = 8;                               // between rows in shared memory, so that lanes meet no bank twice
constexpr unsigned kAll = 0xFFFFFFFFu;

template <int D>
constexpr int kPlaces = D <= 128 ? 64 : 32;  // of a tile

template <typename A, int D>
struct Tile {
  alignas(16) A key[kPlaces<D>][D + kGap];
  alignas(16) A value[D][kPlaces<D> + kGap];
  float key_scale[kPlaces<D>];
};

// A lane takes a place, so that what lies side by side in `value` is written side by side.
template <typename A, typename C, int D>
__device__ inline void load(const PythiaCudaAttention& a, int64_t row, int64_t base, int64_t end, Tile<A, D>& tile) {
  constexpr bool kScaled = sizeof(C) == 1;
  constexpr int kFours = D / 4;
  const int64_t n = a.head_dim;
  for (int i = int(threadIdx.x); i < kPlaces<D> * kFours; i += kThreads) {
    const int at = i % kPlaces<D>, d = i / kPlaces<D> * 4;
    const int64_t place = base + at;
    float k[4] = {}, v[4] = {}, value_scale = 1;
    if (place < end && d < n) {
      const C* key = static_cast<const C*>(a.key) + (row * a.room + place) * n + d;
      const C* value = static_cast<const C*>(a.value) + (row * a.room + place) * n + d;
      if (n % 4 == 0) {
        load_four(key, k), load_four(value, v);
      } else {
        for (int j = 0; j < 4 && d + j < n; ++j) k[j] = widen(key[j]), v[j] = widen(value[j]);
      }
      if constexpr (kScaled) value_scale = a.value_scale[row * a.room + place];
    }
    PYTHIA_UNROLL
    for (int j = 0; j < 4; ++j) {
      const A x = narrow<A>(v[j] * value_scale);
      // A weight of zero does not hide a value that is not finite. It makes the score NaN instead, which those see who see
      // the place.
      const bool finite = fabsf(widen(x)) < INFINITY;
      tile.key[at][d + j] = narrow<A>(finite ? k[j] : NAN);  // codes are exact in 16 bits; their scale waits for the score
      tile.value[d + j][at] = finite ? x : narrow<A>(0.0f);
    }
  }
  if constexpr (kScaled)
    for (int at = int(threadIdx.x); at < kPlaces<D>; at += kThreads)
      tile.key_scale[at] = base + at < end ? a.key_scale[row * a.room + base + at] : 0.0f;
}

template <typename A, typename C, int D>
__global__ void __launch_bounds__(kThreads) attend(PythiaCudaAttention a, Split split) {
  constexpr int kSteps = D / 16, kColumns = D / 8, kScores = kPlaces<D> / 8;
  __shared__ Tile<A, D> tile;
  const int64_t row = blockIdx.x, b = row / a.heads, h = row % a.heads, n = a.head_dim, past = a.total - a.fresh;
  const int lane = int(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
  const int64_t block_first = int64_t(blockIdx.y) * kQueries, first = block_first + int(threadIdx.x) / kWarp * kRows;
  const int64_t query[2] = {first + g, first + g + 8};

  uint32_t q[kSteps][4];
  PYTHIA_UNROLL
  for (int which = 0; which < 2; ++which) {
    const bool real = query[which] < a.fresh;
    const int64_t token = b * a.fresh + (real ? query[which] : 0);
    const Turn<A> turn(a, token);
    const A* from = static_cast<const A*>(a.qkv) + token * 3 * a.heads * n + h * n;
    PYTHIA_UNROLL
    for (int s = 0; s < kSteps; ++s)
      PYTHIA_UNROLL
      for (int late = 0; late < 2; ++late) {
        float pair[2];
        PYTHIA_UNROLL
        for (int j = 0; j < 2; ++j) {
          const int64_t d = 16 * s + 8 * late + 2 * t + j;
          pair[j] = real && d < n ? turn(from, d, a.rotary_dim / 2) : 0.0f;
        }
        q[s][2 * late + which] = pack<A>(pair[0], pair[1]);
      }
  }

  float mixed[kColumns][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  const float by = 1.0f / sqrtf(float(n));
  const A* bias = static_cast<const A*>(a.bias) + b * a.bias_batch;
  const int64_t block_last = block_first + kQueries < a.fresh ? block_first + kQueries : a.fresh, seen = past + block_last;
  const int64_t begin = blockIdx.z * split.span, end = begin + split.span < seen ? begin + split.span : seen;
  for (int64_t base = begin; base < end; base += kPlaces<D>) {
    __syncthreads();  // nobody reads the tile before any more
    load<A, C, D>(a, row, base, end, tile);
    __syncthreads();
    if (first >= a.fresh || base > past + first + kRows - 1) continue;  // this warp sees nothing of it

    float score[kScores][4], most[2] = {-INFINITY, -INFINITY};
    PYTHIA_UNROLL
    for (int c = 0; c < kScores; ++c) {
      PYTHIA_UNROLL
      for (int i = 0; i < 4; ++i) score[c][i] = 0;
      const A* key = &tile.key[8 * c + g][2 * t];
      PYTHIA_UNROLL
      for (int s = 0; s < kSteps; ++s) mma<A>(score[c], q[s], load_pair(key + 16 * s), load_pair(key + 16 * s + 8));
      PYTHIA_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int which = i / 2, at = 8 * c + 2 * t + i % 2;
        const int64_t place = base + at;
        const float scale = sizeof(C) == 1 ? by * tile.key_scale[at] : by;
        const bool hidden = place >= end || query[which] >= a.fresh || place > past + query[which];
        score[c][i] = hidden ? -INFINITY : score[c][i] * scale + widen(bias[query[which] * a.total + place]);
        most[which] = fmaxf(most[which], score[c][i]);
      }
    }
    PYTHIA_UNROLL
    for (int which = 0; which < 2; ++which) {
      PYTHIA_UNROLL
      for (int other = 1; other < 4; other *= 2)  // the four lanes of a row
        most[which] = fmaxf(most[which], __shfl_xor_sync(kAll, most[which], other));
      const float now = fmaxf(largest[which], most[which]), less = share(largest[which], now);
      largest[which] = now, sum[which] *= less;
      PYTHIA_UNROLL
      for (int c = 0; c < kColumns; ++c) mixed[c][2 * which] *= less, mixed[c][2 * which + 1] *= less;
    }
    PYTHIA_UNROLL
    for (int c = 0; c < kScores; ++c)
      PYTHIA_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float x = score[c][i];
        score[c][i] = x == -INFINITY ? 0.0f : expf(x - largest[i / 2]);
        sum[i / 2] += score[c][i];
      }
    PYTHIA_UNROLL
    for (int s = 0; s < kPlaces<D> / 16; ++s) {
      uint32_t weights[4];
      PYTHIA_UNROLL
      for (int i = 0; i < 4; ++i)
        weights[i] = pack<A>(score[2 * s + i / 2][2 * (i % 2)], score[2 * s + i / 2][2 * (i % 2) + 1]);
      PYTHIA_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        const A* value = &tile.value[8 * c + g][16 * s + 2 * t];
        mma<A>(mixed[c], weights, load_pair(value), load_pair(value + 8));
      }
    }
  }

  PYTHIA_UNROLL
  for (int which = 0; which < 2; ++which) {
    PYTHIA_UNROLL
    for (int other = 1; other < 4; other *= 2) sum[which] += __shfl_xor_sync(kAll, sum[which], other);
    if (query[which] >= a.fresh) continue;
    float* part = split.splits == 1 ? nullptr : part_of(a, split, row, query[which], blockIdx.z);
    A* out = static_cast<A*>(a.out) + ((b * a.fresh + query[which]) * a.heads + h) * n;
    PYTHIA_UNROLL
    for (int c = 0; c < kColumns; ++c)
      PYTHIA_UNROLL
      for (int j = 0; j < 2; ++j) {
        const int64_t d = 8 * c + 2 * t + j;
        if (d >= n) continue;
        const float x = mixed[c][2 * which + j];
        if (part)
          part[d] = x;
        else
          out[d] = narrow<A>(x / sum[which]);
      }
    if (part && t == 0) part[n] = largest[which], part[n + 1] = sum[which];
  }
}

}  // namespace tiles
}  // namespace cuda
}  // namespace pythia
