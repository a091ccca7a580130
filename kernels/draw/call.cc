#include <new>

#include "draw.h"

int64_t pythia_token(const float* logits, int64_t count, double temperature, int64_t top_k, double top_p, double u) {
  static const pythia::Version* version = pythia::chosen();  // to ask the processor takes longer than a draw
  if (!version || count < 1) return -1;
  try {
    return pythia::draw({logits, count, temperature, top_k, top_p, u}, *version);
  } catch (const std::bad_alloc&) {
    return -1;
  }
}
