#include "versions.h"

#include <cstdlib>
#include <cstring>

#include "half.h"

#ifdef PYTHIA_X86
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(_WIN32)
#include <windows.h>
#endif
#endif

namespace pythia {

#define PYTHIA_VERSION(isa)                                      \
  namespace isa {                                                \
  void attend(const Attention&, const Parallel&);                \
  void rotate(const Rotary&, const Parallel&);                   \
  void normalize(const Normalization&);                          \
  void activate(Activation, float*, int64_t);                    \
  double exponentials(const float*, int64_t, float, float*);     \
  void masses(const float*, int64_t, const float*, double*);     \
  double mass(const float*, int64_t, float);                     \
  bool beam(const Beam&);                                        \
  void widen(const uint16_t*, float*, int64_t);                  \
  void narrow(const float*, uint16_t*, int64_t);                 \
  }
PYTHIA_VERSION(base)
#ifdef PYTHIA_X86
PYTHIA_VERSION(avx2)
PYTHIA_VERSION(avx512)
#endif
#ifdef PYTHIA_WIDE
PYTHIA_VERSION(wide)
#endif

namespace reference {
void widen(const uint16_t* half, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = float_of(half[i]);
}
void narrow(const float* from, uint16_t* half, int64_t count) {
  for (int64_t i = 0; i < count; ++i) half[i] = half_of(from[i]);
}
}  // namespace reference

namespace {
bool always() { return true; }
#ifdef PYTHIA_X86
// Whether the processor has these bits of CPUID (leaf 1, ecx; leaf 7, ebx and ecx), and the system keeps these registers
// when it switches threads (XCR0). By hand, since __builtin_cpu_supports refuses "f16c" to compile in Clang 14.
bool has(unsigned leaf1, unsigned leaf7, unsigned kept, unsigned leaf7c = 0) {
  unsigned a, b, c, d, low, high;
  constexpr unsigned kSystemSays = 1u << 27;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & (leaf1 | kSystemSays)) != (leaf1 | kSystemSays)) return false;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & kept) != kept) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & leaf7) == leaf7 && (c & leaf7c) == leaf7c;
}

constexpr unsigned kFma = 1u << 12, kF16c = 1u << 29;        // leaf 1
constexpr unsigned kAvx2 = 1u << 5, kAvx512f = 1u << 16;     // leaf 7
constexpr unsigned kYmm = 0x06, kZmm = 0xE6;                 // XCR0
constexpr unsigned kAvx512dq = 1u << 17, kAvx512bw = 1u << 30, kAvx512vl = 1u << 31;
constexpr unsigned kVnni = 1u << 11;                         // leaf 7, ecx
bool has_vnni() { return has(kFma | kF16c, kAvx2 | kAvx512f | kAvx512dq | kAvx512bw | kAvx512vl, kZmm, kVnni); }
// Linux keeps tiles for those who have asked it to (Documentation/arch/x86/xstate.rst). Elsewhere tiles were never tried.
bool has_amx() {
#ifdef __linux__
  constexpr unsigned kTiles = 0x60000, kTileInt8 = 3u << 24;  // XCR0; leaf 7, edx: AMX-TILE and AMX-INT8
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  unsigned a, b, c, d;
  return has_vnni() && has(0, 0, kTiles) && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTileInt8) == kTileInt8 &&
         !syscall(SYS_arch_prctl, kRequestPermission, kTileData);
#else
  return false;
#endif
}
bool has_avx512() { return has(kFma | kF16c, kAvx2 | kAvx512f, kZmm); }
bool has_avx2() { return has(kFma | kF16c, kAvx2, kYmm); }
#elif defined(__aarch64__)
// The dot product of Armv8.2. Every processor of a Mac has it.
bool has_dot() {
#if defined(__linux__)
  constexpr unsigned long kAsimdDp = 1ul << 20;  // Documentation/arch/arm64/elf_hwcaps.rst
  return getauxval(AT_HWCAP) & kAsimdDp;
#elif defined(_WIN32)
  constexpr DWORD kDotProduct = 43;  // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
  return IsProcessorFeaturePresent(kDotProduct);
#elif defined(__APPLE__)
  return true;
#else
  return false;
#endif
}
#endif
}  // namespace

#if defined(PYTHIA_X86)
#define PYTHIA_BASE "sse2"
#elif defined(__aarch64__)
#define PYTHIA_BASE "neon"
#else
#define PYTHIA_BASE "base"
#endif

#define PYTHIA_OF(isa, product) \
  isa::attend, isa::rotate, product, isa::normalize, isa::activate, isa::exponentials, isa::masses, isa::mass, isa::beam, \
      isa::widen, isa::narrow

const Version kVersions[] = {
#ifdef PYTHIA_X86
    {"amx", has_amx, PYTHIA_OF(avx512, &amx::product_steps)},
    {"avx512vnni", has_vnni, PYTHIA_OF(avx512, &avx512vnni::product_steps)},
    {"avx512", has_avx512, PYTHIA_OF(avx512, &avx2::product_steps)},
    {"avx2", has_avx2, PYTHIA_OF(avx2, &avx2::product_steps)},
#elif defined(__aarch64__)
    {"neondot", has_dot, PYTHIA_OF(base, &neondot::product_steps)},
#endif
    {PYTHIA_BASE, always, PYTHIA_OF(base, nullptr)},
#if defined(PYTHIA_WIDE) && defined(PYTHIA_X86)
    {"amx_emulated", has_vnni, PYTHIA_OF(avx512, &amx_emulated::product_steps)},
#endif
#ifdef PYTHIA_WIDE
    {"wide", always, PYTHIA_OF(wide, nullptr)},
#endif
    {"reference", always, attend_reference, rotate_reference, &reference_product, normalize_reference, activate_reference,
     exponentials_reference, masses_reference, mass_reference, beam_reference, reference::widen, reference::narrow},
};
const size_t kVersionCount = sizeof kVersions / sizeof *kVersions;

const Version* chosen() {
  const char* asked = std::getenv("PYTHIA_KERNELS_ISA");
  if (asked && !*asked) asked = nullptr;
  for (const Version& version : kVersions)
    if (asked ? !std::strcmp(asked, version.name) && version.runs_here() : version.runs_here()) return &version;
  return nullptr;
}

}  // namespace pythia

const char* pythia_version() {
  const pythia::Version* version = pythia::chosen();
  return version ? version->name : nullptr;
}
