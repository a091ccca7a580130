"""One GPT-NeoX block in torch, from tensors by their on-disk names; held to Hugging Face's GPTNeoX by a test.

Both LayerNorms of a block read the same ``x``, so they are two affine maps of one normalised vector ``z``; the block
is computed in the two stages that quantisation needs: first the products that read ``z``, then those that read them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .graph.layout import QKV, rotary_tables
from .neox import FINAL_NORM, HEAD, NeoXConfig, layer_prefix

Weights = Callable[[str], Tensor]  # on-disk name -> tensor, in the dtype to compute in
See = Callable[[str, Tensor], None]  # a linear's name within the layer, and its output
DENSE, UP, DOWN = "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"


@dataclass(frozen=True)
class Rotary:
    """cos and sin, each [rotary_dim / 2, T]: with T innermost, products run over long rows, not over 4 numbers."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, config: NeoXConfig, length: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Rotary:
        cos, sin = (torch.from_numpy(table[:length].T.copy()).to(device, dtype) for table in rotary_tables(config))
        return cls(cos, sin)

    def turn(self, x: Tensor) -> Tensor:
        """Rotate the first rotary_dim dimensions of x [..., T, head_dim], half-split."""
        half = len(self.cos)
        a, b = x[..., : 2 * half].transpose(-1, -2).contiguous().chunk(2, dim=-2)
        turned = torch.cat((a * self.cos - b * self.sin, b * self.cos + a * self.sin), dim=-2)
        return torch.cat((turned.transpose(-1, -2), x[..., 2 * half :]), dim=-1)


def normalise(x: Tensor, eps: float) -> Tensor:
    """x [..., hidden] with zero mean and unit variance along hidden: LayerNorm before its scale and shift."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def attention(qkv: Tensor, config: NeoXConfig, rotary: Rotary) -> Tensor:
    """Causal attention over the fused product in its on-disk layout, qkv [B, T, heads * 3 * head_dim] -> [B, T, d]."""
    B, T, _ = qkv.shape
    heads = qkv.view(B, T, config.num_heads, 3 * config.head_dim).transpose(1, 2)
    q, k, v = heads.split(config.head_dim, dim=-1)  # each [B, heads, T, head_dim]
    mixed = F.scaled_dot_product_attention(rotary.turn(q), rotary.turn(k), v, is_causal=True)
    return mixed.transpose(1, 2).reshape(B, T, config.hidden_size)


@dataclass(frozen=True)
class Block:
    """The weights of one layer, ready to compute with."""

    config: NeoXConfig
    layer: int
    weights: Weights

    def _affine(self, z: Tensor, norm: str) -> Tensor:
        name = f"{layer_prefix(self.layer)}.{norm}"
        return z * self.weights(f"{name}.weight") + self.weights(f"{name}.bias")

    def linear(self, x: Tensor, linear: str) -> Tensor:
        """One of the four products with its bias, by its name within the layer."""
        name = f"{layer_prefix(self.layer)}.{linear}"
        return F.linear(x, self.weights(f"{name}.weight"), self.weights(f"{name}.bias"))

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What QKV and h_to_4h read, each [B, T, hidden]."""
        z = normalise(x, self.config.layer_norm_eps)
        return self._affine(z, "input_layernorm"), self._affine(z, "post_attention_layernorm")

    def middle(self, x: Tensor, rotary: Rotary, see: See | None = None) -> tuple[Tensor, Tensor]:
        """What dense [B, T, hidden] and 4h_to_h [B, T, intermediate] read; `see` is shown what they are made of."""
        for_attention, for_mlp = self.inputs(x)
        qkv, up = self.linear(for_attention, QKV), self.linear(for_mlp, UP)
        if see is not None:
            see(QKV, qkv)
            see(UP, up)
        return attention(qkv, self.config, rotary), F.gelu(up)

    def __call__(self, x: Tensor, rotary: Rotary, see: See | None = None) -> Tensor:
        """The block's output, x [B, T, hidden] -> [B, T, hidden]."""
        return self.output(x, *self.middle(x, rotary, see))

    def output(self, x: Tensor, mixed: Tensor, up: Tensor) -> Tensor:
        """The block's output, from what dense and 4h_to_h read."""
        return x + self.linear(mixed, DENSE) + self.linear(up, DOWN)


def final_norm(x: Tensor, config: NeoXConfig, weights: Weights) -> Tensor:
    z = normalise(x, config.layer_norm_eps)
    return z * weights(f"{FINAL_NORM}.weight") + weights(f"{FINAL_NORM}.bias")


def head(x: Tensor, weights: Weights) -> Tensor:
    """Logits [..., vocab] of the final norm's output."""
    return F.linear(x, weights(f"{HEAD}.weight"))
