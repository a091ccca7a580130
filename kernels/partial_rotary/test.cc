// Every version of pythia::PartialRotary, and of the conversions of float16, against the reference, to the bit:
// partial_rotary_test [seed] [cases].
#include "../native_test.h"

#include "../half.h"

using namespace pythia;

namespace {

bool rotates(const Version& version, Random& random, size_t index) {
  Rotary r{};
  r.head_dim = random.pick({32, 64, 80, 128, 256, 2, 6, 18, 34, 66});
  r.rotary_dim = std::min<int64_t>(r.head_dim, random.pick({8, 16, 20, 32, 64, 2, 0, 6}));
  r.batch = 1 + random.upto(2), r.heads = 1 + random.upto(4), r.tokens = 1 + random.upto(9);
  r.interleaved = random.upto(1);
  const bool flat = random.upto(1);
  r.batch_stride = r.heads * r.tokens * r.head_dim;
  r.head_stride = flat ? r.head_dim : r.tokens * r.head_dim;
  r.token_stride = flat ? r.heads * r.head_dim : r.head_dim;
  const int64_t tokens = r.batch * r.tokens, rows = random.upto(1) ? 7 : tokens;
  std::unique_ptr<int64_t[]> position(new int64_t[size_t(tokens)]);
  for (int64_t i = 0; i < tokens; ++i) position[size_t(i)] = random.upto(rows - 1);
  const size_t all = size_t(r.batch * r.batch_stride);
  const auto x = random.normal(all), cos = random.normal(size_t(rows * r.rotary_dim / 2));
  if (!random.upto(2)) random.spoil(x.get(), all, 9), random.spoil(cos.get(), size_t(rows * r.rotary_dim / 2), 9);
  const auto sin = random.normal(size_t(rows * r.rotary_dim / 2));
  std::unique_ptr<float[]> y(new float[all]);
  r.x = x.get(), r.cos = cos.get(), r.sin = sin.get(), r.y = y.get();
  r.position = rows == tokens && random.upto(1) ? nullptr : position.get();
  rotate_reference(r, kTwoThreads);
  const std::vector<float> wanted(y.get(), y.get() + all);
  std::fill_n(y.get(), all, NAN);
  version.rotate(r, kTwoThreads);
  if (std::equal(wanted.begin(), wanted.end(), y.get(), same_number)) return true;
  std::printf("%s, case %zu: batch %ld heads %ld tokens %ld head_dim %ld rotary_dim %ld interleaved %d\n", version.name, index,
              long(r.batch), long(r.heads), long(r.tokens), long(r.head_dim), long(r.rotary_dim), int(r.interleaved));
  return false;
}

// float16 to float32 for every number there is, and back for floats of every size, ties and subnormals among them.
bool converts(const Version& version, Random& random, size_t index) {
  const Version& reference = kVersions[kVersionCount - 1];
  const size_t count = index ? 1 + size_t(random.upto(99)) : 0x7C00;
  std::unique_ptr<uint16_t[]> half(new uint16_t[count]), back(new uint16_t[count]);
  std::unique_ptr<float[]> wide(new float[count]), wanted(new float[count]);
  for (size_t i = 0; i < count; ++i) half[i] = uint16_t(index ? size_t(random.upto(0x7BFF)) | (random.upto(1) ? 0x8000u : 0u) : i);
  reference.widen(half.get(), wanted.get(), int64_t(count));
  version.widen(half.get(), wide.get(), int64_t(count));
  bool right = !std::memcmp(wide.get(), wanted.get(), count * sizeof(float));
  for (size_t i = 0; index && i < count; ++i)  // between two numbers of float16: a tie, or off one by little or by much
    wide[i] *= 1.0f + std::ldexp(float(random.upto(4) - 2), -11 - int(random.upto(1)) * int(random.upto(13)));
  if (index && !random.upto(2)) random.spoil(wide.get(), count, 3);
  std::vector<uint16_t> narrowed(count);
  reference.narrow(wide.get(), narrowed.data(), int64_t(count));
  version.narrow(wide.get(), back.get(), int64_t(count));
  for (size_t i = 0; i < count; ++i) right = right && same_number(float_of(back[i]), float_of(narrowed[i]));
  if (!index) right = right && !std::memcmp(back.get(), half.get(), count * sizeof(uint16_t));
  if (!right) std::printf("%s, case %zu: float16 differs\n", version.name, index);
  return right;
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, [](const Version& version, Random& random, size_t index) {
    const bool turned = rotates(version, random, index);
    return converts(version, random, index) && turned;
  });
}
