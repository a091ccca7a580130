"""How far one model's predictions are from another's, with the gradient, a few rows of logits at a time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LOGITS = 1 << 23  # computed at once


def divergence(h: Tensor, head: Tensor, wanted: Tensor, wanted_head: Tensor) -> Tensor:
    """Return the mean of ``KL(softmax(wanted wanted_head^T) || softmax(h head^T))`` over rows, in nats.

    h, wanted: [T, hidden]. head, wanted_head: [vocab, hidden]. Differentiable by h and head. The logits [T, vocab] are
    never held whole.
    """
    found: Tensor = _Divergence.apply(h, head, wanted, wanted_head)  # type: ignore[no-untyped-call]
    return found


class _Divergence(torch.autograd.Function):
    """The gradient is computed with the value, so that logits are computed once."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, head: Tensor, wanted: Tensor, wanted_head: Tensor) -> Tensor:
        needs_h, needs_head = ctx.needs_input_grad[:2]
        at_once = max(1, LOGITS // len(head))
        total = torch.zeros((), dtype=torch.float64, device=h.device)
        of_h = torch.empty_like(h) if needs_h else None
        of_head = torch.zeros_like(head) if needs_head else None
        for first in range(0, len(h), at_once):
            part = slice(first, first + at_once)
            log_q, log_p = F.log_softmax(h[part] @ head.T, -1), F.log_softmax(wanted[part] @ wanted_head.T, -1)
            p = log_p.exp()
            total += log_p.sub_(log_q).mul_(p).sum(dtype=torch.float64)
            of_logits = log_q.exp_().sub_(p)
            if of_h is not None:
                of_h[part] = of_logits @ head
            if of_head is not None:
                of_head.addmm_(of_logits.T, h[part])
        ctx.of_h, ctx.of_head, ctx.rows = of_h, of_head, len(h)
        return (total / len(h)).to(h.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight = gradients[0] / ctx.rows
        of_h, of_head = ctx.of_h, ctx.of_head
        return None if of_h is None else of_h * weight, None if of_head is None else of_head * weight, None, None
