"""Where every tensor of an artifact is stored in `model.onnx_data`, from configuration and recipe alone.

The layout is known before a weight has been read: `plan` prints it, the graph records its offsets, and the stream
fills it. Weights are stored as the graph wants them:

- a quantised linear `N`: `N.qweight` uint8 [out, blocks, block_size * bits / 8], `N.scales` [out, blocks] and, when
  asymmetric, `N.zero_points` uint8 [out, ceil(blocks * bits / 8)]: the operands of com.microsoft.MatMulNBits;
- of 3 bits, where the recipe wants them in 3, `N.qweight` is uint8 [out, chunks, 3, plane] (`packing.py`) and
  `N.zero_points` as of 4 bits;
- a linear left in float: `N.weight` [in, out], ready for MatMul (the head in float16, cast when the session opens);
- the rows of the fused QKV are permuted from `[heads, 3, head_dim]` to `[3, heads, head_dim]`, so that the product is
  the packed `q | k | v` that attention operators read;
- with two products a layer, QKV and h_to_4h are one matrix `fused_in` of 7 * hidden outputs, dense and 4h_to_h one
  matrix `fused_out` of 5 * hidden inputs. The graph reads the whole; each linear keeps a slot of its own, inside it.

Alignment: 4,096 bytes for tensors of a page or more, so that they can be memory-mapped, 64 below.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from ..base.errors import RecipeError
from ..model.neox import (
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    LINEARS,
    NORMS,
    NeoXConfig,
    has_bias,
    layer_prefix,
    linear_shape,
)
from ..recipe import Method, Quantize, Recipe, Scheme
from .narrow import NARROW, narrow_shape

PAGE, SMALL = 4096, 64
EMBEDDING_BLOCK = 32
EMBEDDINGS = {"int8": Scheme(bits=8, group_size=EMBEDDING_BLOCK), "int4": Scheme(bits=4, group_size=EMBEDDING_BLOCK)}
FUSED_IN, FUSED_OUT = "fused_in", "fused_out"
PARTS = {FUSED_IN: (LINEARS[0], LINEARS[2]), FUSED_OUT: (LINEARS[1], LINEARS[3])}


@dataclass(frozen=True)
class Slot:
    """One tensor's place: numpy dtype name, shape, byte offset, and the bytes from one row to the next: more than a row
    has where the tensor is part of a wider one."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    pitch: int

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def end(self) -> int:
        return self.offset + (self.shape[0] - 1) * self.pitch + self.nbytes // self.shape[0]

    def view(self, memory: np.ndarray) -> np.ndarray:
        """The tensor within `memory`, the file's bytes."""
        inner = np.empty((1, *self.shape[1:]), self.dtype).strides[1:]
        return np.ndarray(self.shape, self.dtype, memory, self.offset, (self.pitch, *inner))


@dataclass(frozen=True)
class LinearPlan:
    """How one linear is stored. `block_size` is what MatMulNBits is told; a group of -1 repeats its scale."""

    name: str
    layer: int | None
    shape: tuple[int, int]
    method: Method
    scheme: Scheme
    bias: bool
    three_bits: bool = False  # codes of 3 bits are stored in 3, where rows allow it

    @property
    def is_narrow(self) -> bool:
        """Whether its codes have the 3 bits that they are stored in."""
        return self.three_bits and self.scheme.bits == 3 and self.blocks * self.block_size % NARROW == 0

    @property
    def stored_bits(self) -> int:
        """Bits in which a code is stored."""
        return 3 if self.is_narrow else 4 if self.scheme.bits == 3 else self.scheme.bits

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Shape of its packed codes."""
        out, columns = self.shape[0], self.blocks * self.block_size
        if self.is_narrow:
            return (out, *narrow_shape(columns))
        return (out, self.blocks, self.block_size * self.stored_bits // 8)

    @property
    def zero_shape(self) -> tuple[int, int]:
        """Shape of its packed zero points, which are of 4 bits where codes are of 3."""
        bits = 4 if self.is_narrow else self.stored_bits
        return (self.shape[0], -(-self.blocks * bits // 8))

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
    """Where every tensor of a model is stored, once quantised.

    config, quantize, dtype: what the layout is of; `dtype` is that of scales, biases and norms.
    slots: what is written and read back, by checkpoint names.
    linears: how each is rounded.
    embedding: how its rows are rounded; None where they are stored in float.
    fused, wholes: the matrices of two products a layer and their tensors, which the graph reads; empty with four.
    """

    config: NeoXConfig
    quantize: Quantize
    dtype: str
    slots: dict[str, Slot]
    linears: dict[str, LinearPlan]
    embedding: Scheme | None
    fused: dict[str, LinearPlan]
    wholes: dict[str, Slot]

    @property
    def nbytes(self) -> int:
        return max(slot.end for slot in self.slots.values())

    @property
    def bits_per_weight(self) -> float:
        """Stored bits, scales and zero points included, a weight of the quantised linears; 16 or 32 when none is."""
        chosen = [p for p in self.linears.values() if p.method != "none"] or list(self.linears.values())
        weights = sum(p.shape[0] * p.shape[1] for p in chosen)
        parts = ("qweight", "scales", "zero_points", "weight")
        nbytes = sum(self.slots[f"{p.name}.{x}"].nbytes for p in chosen for x in parts if f"{p.name}.{x}" in self.slots)
        return 8 * nbytes / weights

    def sharing(self, name: str) -> tuple[str, ...]:
        """The linears that are stored as one matrix with this one, itself among them."""
        for fused in self.fused:
            prefix, _, short = fused.rpartition(".")
            names = tuple(f"{prefix}.{part}" for part in PARTS[short])
            if name in names:
                return names
        return (name,)


def linear_plans(config: NeoXConfig, quantize: Quantize) -> Iterator[LinearPlan]:
    """Every linear in streaming order: four a layer, then the head."""
    three_bits = quantize.three_bit_field == 3
    for layer in range(config.num_layers):
        for linear in LINEARS:
            name = f"{layer_prefix(layer)}.{linear}"
            shape, bias = linear_shape(config, linear), has_bias(config, linear)
            yield LinearPlan(name, layer, shape, *quantize.linear(name), bias, three_bits)
    yield LinearPlan(HEAD, None, linear_shape(config, HEAD), *quantize.linear(HEAD), False, three_bits)


def require_overrides_match(config: NeoXConfig, quantize: Quantize) -> None:
    """
    Raises:
        RecipeError: an override whose pattern matches no linear of this model.
    """
    names = [plan.name for plan in linear_plans(config, quantize)]
    for i, rule in enumerate(quantize.override):
        if not any(fnmatchcase(name, rule.pattern) for name in names):
            near = difflib.get_close_matches(rule.pattern, names, n=1, cutoff=0) or names
            raise RecipeError(
                f"quantize.override.{i}: the pattern {rule.pattern!r} matches no linear of this model; there are "
                f"{len(names)}, {near[0]} for example",
                hint="`pythia-export plan` lists every linear. `*` stands for any characters, dots among them.",
            )


@dataclass(frozen=True)
class _Tensor:
    """A tensor to be placed; `parts` are the names and shapes of those that it is put together from along `axis`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    axis: int = 0
    parts: tuple[tuple[str, tuple[int, ...]], ...] = ()


def _linear(plan: LinearPlan, dtype: str, head: str = "float16") -> Iterator[_Tensor]:
    out, fan_in = plan.shape
    if plan.method == "none":
        yield _Tensor(f"{plan.name}.weight", head if plan.name == HEAD else dtype, (fan_in, out))
    else:
        yield _Tensor(f"{plan.name}.qweight", "uint8", plan.code_shape)
        yield _Tensor(f"{plan.name}.scales", dtype, (out, plan.blocks))
        if not plan.scheme.symmetric:
            yield _Tensor(f"{plan.name}.zero_points", "uint8", plan.zero_shape)
    if plan.bias:
        yield _Tensor(f"{plan.name}.bias", dtype, (out,))


def _fused(whole: LinearPlan, parts: list[LinearPlan], dtype: str) -> Iterator[_Tensor]:
    """The tensors of a matrix made of two linears: one above the other, or one beside the other with one bias."""
    above = whole.name.endswith(FUSED_IN)
    for tensors in zip(*(_linear(part, dtype) for part in parts), strict=True):
        kind = tensors[0].name.rpartition(".")[2]
        if kind == "bias" and not above:
            tensors = tensors[1:]
        axis = int(above) if kind == "weight" else int(not above)  # a float matrix is stored as [in, out]
        axis = 0 if kind == "bias" else axis
        shape = list(tensors[0].shape)
        shape[axis] = sum(t.shape[axis] for t in tensors)
        yield _Tensor(
            f"{whole.name}.{kind}", tensors[0].dtype, tuple(shape), axis, tuple((t.name, t.shape) for t in tensors)
        )


def _fused_plan(name: str, parts: list[LinearPlan]) -> LinearPlan:
    """How a matrix made of two linears is stored.

    Raises:
        RecipeError: they are not stored alike, or cannot lie side by side.
    """
    a, b = parts
    if (a.method, a.scheme) != (b.method, b.scheme):
        raise RecipeError(
            f"quantize.products = 2 stores {a.name} and {b.name} as one matrix, and the recipe has "
            f"{a.method} {a.scheme} for the one and {b.method} {b.scheme} for the other",
            hint="Let the overrides match both or neither, or leave `products` at 4.",
        )
    if name.endswith(FUSED_IN):
        return LinearPlan(name, a.layer, (a.shape[0] + b.shape[0], a.shape[1]), a.method, a.scheme, bias=True)
    whole = LinearPlan(name, a.layer, (a.shape[0], a.shape[1] + b.shape[1]), a.method, a.scheme, bias=True)
    bytes_of_zeros = a.blocks * a.stored_bits % 8 == 0 or a.scheme.symmetric
    blocks = {part.block_size for part in (a, b, whole)}
    if a.method != "none" and len(blocks) > 1:
        raise RecipeError(
            f"quantize.products = 2 stores {a.name} and {b.name} side by side; with group_size = -1 their rows are cut "
            f"into blocks of {' and '.join(map(str, sorted(blocks)))}",
            hint="Choose a group_size from 16 to 256, or leave `products` at 4.",
        )
    aligned = a.shape[1] % a.block_size == 0
    if a.method != "none" and not (aligned and bytes_of_zeros):
        raise RecipeError(
            f"quantize.products = 2 stores {a.name} and {b.name} side by side; {a.shape[1]} columns do not end with a "
            f"block of {a.block_size}{'' if bytes_of_zeros else ' and a byte of zero points'}",
            hint="Choose a smaller group_size or a symmetric grid, or leave `products` at 4.",
        )
    return whole


def _require_foldable(config: NeoXConfig) -> None:
    why = None
    if not config.parallel_residual:
        why = "QKV and h_to_4h read the same vector only with a parallel residual, and this model's is sequential"
    elif not config.attention_bias:
        why = "the shift of a LayerNorm goes into QKV's bias, and this model has none (attention_bias = false)"
    if why is not None:
        raise RecipeError(f"quantize.products = 2: {why}", hint="Leave `products` at 4.")


def layout(config: NeoXConfig, quantize: Quantize, dtype: str) -> Layout:
    """Lay out every tensor of the artifact. `dtype` is that of scales, biases and norms: float32 or float16.

    Raises:
        RecipeError: two products a layer are asked for, of linears that cannot share a matrix, or of a model whose
            layers cannot be folded.
    """
    if quantize.products == 2:
        _require_foldable(config)
    d, vocab = config.hidden_size, config.vocab_size
    linears = {plan.name: plan for plan in linear_plans(config, quantize)}
    fused: dict[str, LinearPlan] = {}
    slots: dict[str, Slot] = {}
    wholes: dict[str, Slot] = {}
    end = 0

    def place(tensor: _Tensor) -> None:
        nonlocal end
        size = np.dtype(tensor.dtype).itemsize
        pitch = int(np.prod(tensor.shape[1:], dtype=np.int64)) * size
        align = PAGE if pitch * tensor.shape[0] >= PAGE else SMALL
        at = -(-end // align) * align
        whole = Slot(tensor.name, tensor.dtype, tensor.shape, at, pitch)
        end = whole.end
        if not tensor.parts:
            slots[tensor.name] = whole
            return
        wholes[tensor.name] = whole
        step = pitch // tensor.shape[1] if tensor.axis else pitch
        for name, shape in tensor.parts:
            slots[name] = Slot(name, tensor.dtype, shape, at, pitch)
            at += shape[tensor.axis] * step

    embedding = EMBEDDINGS.get(quantize.embedding)
    if embedding is not None:
        place(_Tensor(f"{EMBEDDING}.qweight", "uint8", (vocab, d * embedding.bits // 8)))
        place(_Tensor(f"{EMBEDDING}.scales", dtype, (vocab, -(-d // EMBEDDING_BLOCK))))
    else:
        place(_Tensor(f"{EMBEDDING}.weight", quantize.embedding, (vocab, d)))
    for table in ("rotary.cos", "rotary.sin"):
        place(_Tensor(table, dtype, (config.max_positions, config.rotary_dim // 2)))
    for layer in range(config.num_layers):
        prefix = layer_prefix(layer)
        if quantize.products == 4:
            for norm in NORMS:
                for part in ("weight", "bias"):
                    place(_Tensor(f"{prefix}.{norm}.{part}", dtype, (d,)))
            for linear in LINEARS:
                for tensor in _linear(linears[f"{prefix}.{linear}"], dtype):
                    place(tensor)
            continue
        place(_Tensor(f"{prefix}.{NORMS[0]}.weight", dtype, (d,)))
        slots[f"{prefix}.{NORMS[1]}.weight"] = slots[f"{prefix}.{NORMS[0]}.weight"]  # one scale for both branches
        for short, names in PARTS.items():
            parts, name = [linears[f"{prefix}.{linear}"] for linear in names], f"{prefix}.{short}"
            fused[name] = _fused_plan(name, parts)
            for tensor in _fused(fused[name], parts, dtype):
                place(tensor)
    for part in ("weight", "bias"):
        place(_Tensor(f"{FINAL_NORM}.{part}", dtype, (d,)))
    for tensor in _linear(linears[HEAD], dtype, quantize.head.dtype):
        place(tensor)
    return Layout(config, quantize, dtype, slots, linears, embedding, fused, wholes)


def layout_of(recipe: Recipe, config: NeoXConfig) -> Layout:
    """Return the layout of the weights that a recipe makes; raises as `layout`."""
    return layout(config, recipe.quantize, recipe.export.dtype)


def packed_qkv_rows(config: NeoXConfig) -> np.ndarray:
    """On-disk row of each packed row, [3 * hidden]: ``W[rows]`` goes from ``[heads, 3, head_dim]`` to packed."""
    rows = np.arange(3 * config.hidden_size).reshape(config.num_heads, 3, config.head_dim)
    return rows.transpose(1, 0, 2).reshape(-1)
