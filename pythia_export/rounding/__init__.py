"""Rounding algorithms, tensors in and tensors out: grids, round-to-nearest, GPTQ with a beam, coupled rows."""
