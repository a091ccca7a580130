#include "../versions.h"

int pythia_beam(const pythia::Beam* beam) {
  const pythia::Version* version = pythia::chosen();
  if (!version) return 1;
  if (!pythia::in_range(*beam, pythia::kBeamPlaces)) return 2;
  return version->beam(*beam) ? 0 : 3;
}
