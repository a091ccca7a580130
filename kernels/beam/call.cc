#include "../versions.h"

int pythia_beam(const pythia::Beam* beam) {
  const pythia::Version* version = pythia::chosen();
  if (!version) return 1;
  const bool fits = beam->width <= pythia::kBeamWidth && beam->places <= pythia::kBeamPlaces;
  if (!fits || beam->apart > pythia::kBeamApart) return 2;
  version->beam(*beam);
  return 0;
}
