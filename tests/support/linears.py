"""A linear to be rounded, with the second moments of its inputs."""

from __future__ import annotations

import numpy as np
import torch

from pythia_export.recipe import Quantize, Scheme
from pythia_export.rounding.gptq import factor, gptq


def problem(kind: str, out: int = 24, n: int = 160, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(out, n))
    X = rng.normal(size=(4 * n, n))
    if kind == "correlated":
        X = X @ (np.eye(n) + 0.4 * rng.normal(size=(n, n)))
    elif kind == "rank-deficient":
        X = X[:, : n // 3] @ rng.normal(size=(n // 3, n))
    elif kind == "dead":
        X[:, ::7] = 0
    return torch.tensor(W, dtype=torch.float32), torch.tensor(X.T @ X / len(X))


def run_gptq(W, H, bits=4, group_size=32, symmetric=True, act_order=False, clip=False, beam=1):
    scheme = Scheme(bits=bits, group_size=group_size, symmetric=symmetric)
    settings = Quantize(act_order=act_order, clip=clip, beam=beam)
    return gptq(W, factor(H, settings), scheme, settings)
