"""The calibration text on its way through the layers, and what each linear sees of it.

Two streams of activations: the one that the quantised layers give, and, for error correction, the one of the
unquantised model. Within a layer, a parallel residual leaves two stages (GPTQ's "true sequential" order; a sequential
residual has four: sequential.py): QKV and h_to_4h read the same normalised vector z, so one pass over z gives the
statistics of both, as those of ``x = z g + b``; dense and 4h_to_h then read what the quantised QKV and h_to_4h give,
and write into the same residual.

With error correction the outputs that are wanted of QKV and h_to_4h are those of the unquantised model; dense and
4h_to_h are wanted to bring the residual stream itself back to the unquantised model's, first the one, then the other
with the error that the first has left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..base.device import tensor_cores
from ..base.errors import NumericsError
from ..model.block import DENSE, DOWN, UP, Block, Rotary, Weights, final_norm, normalise
from ..model.neox import NORMS, QKV, NeoXConfig, has_bias, layer_prefix
from ..quantize.gptq import correction, factor, fitted_share
from ..recipe import Quantize
from .activations import Activations, Place
from .problem import Moments, Problem

KEPT_BYTES = 1 << 28  # of what a layer's last two products read
CHUNK_FLOATS, CHUNK_TOKENS = 1 << 24, 8192  # of the widest activation, and of windows of tokens, computed at once


def windows_a_chunk(config: NeoXConfig, length: int) -> int:
    return max(1, min(CHUNK_TOKENS, CHUNK_FLOATS // config.intermediate_size) // length)


@dataclass(frozen=True)
class Normed:
    """Moments of a LayerNorm's normalised vector z [hidden], before its scale g and shift b.

    second: of z about its mean where `moved` and `between` are known, else as they are; moved: what the unquantised
    model's mean is away; between: ``E[(y - z) z^T]``, y the unquantised model's.
    """

    tokens: int
    mean: Tensor
    second: Tensor
    moved: Tensor | None
    between: Tensor | None

    @classmethod
    def of(cls, own: Moments, cross: Moments | None, tokens: int) -> Normed:
        mean = own.mean
        if cross is None:
            return cls(tokens, mean, own.second(), None, None)
        moved = cross.mean_x - own.mean
        second = own.centred()
        return cls(tokens, mean, second, moved, cross.centred().sub_(second))

    def problem(self, block: Block, linear: str, norm: str) -> Problem:
        """That of a linear which reads ``z g + b``. One without a bias has its moments about zero."""
        prefix, second, mean = layer_prefix(block.layer), self.second, self.mean
        W = block.weights(f"{prefix}.{linear}.weight")
        g, b = (block.weights(f"{prefix}.{norm}.{part}").to(second.dtype) for part in ("weight", "bias"))
        H = second * torch.outer(g, g)
        if self.moved is None or self.between is None:
            cross_term = torch.outer(g * mean, b)
            return Problem(W, H + cross_term + cross_term.T + torch.outer(b, b), self.tokens)
        drift = self.between * torch.outer(g, g)
        if not has_bias(block.config, linear):
            about = g * mean + b
            return Problem(W, H.addr_(about, about), self.tokens, drift=drift.addr_(g * self.moved, about))
        scaled = W.to(second.dtype) * g
        return Problem(W, H, self.tokens, drift=drift, mean=g * mean + b, shift=scaled @ self.moved)


class Observed:
    """Activations of windows ids [N, S] before the layer at hand; they lie at `place`."""

    def __init__(
        self,
        config: NeoXConfig,
        ids: np.ndarray,
        embedding: Tensor,
        source: Tensor | None,
        place: Place,
        quantize: Quantize,
    ) -> None:
        """`embedding` is the table as it will be stored, on the device that computes, `source` the original one where
        error correction wants it; with `quantize.joint_hessian` dense counts on 4h_to_h."""
        self.config, self.tokens, self.device = config, int(ids.size), embedding.device
        # The order of columns is nothing to a solution.
        self.joint = quantize.model_copy(update={"act_order": False}) if quantize.joint_hessian else None
        self.rotary = Rotary.of(config, ids.shape[1], torch.float32, self.device)
        self.x = self._embedded(ids, embedding, place)
        self.wanted = None if source is None else self._embedded(ids, source, place)
        # What dense and 4h_to_h of the layer at hand read, by chunks: where it is little, it is not computed twice.
        self.middles: list[tuple[Tensor, Tensor]] = []
        self.halfway = False  # x is between attention and MLP of a sequential layer
        self._keep = 4 * ids.size * (config.hidden_size + config.intermediate_size) <= KEPT_BYTES

    def _embedded(self, ids: np.ndarray, table: Tensor, place: Place) -> Activations:
        per_chunk = windows_a_chunk(self.config, ids.shape[1])
        x = Activations((*ids.shape, self.config.hidden_size), per_chunk, place, self.device)
        for i, part in enumerate(x.slices):
            x[i] = table[torch.tensor(ids[part], device=self.device)].float()
        return x

    def moments(self, m: int, n: int, about_mean: bool = True) -> Moments:
        """About the mean where a bias makes up for it, which error correction alone asks for."""
        return Moments(m, n, self.device, about_mean=about_mean and self.wanted is not None)

    def first_stage(self, block: Block) -> dict[str, Problem]:
        """QKV and h_to_4h of a parallel layer whose weights are still the original ones.

        The stream of the unquantised model then moves on past the layer, for it needs these weights as well.
        """
        eps, d = self.config.layer_norm_eps, self.config.hidden_size
        own, cross = self.moments(d, d), self.moments(d, d)
        with tensor_cores(self.device):
            for i, x in enumerate(self.x):
                z = normalise(x, eps)
                own.add(z, z)
                if self.wanted is not None:
                    y = self.wanted[i]
                    cross.add(normalise(y, eps), z)
                    self.wanted[i] = block(y, self.rotary)
        refuse_overflow(own.mean, f"layer {block.layer}: the residual stream before it")
        normed = Normed.of(own, cross if self.wanted is not None else None, self.tokens)
        return {linear: normed.problem(block, linear, norm) for linear, norm in zip((QKV, UP), NORMS, strict=True)}

    def second_stage(self, block: Block, solve: Callable[[str, Problem], Tensor]) -> None:
        """dense, then 4h_to_h, of a parallel layer whose QKV and h_to_4h are quantised; `solve` rounds and returns the
        matrix.

        `solve` is called for dense first; what it returns is what 4h_to_h has to make up for.
        """
        d, ff = self.config.hidden_size, self.config.intermediate_size
        of_mixed, of_up = self.moments(d, d), self.moments(ff, ff)
        correct = self.wanted is not None
        # With error correction: how the two inputs move together, and each with what the residual still lacks.
        between, lacks_mixed, lacks_up = self.moments(d, ff), self.moments(d, d), self.moments(d, ff)
        with tensor_cores(self.device):
            for i, x in enumerate(self.x):
                mixed, up = block.middle(x, self.rotary)
                if self._keep:
                    self.middles.append((mixed, up))
                of_mixed.add(mixed, mixed)
                of_up.add(up, up)
                if self.wanted is not None:
                    lack = self.wanted[i] - x
                    between.add(mixed, up)
                    lacks_mixed.add(lack, mixed)
                    lacks_up.add(lack, up)
                del mixed, up
        prefix = layer_prefix(block.layer)
        for moments, name in ((of_mixed, DENSE), (of_up, DOWN)):
            refuse_overflow(moments.mean, f"layer {block.layer}: the inputs of {name}")
        W_mixed, W_up = (block.weights(f"{prefix}.{name}.weight") for name in (DENSE, DOWN))
        if not correct:
            solve(DENSE, Problem(W_mixed, of_mixed.second(), self.tokens))
            solve(DOWN, Problem(W_up, of_up.second(), self.tokens))
            return
        mean_mixed, mean_up = of_mixed.mean.double(), of_up.mean.double()
        lack = lacks_up.mean_x.double() - block.weights(f"{prefix}.{DOWN}.bias").double() - W_up.double() @ mean_up
        H, H_up, across = of_mixed.centred(), of_up.centred(), between.centred()
        across[H.diagonal() <= 0] = 0  # of what does not vary there is rounding alone
        across[:, H_up.diagonal() <= 0] = 0
        A, B = W_mixed.to(H.dtype), W_up.to(H_up.dtype)
        missing = lacks_mixed.centred().sub_(A @ H).sub_((B.to(across.dtype) @ across.T).to(H.dtype))
        lacking = lacks_up.centred().sub_(B @ H_up)
        if self.joint is not None and fitted_share(len(H_up), self.tokens):
            H, missing = self._counting_on_down(block.layer, H, missing, A, H_up, across, lacking)
        # Of the mean, 4h_to_h's bias takes all that is lacking; dense keeps its own.
        same = torch.zeros(d, dtype=H.dtype, device=self.device)
        done = solve(DENSE, Problem(W_mixed, H, self.tokens, None, missing, mean_mixed.to(H.dtype), same))
        missing = lacking.sub_((done.to(across.dtype) @ across).to(H_up.dtype))
        shift = lack - done.double() @ mean_mixed
        if has_bias(self.config, DENSE):
            shift -= block.weights(f"{prefix}.{DENSE}.bias").double()
        solve(DOWN, Problem(W_up, H_up, self.tokens, None, missing, mean_up.to(H_up.dtype), shift.to(H_up.dtype)))

    def _counting_on_down(
        self, layer: int, H: Tensor, missing: Tensor, A: Tensor, H_up: Tensor, across: Tensor, lacking: Tensor
    ) -> tuple[Tensor, Tensor]:
        """H and `missing` of dense when 4h_to_h, rounded after it, takes up what it leaves.

        Of the joint problem [A B] with Hessian [[H, C], [C^T, H_up]], B at its best for any A is eliminated: what is
        left of H is its Schur complement, as far as B will go (`fitted_share` s of its step: s (2 - s) of the gain).
        """
        assert self.joint is not None
        try:
            L = factor(H_up, self.joint)
        except NumericsError as e:
            raise NumericsError(f"layer {layer}, the inputs of {DOWN}: {e}", hint=e.hint) from e
        reach = correction(across, L, self.tokens).mul_(2 - fitted_share(len(H_up), self.tokens))  # [d, ff]
        owed = lacking.to(across.dtype) - A.to(across.dtype) @ across
        return H - (reach @ across.T).to(H.dtype), missing - (owed @ reach.T).to(H.dtype)

    def propagate(self, block: Block, measure: bool = True) -> float | None:
        """Move the quantised stream past the layer; its relative squared distance to the unquantised one, if known."""
        measure = measure and self.wanted is not None
        error = energy = 0.0
        with tensor_cores(self.device):
            for i, x in enumerate(self.x):
                if self.halfway:
                    y = block.after_mlp(x)
                else:
                    y = block.output(x, *self.middles[i]) if self.middles else block(x, self.rotary)
                self.x[i] = y
                if measure and self.wanted is not None:
                    wanted = self.wanted[i]
                    error += float((y - wanted).square().sum(dtype=torch.float64))
                    energy += float(wanted.square().sum(dtype=torch.float64))
        self.middles.clear()
        self.halfway = False
        return error / max(energy, 1e-300) if measure else None

    def follow(self, block: Block) -> None:
        """Move the unquantised stream alone past a layer."""
        if self.wanted is not None:
            with tensor_cores(self.device):
                for i, y in enumerate(self.wanted):
                    self.wanted[i] = block(y, self.rotary)

    def head(self, W: Tensor, weights: Weights) -> Problem:
        """The output projection, which has no bias to absorb a mean."""
        d = self.config.hidden_size
        own, cross = self.moments(d, d, False), self.moments(d, d, False)
        with tensor_cores(self.device):
            for i, x in enumerate(self.x):
                h = final_norm(x, self.config, weights)
                own.add(h, h)
                if self.wanted is not None:
                    cross.add(final_norm(self.wanted[i], self.config, weights), h)
        refuse_overflow(own.mean, "the last layer's output")
        H = own.second()
        return Problem(W, H, self.tokens, drift=None if self.wanted is None else cross.second().sub_(H))


def refuse_overflow(mean: Tensor, what: str) -> None:
    if not torch.isfinite(mean).all():
        raise NumericsError(f"{what} hold a NaN or an infinity on the calibration text")
