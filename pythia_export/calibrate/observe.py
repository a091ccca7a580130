"""The calibration text on its way through the layers.

Two streams of activations: the one that the quantised layers give, and, for error correction, the one of the
unquantised model. Within a layer, parallel.py and sequential.py say what each linear sees of them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..base.device import tensor_cores
from ..model.block import Block, Rotary, Weights, final_norm
from ..model.neox import NeoXConfig
from ..recipe import Quantize
from .activations import Activations, Middles, Place
from .problem import Moments, Problem

CHUNK_FLOATS, CHUNK_TOKENS = 1 << 24, 8192  # of the widest activation, and of windows of tokens, computed at once


def _squares(x: Tensor) -> float:
    """Return the sum of the squares of x [n, length, width], in float64 over the places."""
    return float(torch.linalg.vector_norm(x, dim=-1).double().square().sum())


def windows_a_chunk(config: NeoXConfig, length: int) -> int:
    return max(1, min(CHUNK_TOKENS, CHUNK_FLOATS // config.intermediate_size) // length)


class Observed:
    """Activations of windows ids [N, S] before the layer at hand; they lie at `place`."""

    def __init__(
        self,
        config: NeoXConfig,
        ids: np.ndarray,
        embedding: Tensor,
        source: Tensor | None,
        place: Place,
        middles: Place | None,
        quantize: Quantize,
    ) -> None:
        """`embedding` is the table as it will be stored, on the device that computes, `source` the original one where
        error correction wants it. `middles`: where what a layer's last two products read is kept, None if it is
        computed twice. With `quantize.joint_hessian` dense counts on 4h_to_h."""
        self.config, self.tokens, self.device = config, int(ids.size), embedding.device
        # The order of columns is nothing to a solution.
        self.joint = quantize.model_copy(update={"act_order": False}) if quantize.joint_hessian else None
        self.rotary = Rotary.of(config, ids.shape[1], torch.float32, self.device)
        self.x = self._embedded(ids, embedding, place)
        self.wanted = None if source is None else self._embedded(ids, source, place)
        self.middles = None if middles is None else Middles(config, self.x, middles)
        self.halfway = False  # x is between attention and MLP of a sequential layer

    def _embedded(self, ids: np.ndarray, table: Tensor, place: Place) -> Activations:
        per_chunk = windows_a_chunk(self.config, ids.shape[1])
        x = Activations((*ids.shape, self.config.hidden_size), per_chunk, place, self.device)
        for i, part in enumerate(x.slices):
            x[i] = table[torch.tensor(ids[part], device=self.device)].float()
        return x

    def moments(self, m: int, n: int, about_mean: bool = True) -> Moments:
        """About the mean where a bias makes up for it, which error correction alone asks for."""
        return Moments(m, n, self.device, about_mean=about_mean and self.wanted is not None)

    def propagate(self, block: Block, measure: bool = True) -> float | None:
        """Move the quantised stream past the layer; return its relative squared distance to the other, if known."""
        measure = measure and self.wanted is not None
        error = energy = 0.0
        with tensor_cores(self.device):
            for i, x in enumerate(self.x):
                if self.halfway:
                    y = block.after_mlp(x)
                else:
                    middle = None if self.middles is None else self.middles.take(i)
                    y = block(x, self.rotary) if middle is None else block.output(x, *middle)
                self.x[i] = y
                if measure and self.wanted is not None:
                    wanted = self.wanted[i]
                    error += _squares(y - wanted)
                    energy += _squares(wanted)
        self.halfway = False
        return error / max(energy, 1e-300) if measure else None

    def follow(self, block: Block) -> None:
        """Move the unquantised stream alone past a layer."""
        if self.wanted is not None:
            with tensor_cores(self.device):
                for i, y in enumerate(self.wanted):
                    self.wanted[i] = block(y, self.rotary)

    def head(self, W: Tensor, weights: Weights) -> Problem:
        """Return the problem of the output projection, which has no bias to absorb a mean."""
        d = self.config.hidden_size
        own, cross = self.moments(d, d, False), self.moments(d, d, False)
        with tensor_cores(self.device):
            for i, x in enumerate(self.x):
                h = final_norm(x, self.config, weights)
                own.add(h, h)
                if self.wanted is not None:
                    cross.add(final_norm(self.wanted[i], self.config, weights), h)
        own.require_finite("the last layer's output")
        H = own.second()
        return Problem(W, H, self.tokens, drift=None if self.wanted is None else cross.second().sub_(H))
