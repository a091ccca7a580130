"""A layer with a parallel residual on its way through quantisation: two stages (GPTQ's "true sequential" order).

QKV and h_to_4h read the same normalised vector z, so one pass over z gives the statistics of both, as those of
``x = z g + b``; dense and 4h_to_h then read what the quantised QKV and h_to_4h give, and write into the same residual.

With error correction the outputs that are wanted of QKV and h_to_4h are those of the unquantised model; dense and
4h_to_h are wanted to bring the residual stream itself back to the unquantised model's, first the one, then the other
with the error that the first has left.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..base.device import tensor_cores
from ..base.errors import NumericsError
from ..model.block import DENSE, DOWN, UP, Block, normalise
from ..model.neox import NORMS, QKV, has_bias, layer_prefix
from ..rounding.gptq import correction, factor, fitted_share
from .normed import Normed
from .observe import Observed
from .problem import Mean, Problem, Step


def in_parallel(observed: Observed, block: Block) -> Iterator[Step]:
    """Yield the norms and the linears of a layer whose weights are still the original ones, as `steps.steps` says."""
    normed = _first_stage(observed, block)
    for norm in NORMS:
        yield norm, Mean(normed.mean)
    for linear, norm in zip((QKV, UP), NORMS, strict=True):
        yield linear, normed.problem(block, linear, norm)
    yield from _second_stage(observed, block)


def _first_stage(observed: Observed, block: Block) -> Normed:
    """Observe what QKV and h_to_4h read. The unquantised model then moves on past the layer: it needs these weights."""
    eps, d = observed.config.layer_norm_eps, observed.config.hidden_size
    own, cross = observed.moments(d, d), observed.moments(d, d)
    with tensor_cores(observed.device):
        for i, x in enumerate(observed.x):
            z = normalise(x, eps)
            own.add(z, z)
            if observed.wanted is not None:
                y = observed.wanted[i]
                cross.add(normalise(y, eps), z)
                observed.wanted[i] = block(y, observed.rotary)
    own.require_finite(f"layer {block.layer}: the residual stream before it")
    return Normed.of(own, cross if observed.wanted is not None else None, observed.tokens)


def _second_stage(observed: Observed, block: Block) -> Iterator[Step]:
    """Yield dense, then 4h_to_h, once QKV and h_to_4h are quantised: 4h_to_h makes up for the error that dense left."""
    d, ff = observed.config.hidden_size, observed.config.intermediate_size
    of_mixed, of_up = observed.moments(d, d), observed.moments(ff, ff)
    correct = observed.wanted is not None
    # With error correction: how the two inputs move together, and each with what the residual still lacks.
    between, lacks_mixed, lacks_up = observed.moments(d, ff), observed.moments(d, d), observed.moments(d, ff)
    with tensor_cores(observed.device):
        for i, x in enumerate(observed.x):
            mixed, up = block.middle(x, observed.rotary)
            if observed.middles is not None:
                observed.middles.keep(i, mixed, up)
            of_mixed.add(mixed, mixed)
            of_up.add(up, up)
            if observed.wanted is not None:
                lack = observed.wanted[i] - x
                between.add(mixed, up)
                lacks_mixed.add(lack, mixed)
                lacks_up.add(lack, up)
            del mixed, up
    prefix = layer_prefix(block.layer)
    for moments, name in ((of_mixed, DENSE), (of_up, DOWN)):
        moments.require_finite(f"layer {block.layer}: the inputs of {name}")
    W_mixed, W_up = (block.weights(f"{prefix}.{name}.weight") for name in (DENSE, DOWN))
    if not correct:
        yield DENSE, Problem(W_mixed, of_mixed.second(), observed.tokens)
        yield DOWN, Problem(W_up, of_up.second(), observed.tokens)
        return
    mean_mixed, mean_up = of_mixed.mean.double(), of_up.mean.double()
    lack = lacks_up.mean_x.double() - block.weights(f"{prefix}.{DOWN}.bias").double() - W_up.double() @ mean_up
    H, H_up, across = of_mixed.centred(), of_up.centred(), between.centred()
    across[H.diagonal() <= 0] = 0  # of what does not vary there is rounding alone
    across[:, H_up.diagonal() <= 0] = 0
    A, B = W_mixed.to(H.dtype), W_up.to(H_up.dtype)
    missing = lacks_mixed.centred().sub_(A @ H).sub_((B.to(across.dtype) @ across.T).to(H.dtype))
    lacking = lacks_up.centred().sub_(B @ H_up)
    if observed.joint is not None and fitted_share(len(H_up), observed.tokens):
        H, missing = _counting_on_down(observed, block.layer, H, missing, A, H_up, across, lacking)
    # Of the mean, 4h_to_h's bias takes all that is lacking; dense keeps its own.
    same = torch.zeros(d, dtype=H.dtype, device=observed.device)
    yield DENSE, Problem(W_mixed, H, observed.tokens, None, missing, mean_mixed.to(H.dtype), same)
    done = block.weights(f"{prefix}.{DENSE}.weight")
    missing = lacking.sub_((done.to(across.dtype) @ across).to(H_up.dtype))
    shift = lack - done.double() @ mean_mixed
    if has_bias(observed.config, DENSE):
        shift -= block.weights(f"{prefix}.{DENSE}.bias").double()
    yield DOWN, Problem(W_up, H_up, observed.tokens, None, missing, mean_up.to(H_up.dtype), shift.to(H_up.dtype))


def _counting_on_down(
    observed: Observed, layer: int, H: Tensor, missing: Tensor, A: Tensor, H_up: Tensor, across: Tensor, lacking: Tensor
) -> tuple[Tensor, Tensor]:
    """Return H and `missing` of dense when 4h_to_h, rounded after it, makes up for its error.

    Of the joint problem [A B] with Hessian [[H, C], [C^T, H_up]], B at its best for any A is eliminated: what is
    left of H is its Schur complement, as far as B will go (`fitted_share` s of its step: s (2 - s) of the gain).
    """
    assert observed.joint is not None
    try:
        L = factor(H_up, observed.joint)
    except NumericsError as e:
        raise NumericsError(f"layer {layer}, the inputs of {DOWN}: {e}", hint=e.hint) from e
    reach = correction(across, L, observed.tokens).mul_(2 - fitted_share(len(H_up), observed.tokens))  # [d, ff]
    owed = lacking.to(across.dtype) - A.to(across.dtype) @ across
    return H - (reach @ across.T).to(H.dtype), missing - (owed @ reach.T).to(H.dtype)
