"""What a graph rounds besides weights: the activations that a product reads, and the keys and values of its cache.

At accuracy level 4 a product with packed weights reads its activations as int8, each block of a token by its own scale
``max |x| / 127``. A cache of float16 or int8 rounds keys and values, and attention reads them back from there. A scale
of int8 is that of a token and head, found likewise, or of a channel, a constant of the graph. Here torch rounds as the
graph does; `tests/unit/proof/test_activations.py` holds it to what ONNX Runtime computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph.cache_scales import name_of, scales_of
from ..graph.decoder import PACKED, ROUNDING_BLOCKS
from ..graph.ops import DOMAIN
from ..graph.trunk import without_trunk
from ..model.block import Block, Rotary, See, attention, attention_pattern
from ..model.neox import QKV, NeoXConfig, layer_prefix
from ..recipe import Export
from ..weights.layout import PARTS

Cached = Literal["float32", "float16", "int8"]


@dataclass(frozen=True)
class Activations:
    """How a graph rounds. blocks: of each linear that reads int8, by its name in the checkpoint, the numbers that share
    a scale; other linears read floats. scales: of a cache whose scales are constants of the graph, by their names."""

    blocks: Mapping[str, int] = field(default_factory=dict)
    cache: Cached = "float32"
    scales: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: onnx.ModelProto, config: NeoXConfig, export: Export) -> Activations:
        """Return how a graph rounds that was made by `export`, from its nodes and constants."""
        blocks: dict[str, int] = {}
        for node in without_trunk(model).graph.node:
            if node.op_type not in PACKED:
                continue
            given = {attribute.name: attribute.i for attribute in node.attribute}
            size = given["block_size"]
            in_float = given["bits"] == 2 and size not in ROUNDING_BLOCKS  # of level 4 ONNX Runtime takes no notice
            if in_float or given.get("accuracy_level", 4 if node.domain == DOMAIN else 0) != 4:
                continue
            name = node.input[1].removesuffix(".qweight")
            prefix, _, short = name.rpartition(".")
            blocks |= {f"{prefix}.{part}" if short in PARTS else name: size for part in PARTS.get(short, (short,))}
        scales = scales_of(model, config) if export.static_scales else {}
        return cls(blocks, export.cache_dtype, {name: torch.from_numpy(x.copy()) for name, x in scales.items()})

    def read(self, linear: str, x: Tensor) -> Tensor:
        """Return x [..., K] float32 as the linear of that name reads it."""
        size = self.blocks.get(linear)
        return x if size is None else int8(x, size)

    def kept(self, layer: int, part: str, x: Tensor) -> Tensor:
        """Return a layer's keys or values x [B, heads, T, head_dim] as attention reads them back."""
        if self.cache == "float16":
            return x.half().to(x.dtype)
        if self.scales:
            scale = self.scales[name_of(layer, part)].to(x.device)[:, None]
            return (x / scale).round().clamp(-128, 127) * scale
        return int8(x, x.shape[-1]) if self.cache == "int8" else x


IN_FLOAT = Activations()


def int8(x: Tensor, size: int) -> Tensor:
    """Return x [..., K] rounded to int8, every `size` numbers by a scale of their own; the last may be fewer."""
    K = x.shape[-1]
    blocks = F.pad(x, (0, -K % size)).unflatten(-1, (-1, size))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)  # nothing to tell apart
    rounded: Tensor = ((blocks * (1 / scale)).round() * scale).flatten(-2)[..., :K]
    return rounded


@dataclass(frozen=True)
class Watched(Block):
    """A block that rounds as a graph does, and shows what its linears read (before it is rounded) and gave.

    keep: the linears, by their names within the layer, whose values are kept until the next pass.
    """

    activations: Activations = IN_FLOAT
    keep: frozenset[str] = frozenset((QKV,))
    read: dict[str, Tensor] = field(default_factory=dict)
    gave: dict[str, Tensor] = field(default_factory=dict)

    def linear(self, x: Tensor, linear: str) -> Tensor:
        out = super().linear(self.activations.read(f"{layer_prefix(self.layer)}.{linear}", x), linear)
        if linear in self.keep:
            self.read[linear], self.gave[linear] = x, out.clone()  # the block writes over what it is given
        return out

    def mix(self, read: Tensor, rotary: Rotary, see: See | None = None) -> Tensor:
        return attention(self.linear(read, QKV), self.config, rotary, self._kept)

    def pattern(self, rotary: Rotary, rows: Tensor) -> Tensor:
        """Return the last pass's attention patterns of the queries at `rows` [B, P]: [B, heads, P, T]."""
        return attention_pattern(self.gave[QKV], self.config, rotary, rows, self._kept)

    def _kept(self, part: str, x: Tensor) -> Tensor:
        return self.activations.kept(self.layer, part, x)
