"""How alike two computations are inside: pure maths, tensors in and one figure a token out.

residual stream   ``|y - x| / |x|`` and ``cos(x, y)``, x the original's
attention         Jensen-Shannon divergence of two patterns (Lin 1991): symmetric, and finite where one of them is zero
logit lens        what final norm and head make of the residual stream between two layers (nostalgebraist 2020)
induction         attention from a repeated token to the one after its first occurrence (Olsson et al. 2022,
                  arXiv:2209.11895): the random tokens are drawn once and come twice
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-30  # a residual stream of zeros has no direction
SEED = 0


def apart(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return relative error and cosine [...] of the residual streams x, the original's, and y [..., hidden]."""
    length = x.norm(dim=-1)
    error = (y - x).norm(dim=-1) / length.clamp_min(TINY)
    cosine = (x * y).sum(-1) / (length * y.norm(dim=-1)).clamp_min(TINY)
    return error, cosine


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Return the divergence [...] of two distributions [..., T], in nats."""
    middle = ((p + q) / 2).clamp_min(TINY)
    return (torch.xlogy(p, p / middle) + torch.xlogy(q, q / middle)).sum(-1).clamp_min(0) / 2


def lens_apart(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(x || y) in nats and whether the likeliest token is the same, both [...], of logits [..., vocab]."""
    p, q = F.log_softmax(x, -1), F.log_softmax(y, -1)
    return (p.exp() * (p - q)).sum(-1).clamp_min(0), x.argmax(-1) == y.argmax(-1)


def repeated_tokens(vocab: int, first: int | None, count: int, length: int) -> np.ndarray:
    """Return `count` sequences of `length` random tokens, each twice over and behind `first`, if there is one."""
    drawn = np.random.default_rng(SEED).integers(0, vocab, (count, length))
    start = np.full((count, 0 if first is None else 1), first or 0)
    return np.concatenate([start, drawn, drawn], 1).astype(np.int64)


def induction(pattern: Tensor, length: int) -> Tensor:
    """Return the induction scores [B, heads] of pattern [B, heads, length, T]: of the last `length` queries of T."""
    T = pattern.shape[-1]
    after_first = torch.arange(T - 2 * length + 1, T - length + 1, device=pattern.device)
    return pattern.diagonal(dim1=-2, dim2=-1, offset=int(after_first[0])).mean(-1)
