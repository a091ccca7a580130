"""A layer with a sequential residual on its way through quantisation: four linears, one after the other.

``m = x + dense(attn(QKV(ln1 x)))``, then ``m + 4h_to_h(act(h_to_4h(ln2 m)))``: each linear reads what the rounded ones
before it give, so each takes a pass over the calibration text. With error correction QKV and h_to_4h are wanted to give
what the unquantised model's give, dense to bring m back to the unquantised model's m, and 4h_to_h the layer's output.
dense does not count on 4h_to_h (`joint_hessian`): the MLP reads m itself, so what is left in m does not stay there.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..base.device import tensor_cores
from ..model.block import DENSE, DOWN, UP, Block, normalise
from ..model.neox import NORMS, QKV, has_bias, layer_prefix
from .normed import Normed
from .observe import Observed
from .problem import Mean, Moments, Problem, Step


def in_sequence(observed: Observed, block: Block) -> Iterator[Step]:
    """Yield the norms and the linears of a layer whose weights are still the original ones, as `steps.steps` says: each
    LayerNorm once the unquantised model has used it. Leaves `observed` between the layer's halves.
    """
    tokens, d, ff = observed.tokens, observed.config.hidden_size, observed.config.intermediate_size
    x, wanted, where = observed.x, observed.wanted, f"layer {block.layer}"
    own, cross = observed.moments(d, d), observed.moments(d, d)
    with tensor_cores(observed.device):
        for i, chunk in enumerate(x):
            z = normalise(chunk, block.config.layer_norm_eps)
            own.add(z, z)
            if wanted is not None:
                y = wanted[i]
                cross.add(normalise(y, block.config.layer_norm_eps), z)
                wanted[i] = block.after_attention(y, observed.rotary)
    own.require_finite(f"{where}: the residual stream before it")
    normed = Normed.of(own, cross if wanted is not None else None, tokens)
    yield NORMS[0], Mean(normed.mean)
    yield QKV, normed.problem(block, QKV, NORMS[0])

    own, lacks = observed.moments(d, d), observed.moments(d, d)
    with tensor_cores(observed.device):
        for i, chunk in enumerate(x):
            mixed = block.mix(block.normed(chunk, NORMS[0]), observed.rotary)
            own.add(mixed, mixed)
            if wanted is not None:
                lacks.add(wanted[i] - chunk, mixed)
    own.require_finite(f"{where}: the inputs of {DENSE}")
    yield DENSE, _into_residual(block, DENSE, own, lacks if wanted is not None else None, tokens)

    own, cross = observed.moments(d, d), observed.moments(d, d)
    with tensor_cores(observed.device):
        for i, chunk in enumerate(x):
            x[i] = middle = block.after_attention(chunk, observed.rotary)
            z = normalise(middle, block.config.layer_norm_eps)
            own.add(z, z)
            if wanted is not None:
                y = wanted[i]
                cross.add(normalise(y, block.config.layer_norm_eps), z)
                wanted[i] = block.after_mlp(y)
    own.require_finite(f"{where}: the residual stream between attention and MLP")
    normed = Normed.of(own, cross if wanted is not None else None, tokens)
    yield NORMS[1], Mean(normed.mean)
    yield UP, normed.problem(block, UP, NORMS[1])

    own, lacks = observed.moments(ff, ff), observed.moments(d, ff)
    with tensor_cores(observed.device):
        for i, middle in enumerate(x):
            up = block.rise(block.normed(middle, NORMS[1]))
            own.add(up, up)
            if wanted is not None:
                lacks.add(wanted[i] - middle, up)
    own.require_finite(f"{where}: the inputs of {DOWN}")
    yield DOWN, _into_residual(block, DOWN, own, lacks if wanted is not None else None, tokens)
    observed.halfway = True


def _into_residual(block: Block, linear: str, own: Moments, lacks: Moments | None, tokens: int) -> Problem:
    """Return the problem of a linear that writes into the residual stream: inputs, and what the stream lacks."""
    name = f"{layer_prefix(block.layer)}.{linear}"
    W = block.weights(f"{name}.weight")
    if lacks is None:
        return Problem(W, own.second(), tokens)
    if not has_bias(block.config, linear):
        H = own.second()
        return Problem(W, H, tokens, missing=lacks.second().sub_(W.to(H.dtype) @ H))
    mean = own.mean
    shift = lacks.mean_x - W.to(mean.dtype) @ mean - block.weights(f"{name}.bias").to(mean.dtype)
    H = own.centred()
    missing = lacks.centred().sub_(W.to(H.dtype) @ H)
    return Problem(W, H, tokens, missing=missing, mean=mean, shift=shift)
