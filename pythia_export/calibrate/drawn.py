"""Text that the original writes itself: its tokens are drawn from its own predictions, one after the other.

What the original predicts is known of any text, so training end to end is not bound to the calibration text, and on
little text it learns by heart. Text of the original's own has what it models in it, in the shares in which it models
it (LLM-QAT, arXiv 2305.17888, trains on nothing else). Each window begins as a place of the calibration text does.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.compute import Compute
from ..model.block import DENSE, Block, Rotary, final_norm, head
from ..model.neox import EMBEDDING, NORMS, QKV, NeoXConfig, tensors
from .placed import Tensors

TIMES = 3  # so much is drawn for each token of calibration text ...
TOKENS = 1 << 19  # ... up to so much of both
OPENING = 16  # tokens that a window has from the calibration text
CACHE_BYTES = 1 << 29  # keys and values of the windows that are drawn at once
LEAST_AT_ONCE = 4  # with fewer, each token reads all weights for too little


def windows_drawn(config: NeoXConfig, windows: int, length: int) -> int:
    """Return how many windows are drawn beside so many of `length` tokens: none where a cache holds too few."""
    if _at_once(config, length) < LEAST_AT_ONCE or length < 2:
        return 0
    return max(0, min(TIMES * windows, TOKENS // length - windows))


def drawing_memory(config: NeoXConfig, count: int, length: int) -> int:
    """Return the bytes that drawing so many windows takes: the model, keys and values, and logits."""
    at_once = min(count, _at_once(config, length))
    return 4 * config.parameters + at_once * (_cached(config, length) + 8 * config.vocab_size) if at_once else 0


def _at_once(config: NeoXConfig, length: int) -> int:
    return CACHE_BYTES // _cached(config, length)


def _cached(config: NeoXConfig, length: int) -> int:
    return 8 * config.num_layers * config.hidden_size * length


@torch.no_grad()
def draw(source: Tensors, windows: np.ndarray, count: int, compute: Compute) -> np.ndarray:
    """Return what `source` writes [count, S] beside windows [N, S]; the same each time, on one machine."""
    length, config, at_once = windows.shape[1], source.config, _at_once(source.config, windows.shape[1])
    generator, opening = np.random.default_rng(0), min(OPENING, length // 2)
    rows, first = np.arange(count) % len(windows), generator.integers(0, length - opening + 1, count)
    drawn = np.zeros((count, length), dtype=np.int64)
    drawn[:, :opening] = windows[rows[:, None], first[:, None] + np.arange(opening)]
    chances = torch.Generator().manual_seed(0)
    weights = {s.name: source.tensor(s.name).to(compute.device).float() for s in tensors(config)} if count else {}
    with compute.progress.track("Letting the original write", count, "windows") as advance:
        for begin in range(0, count, at_once):
            ids = torch.from_numpy(drawn[begin : begin + at_once]).to(compute.device)
            _write(_Reading(config, weights, *ids.shape), ids, opening, chances)
            drawn[begin : begin + at_once] = ids.cpu().numpy()
            advance(len(ids))
    return drawn


def _write(reading: _Reading, ids: Tensor, opening: int, chances: torch.Generator) -> None:
    """Fill ids [B, S] from place `opening` on."""
    for place in range(ids.shape[1] - 1):
        h = reading.read(ids[:, place], place)
        if place + 1 >= opening:
            sums = head(h, reading.weights.__getitem__).softmax(-1).cumsum(-1)
            chance = torch.rand(len(ids), 1, generator=chances).to(ids.device)
            ids[:, place + 1] = torch.searchsorted(sums, chance).clamp_(max=sums.shape[1] - 1)[:, 0]


class _Reading:
    """A model that has read some tokens of each of B windows, with their keys and values."""

    def __init__(self, config: NeoXConfig, weights: dict[str, Tensor], windows: int, length: int) -> None:
        self.config, self.weights = config, weights
        table = weights[f"{EMBEDDING}.weight"]
        self.rotary = Rotary.of(config, length, torch.float32, table.device)
        shape = (config.num_layers, windows, config.num_heads, length, config.head_dim)
        self.keys, self.values = torch.empty(shape, device=table.device), torch.empty(shape, device=table.device)

    def read(self, tokens: Tensor, place: int) -> Tensor:
        """Return the final LayerNorm's output [B, hidden] behind tokens [B] at `place`."""
        config = self.config
        turn = Rotary(self.rotary.cos[:, place : place + 1], self.rotary.sin[:, place : place + 1]).turn
        x = self.weights[f"{EMBEDDING}.weight"][tokens][:, None]
        for layer in range(config.num_layers):
            block = Block(config, layer, self.weights.__getitem__)
            qkv = block.linear(block.normed(x, NORMS[0]), QKV)
            q, k, v = qkv.view(len(x), 1, config.num_heads, -1).transpose(1, 2).split(config.head_dim, dim=-1)
            keys, values = self.keys[layer, :, :, : place + 1], self.values[layer, :, :, : place + 1]
            keys[:, :, place:], values[:, :, place:] = turn(k), v
            mixed = F.scaled_dot_product_attention(turn(q), keys, values).transpose(1, 2).flatten(2)
            if config.parallel_residual:
                x = block.output(x, mixed, block.rise(block.normed(x, NORMS[1])))
            else:
                x = block.after_mlp(x + block.linear(mixed, DENSE))
        return final_norm(x, config, self.weights.__getitem__)[:, 0]
