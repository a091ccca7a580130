// The CUDA kernel's source, emulated on a CPU, against the reference: rotary_attention_cuda_test [seed] [cases].
#define PYTHIA_EMULATE_CUDA
#include "attend.cu"

#include "../fuzz.h"

using namespace pythia;

namespace {

// What an output may be off, relative to the largest, by activations; twice that where tensor cores round what they read.
constexpr double kStep[] = {1e-5, 1e-3, 8e-3};
constexpr int64_t kByTensorCores = 16;  // tokens from which on they do
constexpr int kCacheType[] = {kPythiaFloat32, kPythiaFloat16, kPythiaInt8};
constexpr int64_t kCacheBytes[] = {4, 2, 1};

// Numbers in the activations' type, in a buffer of exactly their size.
struct Activations {
  int type;
  size_t bytes;
  std::unique_ptr<char[]> at;

  // `x` takes the values that the type has.
  Activations(int type_, float* x, size_t n) : type(type_), bytes(type == kPythiaFloat32 ? 4 : 2), at(new char[n * bytes]) {
    for (size_t i = 0; i < n; ++i) {
      const uint16_t half = half_of(x[i]), brain = __float2bfloat16_rn(x[i]).bits;
      const void* from = type == kPythiaFloat32 ? (const void*)&x[i] : type == kPythiaFloat16 ? &half : &brain;
      std::memcpy(at.get() + i * bytes, from, bytes);
      x[i] = (*this)[i];
    }
  }
  float operator[](size_t i) const {
    float whole;
    uint16_t half;
    std::memcpy(type == kPythiaFloat32 ? (void*)&whole : &half, at.get() + i * bytes, bytes);
    return type == kPythiaFloat32 ? whole : type == kPythiaFloat16 ? float_of(half) : __bfloat162float({half});
  }
};

// A past of its own: the filled places of each head, which are wiped out of the present.
std::unique_ptr<char[]> moved_out(void* present, const Attention& a, int64_t past_room, int64_t bytes) {
  const size_t filled = size_t((a.total - a.fresh) * bytes);
  std::unique_ptr<char[]> past(new char[size_t(a.batch * a.heads * past_room * bytes)]);
  for (int64_t h = 0; h < a.batch * a.heads; ++h) {
    char* from = static_cast<char*>(present) + h * a.room * bytes;
    std::memcpy(past.get() + h * past_room * bytes, from, filled);
    std::memset(from, 0x55, filled);
  }
  return past;
}

// A case as the kernel takes it.
struct Cuda {
  Activations qkv, cos, sin, bias, out;
  std::unique_ptr<char[]> past[4], workspace;
  PythiaCudaAttention call{};

  Cuda(Case& c, int type)
      : qkv(type, c.qkv.get(), c.qkvs),
        cos(type, c.cos.get(), c.angles),
        sin(type, c.sin.get(), c.angles),
        bias(type, c.bias.get(), c.biases),
        out(type, c.out.get(), c.outs) {
    const Attention& a = c.a;
    call.batch = a.batch, call.heads = a.heads, call.head_dim = a.head_dim, call.rotary_dim = a.rotary_dim;
    call.fresh = a.fresh, call.total = a.total, call.room = call.past_room = a.room, call.positions = c.positions;
    call.bias_batch = a.bias_batch, call.activations = type, call.cache = kCacheType[int(a.cache)];
    call.qkv = qkv.at.get(), call.cos = cos.at.get(), call.sin = sin.at.get(), call.bias = bias.at.get();
    call.out = out.at.get(), call.position = a.position;
    call.past_key = call.key = a.key, call.past_value = call.value = a.value;
    call.past_key_scale = call.key_scale = a.key_scale, call.past_value_scale = call.value_scale = a.value_scale;
  }

  void move_past_out(const Attention& a, int64_t past_room) {
    const int64_t bytes = a.head_dim * kCacheBytes[int(a.cache)];
    call.past_room = past_room;
    call.past_key = (past[0] = moved_out(a.key, a, past_room, bytes)).get();
    call.past_value = (past[1] = moved_out(a.value, a, past_room, bytes)).get();
    if (a.cache != CacheType::kInt8) return;
    call.past_key_scale = (float*)(past[2] = moved_out(a.key_scale, a, past_room, sizeof(float))).get();
    call.past_value_scale = (float*)(past[3] = moved_out(a.value_scale, a, past_room, sizeof(float))).get();
  }

  int attend() {
    workspace.reset(new char[size_t(pythia_cuda_workspace(&call))]);
    call.workspace = workspace.get();
    return pythia_cuda_attend(&call, nullptr);
  }
};

// The outputs are the reference's to the activations' precision; the cache, places that the call must not touch included,
// to the bit.
bool agrees(Random& random, size_t index) {
  Case c = fuzzed(random, 1 + random.upto(1), 1 + random.upto(2), random.pick({1, 1, 1, 2, 3, 5, 8, 9, 16, 17, 40, 70}),
                  random.pick({0, 0, 1, 3, 15, 16, 64, 100, 300, 700}));
  const Attention& a = c.a;
  const float masked = random.upto(1) ? -3e4f : -INFINITY;
  for (size_t i = 0; c.hidden && i < c.biases; ++i)
    if (c.bias[i] < 0) c.bias[i] = masked;
  Cuda cuda(c, int(random.upto(2)));
  const Cached before(c);
  attend_reference(a, kTwoThreads);
  const auto wanted = copied(c.out, c.outs);
  const Cached wanted_cache(c);
  before.restore(c);
  if (random.upto(1)) cuda.move_past_out(a, a.total - a.fresh + random.upto(4));
  cuda.call.multiprocessors = int32_t(random.pick({0, 1, 2, 132}));
  const int answer = cuda.attend();
  double worst = answer ? 1e9 : 0, most = 1e-6;
  for (size_t i = 0; i < c.outs; ++i) {
    const int64_t query = int64_t(i) / (a.heads * a.head_dim) % a.fresh;
    if (a.total - a.fresh + query < c.hidden) continue;
    const double error = std::fabs(double(cuda.out[i]) - wanted[i]);
    worst = std::max(worst, error < 1e9 ? error : 1e9), most = std::max(most, double(std::fabs(wanted[i])));
  }
  const bool cached = same_bits(wanted_cache, Cached(c));
  const bool coarse = cuda.call.activations != kPythiaFloat32 && a.fresh >= kByTensorCores;
  if (worst <= (coarse ? 2 : 1) * kStep[cuda.call.activations] * most && cached) return true;
  std::printf("answer %d, activations %d, multiprocessors %d: ", answer, cuda.call.activations, cuda.call.multiprocessors);
  print("cuda", index, worst, most, cached, a);
  return false;
}

// What is not finite, and a position outside the tables, makes NaN of what sees it and of nothing else.
bool poisons(Random& random) {
  bool fine = true;
  for (int what = 0; what < 4; ++what)
    for (int type = 0; type < 3; ++type) {
      const int64_t fresh = random.pick({3, kByTensorCores, 33});
      Case c = fuzzed(random, 2, 1, fresh, 40);
      std::fill_n(c.bias.get(), c.biases, 0.0f);
      const int64_t n = c.a.head_dim;
      if (what == 0) c.qkv[(1 * 3 + 1) * n] = NAN;        // the second token's key
      if (what == 1) c.qkv[(1 * 3 + 2) * n] = INFINITY;   // its value
      if (what == 2) c.position[1] = c.positions;
      if (what == 3) c.position[1] = -1;
      Cuda cuda(c, type);
      fine = !cuda.attend() && fine;
      for (int64_t token = 0; token < 2 * fresh; ++token) {
        bool finite = true;
        for (int64_t d = 0; d < n; ++d) finite = finite && std::isfinite(cuda.out[size_t(token * n + d)]);
        fine = fine && finite == (token < 1 || token >= fresh);
      }
    }
  if (!fine) std::printf("what is not finite was lost or spread\n");
  return fine;
}

bool refuses() {
  PythiaCudaAttention call{};
  call.batch = call.heads = call.fresh = call.total = call.room = 1, call.head_dim = 257;
  bool fine = pythia_cuda_attend(&call, nullptr) == kPythiaNoKernel;
  call.head_dim = 64, call.activations = 3;
  fine = fine && pythia_cuda_attend(&call, nullptr) == kPythiaNoKernel;
  call.activations = 0, call.cache = kPythiaBfloat16;
  fine = fine && pythia_cuda_attend(&call, nullptr) == kPythiaNoKernel;
  if (!fine) std::printf("a call without a kernel was taken\n");
  return fine;
}

}  // namespace

int main(int argc, char** argv) {
  Random random{std::mt19937(argc > 1 ? unsigned(std::atoi(argv[1])) : 0)};
  const size_t cases = argc > 2 ? size_t(std::atoi(argv[2])) : 100;
  size_t failed = !poisons(random) + !refuses();
  for (size_t i = 0; i < cases; ++i) failed += !agrees(random, i);
  std::printf("ran: cuda, emulated\n%zu cases, %zu failures\n", cases, failed);
  return failed ? 1 : 0;
}
