"""The layer loop: the one place where weights, activations and the writer meet.

A layer is observed, quantised, written and passed through before the next one is read, so that memory holds one layer,
its Hessians and the calibration activations. Each layer sees the outputs of the *quantised* layers before it.

Within a layer, Pythia's parallel residual leaves two stages (GPTQ's "true sequential" order): QKV and h_to_4h read the
same normalised vector z, so one pass over z gives both their Hessians,

    E[(z g + b)(z g + b)^T] = G M G + (G m) b^T + b (G m)^T + b b^T     with M = E[z z^T], m = E[z], G = diag(g);

dense and 4h_to_h then read what the quantised QKV and h_to_4h give.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .block import Block, Rotary, final_norm, normalise
from .errors import NumericsError, PythiaExportError
from .graph.layout import EMBEDDING_BLOCK, QKV, Layout, LinearPlan, packed_qkv_rows, rotary_tables
from .neox import EMBEDDING, FINAL_NORM, HEAD, NeoXConfig, layer_prefix, layer_tensors
from .progress import SILENT, Progress
from .quantize.gptq import gptq, output_error
from .quantize.grid import Quantized
from .quantize.packing import pack, pack_rows_int8
from .quantize.rtn import rtn
from .recipe import Quantize
from .weights import WeightsWriter

CHUNK_TOKENS = 4096  # activations computed at once


class Tensors(Protocol):
    """A checkpoint, or anything that yields tensors by on-disk name."""

    config: NeoXConfig

    def tensor(self, name: str) -> Tensor: ...


def quantize_stream(
    source: Tensors,
    quantize: Quantize,
    layout: Layout,
    dtype: str,
    windows: np.ndarray | None,
    writer: WeightsWriter,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Stream every tensor of `source` into `writer`; windows [N, S] int64 are what GPTQ observes.

    Returns the content of `quantization.json`.

    Raises:
        NumericsError: a NaN or an infinity in a weight or an activation, or a Hessian that no damping mends; the
            message names the linear or the layer.
    """
    began = time.perf_counter()
    config, out = source.config, _Writer(writer, layout, dtype, config_rows=packed_qkv_rows(source.config))
    observed = _Observed(config, source, windows) if windows is not None else None
    records: list[dict[str, Any]] = []

    with torch.inference_mode(), progress.track("Quantising", len(layout.linears), "linears") as advance:
        embedding = source.tensor(f"{EMBEDDING}.weight")
        out.embedding(embedding, quantize.embedding)
        for name, table in zip(("rotary.cos", "rotary.sin"), rotary_tables(config), strict=True):
            writer.put(name, table.astype(dtype))
        if observed is not None:
            # From here on the artifact's own embedding is what every layer reads.
            observed.start(out.as_stored(embedding, quantize.embedding))
        del embedding

        for layer in range(config.num_layers):
            prefix = layer_prefix(layer)
            weights = {spec.name: source.tensor(spec.name).float() for spec in layer_tensors(config, layer)}
            block = Block(config, layer, weights.__getitem__)
            plans = {name: layout.linears[f"{prefix}.{name}"] for name in _STAGES[0] + _STAGES[1]}
            for stage in _STAGES:
                gram = observed.hessians(block, stage) if observed is not None else dict.fromkeys(stage)
                for linear in stage:
                    name = f"{prefix}.{linear}"
                    result, record = _quantize_linear(
                        plans[linear], weights[f"{name}.weight"], gram[linear], quantize, dtype, observed
                    )
                    weights[f"{name}.weight"] = out.linear(plans[linear], weights[f"{name}.weight"], result)
                    out.vector(f"{name}.bias", weights[f"{name}.bias"])
                    records += record
                    advance(1)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                for part in ("weight", "bias"):
                    out.vector(f"{prefix}.{norm}.{part}", weights[f"{prefix}.{norm}.{part}"])
            if observed is not None:
                observed.propagate(block)

        ends = {f"{FINAL_NORM}.{part}": source.tensor(f"{FINAL_NORM}.{part}").float() for part in ("weight", "bias")}
        for name, vector in ends.items():
            out.vector(name, vector)
        plan, W = layout.linears[HEAD], source.tensor(f"{HEAD}.weight").float()
        H = observed.head_hessian(ends.__getitem__) if observed is not None else None
        result, record = _quantize_linear(plan, W, H, quantize, dtype, observed)
        out.linear(plan, W, result)
        records += record
        advance(1)
    place = {name: i for i, name in enumerate(layout.linears)}  # stages are quantised out of the checkpoint's order
    return {
        "schema": 1,
        "method": quantize.method,
        "bits_per_weight": round(layout.bits_per_weight, 4),
        "seconds": round(time.perf_counter() - began, 2),
        "linears": sorted(records, key=lambda record: place[record["name"]]),
    }


_STAGES = ((QKV, "mlp.dense_h_to_4h"), ("attention.dense", "mlp.dense_4h_to_h"))


@dataclass
class _Observed:
    """The calibration activations [N, S, hidden], float32, moved through the quantised layers."""

    config: NeoXConfig
    source: Tensors
    ids: np.ndarray

    def start(self, embedding: Tensor) -> None:
        self.x = embedding[torch.tensor(self.ids)]
        self.rotary = Rotary.of(self.config, self.ids.shape[1], torch.float32)

    @property
    def tokens(self) -> int:
        return int(self.ids.size)

    def _chunks(self) -> Iterator[Tensor]:
        yield from self.x.split(max(1, CHUNK_TOKENS // self.x.shape[1]))

    def hessians(self, block: Block, stage: tuple[str, ...]) -> dict[str, Tensor]:
        """``E[x x^T]`` [in, in] float64 of each linear of the stage."""
        if stage == _STAGES[0]:
            moments = _Moments(self.config.hidden_size)
            for x in self._chunks():
                moments.add(normalise(x, self.config.layer_norm_eps))
            norms = ("input_layernorm", "post_attention_layernorm")
            grams = [
                moments.affine(*(block.weights(f"{layer_prefix(block.layer)}.{n}.{p}") for p in _WB)) for n in norms
            ]
        else:
            wide = (_Moments(self.config.hidden_size), _Moments(self.config.intermediate_size))
            for x in self._chunks():
                for moments, value in zip(wide, block.middle(x, self.rotary), strict=True):
                    moments.add(value)
            grams = [moments.second for moments in wide]
        for name, gram in zip(stage, grams, strict=True):
            if not torch.isfinite(gram).all():
                raise NumericsError(
                    f"layer {block.layer}: the inputs of {name} hold a NaN or an infinity on the calibration text"
                )
        return dict(zip(stage, grams, strict=True))

    def propagate(self, block: Block) -> None:
        for x in self._chunks():
            x.copy_(block(x, self.rotary))

    def head_hessian(self, weights: Callable[[str], Tensor]) -> Tensor:
        moments = _Moments(self.config.hidden_size)
        for x in self._chunks():
            moments.add(final_norm(x, self.config, weights))
        if not torch.isfinite(moments.second).all():
            raise NumericsError("the last layer's output holds a NaN or an infinity on the calibration text")
        return moments.second


_WB = ("weight", "bias")


class _Moments:
    """Mean [n] and second moments [n, n] of row vectors, summed in float64 over float32 products of one chunk."""

    def __init__(self, n: int) -> None:
        self._count, self._sum, self._gram = (
            0,
            torch.zeros(n, dtype=torch.float64),
            torch.zeros(n, n, dtype=torch.float64),
        )

    def add(self, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1])
        self._gram += rows.T @ rows
        self._sum += rows.sum(0, dtype=torch.float64)
        self._count += len(rows)

    @property
    def second(self) -> Tensor:
        return self._gram / self._count

    def affine(self, scale: Tensor, shift: Tensor) -> Tensor:
        """Second moments of ``z * scale + shift``."""
        g, b = scale.double(), shift.double()
        mean = torch.outer(g * (self._sum / self._count), b)
        return self.second * torch.outer(g, g) + mean + mean.T + torch.outer(b, b)


def _quantize_linear(
    plan: LinearPlan, W: Tensor, H: Tensor | None, quantize: Quantize, dtype: str, observed: _Observed | None
) -> tuple[Quantized | None, list[dict[str, Any]]]:
    if plan.method == "none":
        return None, []
    began, scheme, scale_dtype = time.perf_counter(), plan.scheme, getattr(torch, dtype)
    try:
        nearest = rtn(W, scheme.bits, scheme.group_size, scheme.symmetric, scale_dtype)
        result, damp = nearest, None
        if plan.method == "gptq":
            assert H is not None  # a recipe with GPTQ has calibration text: the schema sees to it
            done = gptq(
                W, H, scheme.bits, scheme.group_size, scheme.symmetric,
                quantize.act_order, quantize.damp, quantize.max_damp, scale_dtype,
            )  # fmt: skip
            result, damp = done.quantized, done.damp
    except PythiaExportError as e:
        raise type(e)(f"{plan.name}: {e}", hint=e.hint) from e
    rtn_loss = output_error(W, nearest, H) if H is not None else None
    loss = output_error(W, result, H) if H is not None else None
    record = {
        "name": plan.name,
        "layer": plan.layer,
        "shape": list(plan.shape),
        "method": plan.method,
        "bits": scheme.bits,
        "group_size": scheme.group_size,
        "symmetric": scheme.symmetric,
        "rtn_loss": rtn_loss,
        "loss": loss,
        "recovered": 1 - loss / rtn_loss if loss is not None and rtn_loss else None,
        "damp": damp,
        "tokens": observed.tokens if observed is not None else 0,
        "seconds": round(time.perf_counter() - began, 3),
    }
    return result, [record]


@dataclass
class _Writer:
    """Puts tensors into the file in the form that the graph reads."""

    file: WeightsWriter
    layout: Layout
    dtype: str
    config_rows: np.ndarray

    def vector(self, name: str, value: Tensor) -> None:
        if name.removesuffix(".bias").endswith(QKV):
            value = value[torch.from_numpy(self.config_rows)]
        self.file.put(name, value.float().numpy().astype(self.dtype))

    def embedding(self, table: Tensor, kind: str) -> None:
        if kind == "int8":
            for part, array in pack_rows_int8(table, EMBEDDING_BLOCK, self.dtype).items():
                self.file.put(f"{EMBEDDING}.{part}", array)
        else:
            self.file.put(f"{EMBEDDING}.weight", table.to(getattr(torch, kind)).numpy())

    def as_stored(self, table: Tensor, kind: str) -> Tensor:
        """The embedding in float32 as the artifact will read it."""
        if kind == "int8":
            return rtn(table, 8, EMBEDDING_BLOCK, symmetric=True, scale_dtype=getattr(torch, self.dtype)).dequantize()
        return table.to(getattr(torch, kind)).float()

    def linear(self, plan: LinearPlan, W: Tensor, result: Quantized | None) -> Tensor:
        """Write one linear [out, in] and return the float32 matrix that the artifact now stands for."""
        rows = torch.from_numpy(self.config_rows) if plan.name.endswith(QKV) else None
        if result is None:
            slot = self.layout.slots[f"{plan.name}.weight"]
            stored = W.to(getattr(torch, slot.dtype))
            packed = stored if rows is None else stored[rows]
            self.file.put(f"{plan.name}.weight", packed.T.contiguous().numpy())
            return stored.float()
        ordered = result if rows is None else _reordered(result, rows)
        for part, array in pack(ordered, plan.scheme.stored_bits, plan.block_size, self.dtype).items():
            self.file.put(f"{plan.name}.{part}", array)
        return result.dequantize()


def _reordered(result: Quantized, rows: Tensor) -> Quantized:
    zero = result.zero_point[rows] if result.zero_point is not None else None
    return Quantized(result.q[rows], result.scale[rows], zero, result.bits, result.group_size)
