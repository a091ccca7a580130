"""Copies of a model that compute the same function in other units: what no quantiser may notice."""

from __future__ import annotations

import torch
from models import InMemory

from pythia_export.model.block import DENSE, UP
from pythia_export.model.neox import FINAL_NORM, HEAD, NORMS, QKV, NeoXConfig, has_bias, layer_prefix


def rescaled(source: InMemory, outliers: float = 50.0, spread: float = 1.0, seed: int = 0) -> InMemory:
    """Every channel times a factor of its own, `exp(spread * normal)`, four of each kind `outliers` times as much:
    LayerNorms against the columns that read them, v against dense, q against k. Rescaled in float64."""
    config, g = source.config, torch.Generator().manual_seed(seed)
    t = {name: tensor.double() for name, tensor in source.tensors.items()}

    def factors(n: int) -> torch.Tensor:
        found = torch.exp(spread * torch.randn(n, generator=g, dtype=torch.float64))
        found[torch.randperm(n, generator=g)[:4]] *= outliers
        return found

    def norm(name: str, linear: str) -> None:
        by = factors(config.hidden_size)
        for part in ("weight", "bias"):
            t[f"{name}.{part}"] = t[f"{name}.{part}"] * by
        t[f"{linear}.weight"] = t[f"{linear}.weight"] / by

    for layer in range(config.num_layers):
        prefix = layer_prefix(layer)
        norm(f"{prefix}.{NORMS[0]}", f"{prefix}.{QKV}")
        norm(f"{prefix}.{NORMS[1]}", f"{prefix}.{UP}")
        of_v, of_q = factors(config.hidden_size), _of_pairs(config, factors(config.hidden_size))
        rows = torch.stack([x.view(config.num_heads, -1) for x in (of_q, 1 / of_q, of_v)], 1).flatten()
        t[f"{prefix}.{QKV}.weight"] = t[f"{prefix}.{QKV}.weight"] * rows[:, None]
        if has_bias(config, QKV):
            t[f"{prefix}.{QKV}.bias"] = t[f"{prefix}.{QKV}.bias"] * rows
        t[f"{prefix}.{DENSE}.weight"] = t[f"{prefix}.{DENSE}.weight"] / of_v
    norm(FINAL_NORM, HEAD)
    return InMemory(config, {name: tensor.float() for name, tensor in t.items()})


def _of_pairs(config: NeoXConfig, by: torch.Tensor) -> torch.Tensor:
    """One factor for the two dimensions of a head that a rotary embedding turns together."""
    heads, half = by.view(config.num_heads, config.head_dim).clone(), config.rotary_dim // 2
    heads[:, half : 2 * half] = heads[:, :half]
    return heads.flatten()
