// The beam on an NVIDIA GPU: a warp takes one row through a block of places. Looking at choices its lanes are roundings,
// ranking them they are choices, and copying what roundings are owed they are places. Every operation is rounded by
// itself, as on a CPU, so that codes do not depend on which of both computes.
#include "beam.h"

#include "../cuda/platform.h"

namespace pythia {
namespace cuda {
namespace {

constexpr int kWarp = 32, kPlaces = kWarp;  // places at most: a lane each

// Both codes of every rounding: what they cost, and the error they make. Those of rounding s are at s and width + s.
template <int W>
struct Choices {
  float cost[2 * W], error[2 * W];
  uint8_t code[2 * W];
};

// What each place chose, for each rounding that came of it; at the end, which of them the rounding came by.
template <int W>
struct History {
  float error[kPlaces][W];
  uint8_t code[kPlaces][W], parent[kPlaces][W], path[kPlaces][W];
};

template <int W>
__device__ inline void look(const Beam& b, int64_t here, float pivot, float owed, float cost, int s, Choices<W>& found) {
  const float free = b.free[here], scale = b.scale[here], zero = b.zero[here], top = float(b.top);
  const float target = __fadd_rn(__fdiv_rn(owed, pivot), free), wanted = __fadd_rn(__fdiv_rn(target, scale), zero);
  const float near = rintf(fminf(fmaxf(wanted, 0.0f), top));
  const float other = fminf(fmaxf(wanted > near ? near + 1.0f : near - 1.0f, 0.0f), top);
  const bool none = near == other || near == wanted;  // at the end of the grid, and where the first is exact
  PYTHIA_UNROLL
  for (int second = 0; second < 2; ++second) {
    const float code = second ? other : near, value = __fmul_rn(__fsub_rn(code, zero), scale);
    const float lost = __fmul_rn(__fsub_rn(target, value), pivot);
    const int64_t at = second * b.width + s;
    found.cost[at] = second && none ? INFINITY : fminf(__fadd_rn(__fmul_rn(lost, lost), cost), INFINITY);  // a NaN becomes infinite
    found.error[at] = __fsub_rn(free, value), found.code[at] = uint8_t(code);
  }
}

// The columns apart follow their roundings. A lane has columns of its own, and keeps them in its own part of `kept`.
template <typename T, typename K>
__device__ inline void follow(T* at, const Beam& b, const int* origin, K* kept, int64_t stride) {
  for (int64_t c = threadIdx.x; c < b.apart; c += kWarp) {
    for (int64_t s = 0; s < b.width; ++s) kept[s * stride] = at[s * b.window + c];
    for (int64_t s = 0; s < b.width; ++s)
      if (origin[s] != s) at[s * b.window + c] = kept[origin[s] * stride];
  }
}

template <int W>
__global__ void __launch_bounds__(kWarp) round_row(Beam b) {
  __shared__ float owed[2][W][kPlaces], cost[W];
  __shared__ int chosen[W], origin[W];
  __shared__ Choices<W> found;
  __shared__ History<W> history;
  const int64_t r = blockIdx.x, m = b.places;
  const int width = int(b.width), lane = int(threadIdx.x);

  if (lane < m) {
    const float settled = b.settled[lane * b.row_stride + r];
    for (int s = 0; s < width; ++s) owed[0][s][lane] = __fadd_rn(b.owed[(r * width + s) * m + lane], settled);
  }
  for (int s = lane; s < width; s += kWarp) cost[s] = b.cost[r * width + s];
  __syncthreads();

  int turn = 0;
  for (int k = int(m) - 1; k >= 0; --k, turn ^= 1) {
    const float* factor = b.factor + k * b.factor_stride;
    for (int s = lane; s < width; s += kWarp)
      look(b, k * b.row_stride + r, factor[k], owed[turn][s][k], cost[s], s, found);
    __syncthreads();
    for (int i = lane; i < 2 * width; i += kWarp) {  // of equal costs the earlier comes first
      int rank = 0;
      for (int j = 0; j < 2 * width; ++j) rank += found.cost[j] < found.cost[i] || (found.cost[j] == found.cost[i] && j < i);
      if (rank < width) chosen[rank] = i;
    }
    __syncthreads();
    const float by = lane < k ? factor[lane] : 0.0f;
    for (int s = 0; s < width; ++s) {
      const int i = chosen[s], parent = i < width ? i : i - width;
      if (lane < k) owed[turn ^ 1][s][lane] = __fadd_rn(owed[turn][parent][lane], __fmul_rn(found.error[i], by));
    }
    for (int s = lane; s < width; s += kWarp) {
      const int i = chosen[s];
      cost[s] = __fsub_rn(found.cost[i], found.cost[chosen[0]]);
      history.error[k][s] = found.error[i], history.code[k][s] = found.code[i];
      history.parent[k][s] = uint8_t(i < width ? i : i - width);
    }
    __syncthreads();
  }

  for (int s = lane; s < width; s += kWarp) {
    b.cost[r * width + s] = cost[s];
    int from = s;
    for (int i = 0; i < m; ++i) history.path[i][s] = uint8_t(from), from = history.parent[i][from];
    origin[s] = from;
  }
  __syncthreads();
  float* errors = b.errors + r * width * b.window + b.first;
  uint8_t* codes = b.codes + r * width * b.window + b.first;
  bool moved = false;
  for (int s = 0; s < width; ++s) {
    moved |= origin[s] != s;
    if (lane >= m) continue;
    const int from = history.path[lane][s];
    errors[s * b.window + lane] = history.error[lane][from], codes[s * b.window + lane] = history.code[lane][from];
  }
  if (!moved) return;
  follow(errors + m, b, origin, &owed[0][0][lane], kPlaces);
  follow(codes + m, b, origin, history.code[lane], 1);
}

template <int W>
int launch(const Beam& b, cudaStream_t stream) {
  PYTHIA_LAUNCH(round_row<W>, unsigned(b.rows), kWarp, stream, b);
  return int(cudaGetLastError());
}

}  // namespace
}  // namespace cuda
}  // namespace pythia

int pythia_cuda_beam(const pythia::Beam* beam, void* stream) {
  using namespace pythia::cuda;
  if (!pythia::in_range(*beam, kPlaces)) return -1;
  if (!beam->rows) return 0;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  return beam->width <= 8 ? launch<8>(*beam, on) : beam->width <= 16 ? launch<16>(*beam, on) : launch<64>(*beam, on);
}
