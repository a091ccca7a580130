"""Where every tensor of an artifact lies in `model.onnx_data`, from configuration and recipe alone.

The layout is known before a weight has been read: `plan` prints it, the graph records its offsets, and the stream
fills it. Weights are stored as the graph wants them:

- a quantised linear `N`: `N.qweight` uint8 [out, blocks, block_size * bits / 8], `N.scales` [out, blocks] and, when
  asymmetric, `N.zero_points` uint8 [out, ceil(blocks * bits / 8)]: the operands of com.microsoft.MatMulNBits;
- a linear left in float: `N.weight` [in, out], ready for MatMul (the head in float16, cast when the session opens);
- the rows of the fused QKV are permuted from `[heads, 3, head_dim]` to `[3, heads, head_dim]`, so that the product is
  the packed `q | k | v` that attention operators read.

Alignment: 4,096 bytes for tensors of a page or more, so that they can be memory-mapped, 64 below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..neox import EMBEDDING, FINAL_NORM, HEAD, LINEARS, NeoXConfig, layer_prefix, linear_shape
from ..recipe import Method, Quantize, Scheme

PAGE, SMALL = 4096, 64
QKV = "attention.query_key_value"
EMBEDDING_BLOCK = 32
EMBEDDING_BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class Slot:
    """One tensor's place: numpy dtype name, shape, byte offset and length."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class LinearPlan:
    """How one linear is stored. `block_size` is what MatMulNBits is told; a group of -1 repeats its scale."""

    name: str
    layer: int | None
    shape: tuple[int, int]
    method: Method
    scheme: Scheme

    @property
    def block_size(self) -> int:
        if self.scheme.group_size > 0:
            return self.scheme.group_size
        return 128 if self.shape[1] >= 128 else 32

    @property
    def blocks(self) -> int:
        return -(-self.shape[1] // self.block_size)


@dataclass(frozen=True)
class Layout:
    slots: dict[str, Slot]
    linears: dict[str, LinearPlan]

    @property
    def nbytes(self) -> int:
        return max(slot.offset + slot.nbytes for slot in self.slots.values())

    @property
    def bits_per_weight(self) -> float:
        """Stored bits, scales and zero points included, a weight of the quantised linears; 16 or 32 when none is."""
        chosen = [p for p in self.linears.values() if p.method != "none"] or list(self.linears.values())
        weights = sum(p.shape[0] * p.shape[1] for p in chosen)
        parts = ("qweight", "scales", "zero_points", "weight")
        nbytes = sum(self.slots[f"{p.name}.{x}"].nbytes for p in chosen for x in parts if f"{p.name}.{x}" in self.slots)
        return 8 * nbytes / weights

    def embedding_bits(self, hidden: int) -> int | None:
        """Of each weight of a quantised embedding; None where it is stored in float."""
        slot = self.slots.get(f"{EMBEDDING}.qweight")
        return None if slot is None else 8 * slot.shape[1] // hidden

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(slot) for slot in self.slots.values()]


def linear_plans(config: NeoXConfig, quantize: Quantize) -> Iterator[LinearPlan]:
    """Every linear in streaming order: four a layer, then the head."""
    for layer in range(config.num_layers):
        for linear in LINEARS:
            name = f"{layer_prefix(layer)}.{linear}"
            yield LinearPlan(name, layer, linear_shape(config, linear), *quantize.linear(name))
    yield LinearPlan(HEAD, None, linear_shape(config, HEAD), *quantize.linear(HEAD))


def _linear_slots(plan: LinearPlan, dtype: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    out, fan_in = plan.shape
    if plan.method == "none":
        yield f"{plan.name}.weight", "float16" if plan.name == HEAD else dtype, (fan_in, out)
    else:
        bits = plan.scheme.stored_bits
        yield f"{plan.name}.qweight", "uint8", (out, plan.blocks, plan.block_size * bits // 8)
        yield f"{plan.name}.scales", dtype, (out, plan.blocks)
        if not plan.scheme.symmetric:
            yield f"{plan.name}.zero_points", "uint8", (out, -(-plan.blocks * bits // 8))
    if plan.name != HEAD:
        yield f"{plan.name}.bias", dtype, (out,)


def _tensors(config: NeoXConfig, quantize: Quantize, dtype: str, plans: list[LinearPlan]) -> Iterator[Any]:
    d, vocab = config.hidden_size, config.vocab_size
    if quantize.embedding in EMBEDDING_BITS:
        yield f"{EMBEDDING}.qweight", "uint8", (vocab, d * EMBEDDING_BITS[quantize.embedding] // 8)
        yield f"{EMBEDDING}.scales", dtype, (vocab, -(-d // EMBEDDING_BLOCK))
    else:
        yield f"{EMBEDDING}.weight", quantize.embedding, (vocab, d)
    for table in ("rotary.cos", "rotary.sin"):
        yield table, dtype, (config.max_positions, config.rotary_dim // 2)
    for plan in plans:
        if plan.name.endswith(LINEARS[0]):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                for part in ("weight", "bias"):
                    yield f"{layer_prefix(plan.layer or 0)}.{norm}.{part}", dtype, (d,)
        if plan.name == HEAD:
            for part in ("weight", "bias"):
                yield f"{FINAL_NORM}.{part}", dtype, (d,)
        yield from _linear_slots(plan, dtype)


def layout(config: NeoXConfig, quantize: Quantize, dtype: str) -> Layout:
    """Lay out every tensor of the artifact. `dtype` is that of scales, biases and norms: float32 or float16."""
    plans = list(linear_plans(config, quantize))
    slots: dict[str, Slot] = {}
    end = 0
    for name, kind, shape in _tensors(config, quantize, dtype, plans):
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
        align = PAGE if nbytes >= PAGE else SMALL
        offset = -(-end // align) * align
        slots[name] = Slot(name, kind, shape, offset, nbytes)
        end = offset + nbytes
    return Layout(slots, {plan.name: plan for plan in plans})


def packed_qkv_rows(config: NeoXConfig) -> np.ndarray:
    """On-disk row of each packed row, [3 * hidden]: ``W[rows]`` goes from ``[heads, 3, head_dim]`` to packed."""
    rows = np.arange(3 * config.hidden_size).reshape(config.num_heads, 3, config.head_dim)
    return rows.transpose(1, 0, 2).reshape(-1)


def rotary_tables(config: NeoXConfig) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of ``position * base ** (-2i / rotary_dim)``, each [max_positions, rotary_dim / 2], float64.

    RoFormer, arXiv 2104.09864, section 3.2.2; the checkpoint's own `inv_freq` is rounded and not used.
    """
    i = np.arange(0, config.rotary_dim, 2, dtype=np.float64)
    angle = np.outer(np.arange(config.max_positions, dtype=np.float64), config.rotary_base ** (-i / config.rotary_dim))
    return np.cos(angle), np.sin(angle)
