// pythia::RotaryAttention on an NVIDIA GPU: up to three kernels and the copy of a past that is not the present's own buffer.
//
// - append: one block a new token and head; one warp turns and writes the key, the other writes the value.
// - attend: one block a head, a tile of queries and a part of the cached length. Eight lanes share a cached place, so that
//   one load brings whole lines; the sixteen groups of a block take every sixteenth place, each with a softmax of its own
//   that is kept up to date (FlashAttention-2, arXiv 2307.08691, algorithm 1), and are joined at the end by their largest
//   scores. A tile has one query in decode, and as many as registers hold in prefill: a place is read once for all of them.
// - combine: joins the parts, where the length was split because heads are fewer than the device has work for
//   (Flash-Decoding).
//
// Products run on CUDA cores here: decode, which memory limits, loses nothing by it. Prompts of 16 bits run on tensor cores
// (tiles.h).
#include "attend.h"

#include "split.h"
#include "tiles.h"
#include "turn.h"

namespace pythia {
namespace cuda {
namespace {

using Call = PythiaCudaAttention;

constexpr int kWarp = 32, kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kLanes = 8, kGroups = kThreads / kLanes;  // lanes that share a cached place; places in hand at once
constexpr int kMostDim = 256;
constexpr int64_t kLeastSpan = 256;          // cached places that are worth a block of their own
constexpr int64_t kBlocksPerProcessor = 4;   // that a multiprocessor holds at once, or nearly (registers limit them)
constexpr unsigned kAll = 0xFFFFFFFFu;

template <typename C>
constexpr bool kScaled = sizeof(C) == 1;

int64_t parts(int64_t n, int64_t of) { return (n + of - 1) / of; }

// ---- append

template <typename A, typename C>
__global__ void append(Call a) {
  const int64_t token = blockIdx.x, head = blockIdx.y, n = a.head_dim, hidden = a.heads * n, half = a.rotary_dim / 2;
  const int64_t place = (token / a.fresh * a.heads + head) * a.room + a.total - a.fresh + token % a.fresh;
  const bool is_value = threadIdx.x >= kWarp;
  const int lane = int(threadIdx.x) % kWarp;
  const A* from = static_cast<const A*>(a.qkv) + token * 3 * hidden + (is_value ? 2 : 1) * hidden + head * n;
  const Turn<A> turn(a, token);
  float x[kMostDim / kWarp];
  PYTHIA_UNROLL
  for (int i = 0; i < kMostDim / kWarp; ++i) {
    const int64_t d = lane + i * kWarp;
    x[i] = d >= n ? 0.0f : is_value ? widen(from[d]) : turn(from, d, half);
  }
  C* to = static_cast<C*>(is_value ? a.value : a.key) + place * n;
  if constexpr (kScaled<C>) {
    float most = 0, poison = 0;  // a number that is not finite makes the scale NaN, so that it is not lost
    for (float v : x) most = fmaxf(most, fabsf(v)), poison += v * 0.0f;
    PYTHIA_UNROLL
    for (int by = 1; by < kWarp; by *= 2)
      most = fmaxf(most, __shfl_xor_sync(kAll, most, by)), poison += __shfl_xor_sync(kAll, poison, by);
    const float scale = __fdiv_rn(most, 127.0f) + poison;
    if (lane == 0) (is_value ? a.value_scale : a.key_scale)[place] = scale;
    PYTHIA_UNROLL
    for (int i = 0; i < kMostDim / kWarp; ++i)
      if (lane + i * kWarp < n)
        to[lane + i * kWarp] = scale > 0 ? C(fminf(fmaxf(rintf(__fdiv_rn(x[i], scale)), -127.0f), 127.0f)) : C(0);
  } else {
    PYTHIA_UNROLL
    for (int i = 0; i < kMostDim / kWarp; ++i)
      if (lane + i * kWarp < n) to[lane + i * kWarp] = narrow<C>(x[i]);
  }
}

// ---- attend

// A lane's dimensions of one cached place: fours, eight lanes apart.
template <typename C, int D>
__device__ inline void load_place(const C* from, int64_t n, int lane, float to[D / kLanes]) {
  PYTHIA_UNROLL
  for (int c = 0; c < D / (4 * kLanes); ++c) {
    const int64_t d = 4 * (lane + kLanes * c);
    if (n % 4 == 0 && d < n) {
      load_four(from + d, to + 4 * c);
    } else {
      PYTHIA_UNROLL
      for (int i = 0; i < 4; ++i) to[4 * c + i] = d + i < n ? widen(from[d + i]) : 0.0f;
    }
  }
}

// Queries of a block, where head_dim is padded to D.
template <int D, bool Decode>
constexpr int kQueries = Decode ? 1 : 512 / D;

template <typename A, typename C, int D, bool Decode>
__global__ void __launch_bounds__(kThreads) attend(Call a, Split split) {
  constexpr int Q = kQueries<D, Decode>, kOwn = D / kLanes;
  const int64_t row = blockIdx.x, first = int64_t(blockIdx.y) * Q, b = row / a.heads, h = row % a.heads;
  const int64_t n = a.head_dim, hidden = a.heads * n, past = a.total - a.fresh;
  const int lane = int(threadIdx.x) % kLanes, group = int(threadIdx.x) / kLanes;

  float q[Q][kOwn], mixed[Q][kOwn] = {}, largest[Q], sum[Q] = {};
  const float by = 1.0f / sqrtf(float(n));
  PYTHIA_UNROLL
  for (int t = 0; t < Q; ++t) {
    largest[t] = -INFINITY;
    const int64_t token = b * a.fresh + first + t;
    const bool real = first + t < a.fresh;
    const Turn<A> turn(a, real ? token : 0);
    const A* from = static_cast<const A*>(a.qkv) + token * 3 * hidden + h * n;
    PYTHIA_UNROLL
    for (int i = 0; i < kOwn; ++i) {
      const int64_t d = 4 * (lane + kLanes * (i / 4)) + i % 4;
      q[t][i] = real && d < n ? by * turn(from, d, a.rotary_dim / 2) : 0.0f;
    }
  }

  const C* key = static_cast<const C*>(a.key) + row * a.room * n;
  const C* value = static_cast<const C*>(a.value) + row * a.room * n;
  const A* bias = static_cast<const A*>(a.bias) + b * a.bias_batch;
  const int64_t begin = blockIdx.z * split.span, seen = past + (first + Q < a.fresh ? first + Q : a.fresh);
  const int64_t end = begin + split.span < seen ? begin + split.span : seen;
  for (int64_t base = begin; base < end; base += kGroups) {
    const int64_t place = base + group;
    float k[kOwn] = {}, v[kOwn] = {}, key_scale = 1, value_scale = 1;
    if (place < end) {
      load_place<C, D>(key + place * n, n, lane, k);
      load_place<C, D>(value + place * n, n, lane, v);
      if constexpr (kScaled<C>)
        key_scale = a.key_scale[row * a.room + place], value_scale = a.value_scale[row * a.room + place];
    }
    PYTHIA_UNROLL
    for (int t = 0; t < Q; ++t) {
      float score = 0;
      PYTHIA_UNROLL
      for (int i = 0; i < kOwn; ++i) score += q[t][i] * k[i];
      PYTHIA_UNROLL
      for (int by = 1; by < kLanes; by *= 2) score += __shfl_xor_sync(kAll, score, by);
      if (place >= end || first + t >= a.fresh || place > past + first + t) continue;
      score = score * key_scale + widen(bias[(first + t) * a.total + place]);
      if (score > largest[t]) {
        const float less = share(largest[t], score);
        sum[t] *= less, largest[t] = score;
        PYTHIA_UNROLL
        for (int i = 0; i < kOwn; ++i) mixed[t][i] *= less;
      }
      const float weight = score == -INFINITY ? 0.0f : expf(score - largest[t]);
      sum[t] += weight;
      PYTHIA_UNROLL
      for (int i = 0; i < kOwn; ++i) mixed[t][i] += weight * value_scale * v[i];
    }
  }

  PYTHIA_UNROLL
  for (int t = 0; t < Q; ++t)  // the groups of a warp
    PYTHIA_UNROLL
    for (int by = kLanes; by < kWarp; by *= 2) {
      const float other = __shfl_xor_sync(kAll, largest[t], by), both = fmaxf(largest[t], other);
      const float mine = share(largest[t], both), theirs = share(other, both);
      largest[t] = both;
      sum[t] = sum[t] * mine + __shfl_xor_sync(kAll, sum[t], by) * theirs;
      PYTHIA_UNROLL
      for (int i = 0; i < kOwn; ++i) mixed[t][i] = mixed[t][i] * mine + __shfl_xor_sync(kAll, mixed[t][i], by) * theirs;
    }

  __shared__ float warp_mixed[kWarps][Q][D], warp_largest[kWarps][Q], warp_sum[kWarps][Q];
  if (threadIdx.x % kWarp < kLanes)
    PYTHIA_UNROLL
    for (int t = 0; t < Q; ++t) {
      PYTHIA_UNROLL
      for (int i = 0; i < kOwn; ++i)
        warp_mixed[threadIdx.x / kWarp][t][4 * (lane + kLanes * (i / 4)) + i % 4] = mixed[t][i];
      if (lane == 0) warp_largest[threadIdx.x / kWarp][t] = largest[t], warp_sum[threadIdx.x / kWarp][t] = sum[t];
    }
  __syncthreads();
  for (int at = int(threadIdx.x); at < Q * D; at += kThreads) {
    const int t = at / D, d = at % D;
    if (d >= n || first + t >= a.fresh) continue;
    float most = -INFINITY, whole = 0, x = 0;
    for (int w = 0; w < kWarps; ++w) most = fmaxf(most, warp_largest[w][t]);
    for (int w = 0; w < kWarps; ++w) {
      const float part = share(warp_largest[w][t], most);
      whole += part * warp_sum[w][t], x += part * warp_mixed[w][t][d];
    }
    if (split.splits == 1) {
      static_cast<A*>(a.out)[(b * a.fresh + first + t) * hidden + h * n + d] = narrow<A>(x / whole);
    } else {
      float* part = part_of(a, split, row, first + t, blockIdx.z);
      part[d] = x;
      if (d == 0) part[n] = most, part[n + 1] = whole;
    }
  }
}

// ---- combine

template <typename A>
__global__ void combine(Call a, int64_t splits) {
  const int64_t n = a.head_dim, row = blockIdx.x / a.fresh, t = blockIdx.x % a.fresh;
  const float* parts = static_cast<const float*>(a.workspace) + blockIdx.x * splits * (n + 2);
  float most = -INFINITY, whole = 0;
  for (int64_t s = 0; s < splits; ++s) most = fmaxf(most, parts[s * (n + 2) + n]);
  for (int64_t s = 0; s < splits; ++s) whole += share(parts[s * (n + 2) + n], most) * parts[s * (n + 2) + n + 1];
  A* out = static_cast<A*>(a.out) + ((row / a.heads * a.fresh + t) * a.heads + row % a.heads) * n;
  for (int64_t d = threadIdx.x; d < n; d += kThreads) {
    float x = 0;
    for (int64_t s = 0; s < splits; ++s) x += share(parts[s * (n + 2) + n], most) * parts[s * (n + 2) + d];
    out[d] = narrow<A>(x / whole);
  }
}

// ---- launching

int padded(const Call& a) { return a.head_dim <= 64 ? 64 : a.head_dim <= 128 ? 128 : 256; }

bool by_tensor_cores(const Call& a) { return a.activations != kPythiaFloat32 && a.fresh >= tiles::kFewest; }

int64_t blocks_of_queries(const Call& a) {
  return parts(a.fresh, a.fresh == 1 ? 1 : by_tensor_cores(a) ? tiles::kQueries : 512 / padded(a));
}

Split split_of(const Call& a) {
  const int64_t blocks = a.batch * a.heads * blocks_of_queries(a), wanted = parts(kBlocksPerProcessor * a.multiprocessors, blocks);
  const int64_t most = parts(a.total, kLeastSpan), splits = wanted < 1 ? 1 : wanted < most ? wanted : most;
  const int64_t span = parts(parts(a.total, splits), kGroups) * kGroups;
  return {parts(a.total, span), span};
}

// The filled places of past become those of present.
cudaError_t copy_past(const void* past, void* present, const Call& a, size_t bytes, cudaStream_t stream) {
  if (past == present || a.total == a.fresh) return cudaSuccess;
  return cudaMemcpy2DAsync(present, size_t(a.room) * bytes, past, size_t(a.past_room) * bytes,
                           size_t(a.total - a.fresh) * bytes, size_t(a.batch * a.heads), cudaMemcpyDeviceToDevice, stream);
}

template <typename A, typename C, int D>
void launch_attend(const Call& a, Split split, cudaStream_t stream) {
  const dim3 grid(unsigned(a.batch * a.heads), unsigned(blocks_of_queries(a)), unsigned(split.splits));
  if (a.fresh == 1) {
    PYTHIA_LAUNCH((attend<A, C, D, true>), grid, kThreads, stream, a, split);
    return;
  }
  if constexpr (sizeof(A) == 2)
    if (by_tensor_cores(a)) {
      PYTHIA_LAUNCH((tiles::attend<A, C, D>), grid, tiles::kThreads, stream, a, split);
      return;
    }
  PYTHIA_LAUNCH((attend<A, C, D, false>), grid, kThreads, stream, a, split);
}

template <typename A, typename C>
int launch(const Call& a, cudaStream_t stream) {
  const size_t bytes = size_t(a.head_dim) * sizeof(C);
  cudaError_t error = copy_past(a.past_key, a.key, a, bytes, stream);
  if (!error) error = copy_past(a.past_value, a.value, a, bytes, stream);
  if (!error && kScaled<C>) error = copy_past(a.past_key_scale, a.key_scale, a, sizeof(float), stream);
  if (!error && kScaled<C>) error = copy_past(a.past_value_scale, a.value_scale, a, sizeof(float), stream);
  if (error) return error;
  PYTHIA_LAUNCH((append<A, C>), dim3(unsigned(a.batch * a.fresh), unsigned(a.heads)), 2 * kWarp, stream, a);
  const Split split = split_of(a);
  switch (padded(a)) {
    case 64: launch_attend<A, C, 64>(a, split, stream); break;
    case 128: launch_attend<A, C, 128>(a, split, stream); break;
    default: launch_attend<A, C, 256>(a, split, stream);
  }
  if (split.splits > 1)
    PYTHIA_LAUNCH((combine<A>), unsigned(a.batch * a.heads * a.fresh), kThreads, stream, a, split.splits);
  return cudaGetLastError();
}

template <typename A>
int launch(const Call& a, cudaStream_t stream) {
  switch (a.cache) {
    case kPythiaFloat32: return launch<A, float>(a, stream);
    case kPythiaFloat16: return launch<A, __half>(a, stream);
    case kPythiaInt8: return launch<A, int8_t>(a, stream);
    default: return kPythiaNoKernel;
  }
}

}  // namespace
}  // namespace cuda
}  // namespace pythia

int64_t pythia_cuda_workspace(const PythiaCudaAttention* a) {
  const int64_t splits = pythia::cuda::split_of(*a).splits;
  return splits == 1 ? 0 : a->batch * a->heads * a->fresh * splits * (a->head_dim + 2) * int64_t(sizeof(float));
}

int pythia_cuda_attend(const PythiaCudaAttention* a, void* stream) {
  using namespace pythia::cuda;
  if (a->head_dim > kMostDim) return kPythiaNoKernel;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  switch (a->activations) {
    case kPythiaFloat32: return launch<float>(*a, on);
    case kPythiaFloat16: return launch<__half>(*a, on);
    case kPythiaBfloat16: return launch<__nv_bfloat16>(*a, on);
    default: return kPythiaNoKernel;
  }
}
