"""One GPT-NeoX block in torch, from tensors by their on-disk names; held to Hugging Face's GPTNeoX by a test.

With a parallel residual both LayerNorms of a block read the same ``x``, so they are two affine maps of one normalised
vector ``z``; the block is computed in the two stages that quantisation needs: first the products that read ``z``, then
those that read them. With a sequential one the MLP reads what attention wrote, and there are four stages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .neox import FINAL_NORM, HEAD, NORMS, QKV, Activation, NeoXConfig, has_bias, layer_prefix
from .rotary import rotary_tables

Weights = Callable[[str], Tensor]  # on-disk name -> tensor, in the dtype to compute in
See = Callable[[str, Tensor], None]  # a linear's name within the layer, and its output
# `key` or `value`, those of a layer [B, heads, T, head_dim], and what attention reads back of them.
Kept = Callable[[str, Tensor], Tensor]
DENSE, UP, DOWN = "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"


@dataclass(frozen=True)
class Rotary:
    """cos and sin, each [rotary_dim / 2, T]: with T innermost, products run over long rows, not over 4 numbers."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, config: NeoXConfig, length: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Rotary:
        cos, sin = (torch.from_numpy(t[:length].T.copy()).to(device, dtype) for t in rotary_tables(config))
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


def _as_they_are(part: str, x: Tensor) -> Tensor:
    return x


def attention(qkv: Tensor, config: NeoXConfig, rotary: Rotary, kept: Kept = _as_they_are) -> Tensor:
    """Causal attention over the fused product in its on-disk layout, qkv [B, T, heads * 3 * head_dim] -> [B, T, d].
    `kept` is what a cache makes of keys, once they are rotated, and of values."""
    B, T, _ = qkv.shape
    heads = qkv.view(B, T, config.num_heads, 3 * config.head_dim).transpose(1, 2)
    q, k, v = heads.split(config.head_dim, dim=-1)  # each [B, heads, T, head_dim]
    mixed = F.scaled_dot_product_attention(
        rotary.turn(q), kept("key", rotary.turn(k)), kept("value", v), is_causal=True
    )
    return mixed.transpose(1, 2).reshape(B, T, config.hidden_size)


def attention_pattern(
    qkv: Tensor, config: NeoXConfig, rotary: Rotary, rows: Tensor, kept: Kept = _as_they_are
) -> Tensor:
    """Return what the queries at `rows` [B, P] give each key, from qkv as `attention` reads it: [B, heads, P, T]."""
    B, T, _ = qkv.shape
    heads = qkv.view(B, T, config.num_heads, 3 * config.head_dim).transpose(1, 2)
    q, k, _ = heads.split(config.head_dim, dim=-1)
    asked = rotary.turn(q).take_along_dim(rows[:, None, :, None], 2)
    scores = asked @ kept("key", rotary.turn(k)).transpose(-1, -2) * config.head_dim**-0.5
    later = torch.arange(T, device=rows.device) > rows[:, None, :, None]
    return F.softmax(scores.masked_fill(later, -torch.inf), -1)


def activate(x: Tensor, kind: Activation, *, in_place: bool = False) -> Tensor:
    """The MLP's activation, in x's own dtype; x may be what it is written into, if that is `in_place`."""
    match kind:
        case "gelu":
            return torch.ops.aten.gelu_(x) if in_place else F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "gelu_10":
            return F.gelu(x).clamp(-10, 10)
        case "quick_gelu":
            return x * torch.sigmoid(1.702 * x)
        case "relu":
            return F.relu(x)
        case "relu2":
            return F.relu(x).square()
        case "silu":
            return F.silu(x)
        case "mish":
            return F.mish(x)


@dataclass(frozen=True)
class Block:
    """The weights of one layer, ready to compute with."""

    config: NeoXConfig
    layer: int
    weights: Weights

    def _affine(self, z: Tensor, norm: str) -> Tensor:
        name = f"{layer_prefix(self.layer)}.{norm}"
        return (z * self.weights(f"{name}.weight")).add_(self.weights(f"{name}.bias"))

    def linear(self, x: Tensor, linear: str) -> Tensor:
        """One of the four products with its bias, if it has one, by its name within the layer. What it returns is the
        block's to write over."""
        name = f"{layer_prefix(self.layer)}.{linear}"
        bias = self.weights(f"{name}.bias") if has_bias(self.config, linear) else None
        return F.linear(x, self.weights(f"{name}.weight"), bias)

    def normed(self, x: Tensor, norm: str) -> Tensor:
        """What one of the two LayerNorms makes of x [B, T, hidden]."""
        return self._affine(normalise(x, self.config.layer_norm_eps), norm)

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What QKV and h_to_4h read of a parallel block, each [B, T, hidden]."""
        z = normalise(x, self.config.layer_norm_eps)
        return self._affine(z, NORMS[0]), self._affine(z, NORMS[1])

    def mix(self, read: Tensor, rotary: Rotary, see: See | None = None) -> Tensor:
        """What dense reads [B, T, hidden], from what QKV reads."""
        qkv = self.linear(read, QKV)
        if see is not None:
            see(QKV, qkv)
        return attention(qkv, self.config, rotary)

    def rise(self, read: Tensor, see: See | None = None) -> Tensor:
        """What 4h_to_h reads [B, T, intermediate], from what h_to_4h reads."""
        up = self.linear(read, UP)
        if see is not None:
            see(UP, up)
        in_place = see is None and not torch.is_grad_enabled()  # nobody else has `up`, and fresh memory costs more
        return activate(up, self.config.activation, in_place=in_place)

    def middle(self, x: Tensor, rotary: Rotary, see: See | None = None) -> tuple[Tensor, Tensor]:
        """What dense [B, T, hidden] and 4h_to_h [B, T, intermediate] read of a parallel block; `see` is shown what
        they are made of."""
        for_attention, for_mlp = self.inputs(x)
        return self.mix(for_attention, rotary, see), self.rise(for_mlp, see)

    def __call__(self, x: Tensor, rotary: Rotary, see: See | None = None) -> Tensor:
        """The block's output, x [B, T, hidden] -> [B, T, hidden]; `see` is shown each product that an activation or
        another residual follows: QKV's, h_to_4h's, and with a sequential residual dense's."""
        if self.config.parallel_residual:
            return self.output(x, *self.middle(x, rotary, see))
        return self.after_mlp(self.after_attention(x, rotary, see), see)

    def output(self, x: Tensor, mixed: Tensor, up: Tensor) -> Tensor:
        """A parallel block's output, from what dense and 4h_to_h read."""
        return self.linear(mixed, DENSE).add_(x).add_(self.linear(up, DOWN))

    def after_attention(self, x: Tensor, rotary: Rotary, see: See | None = None) -> Tensor:
        """The residual stream between the two halves of a sequential block."""
        written = self.linear(self.mix(self.normed(x, NORMS[0]), rotary, see), DENSE)
        if see is not None:
            see(DENSE, written)
        return x + written

    def after_mlp(self, x: Tensor, see: See | None = None) -> Tensor:
        """A sequential block's output, from the residual stream between its halves."""
        return x + self.linear(self.rise(self.normed(x, NORMS[1]), see), DOWN)


def final_norm(x: Tensor, config: NeoXConfig, weights: Weights) -> Tensor:
    z = normalise(x, config.layer_norm_eps)
    return z * weights(f"{FINAL_NORM}.weight") + weights(f"{FINAL_NORM}.bias")


def head(x: Tensor, weights: Weights) -> Tensor:
    """Logits [..., vocab] of the final norm's output."""
    return F.linear(x, weights(f"{HEAD}.weight"))
