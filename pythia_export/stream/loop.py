"""The layer loop: the one place where weights, activations and the writer meet.

A layer is observed, quantised, written and passed through before the next one is read, so that memory holds one layer,
its Hessians and the calibration activations (or, beyond a budget, a chunk of them).
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..block import Block
from ..errors import PythiaExportError
from ..graph.layout import (
    EMBEDDING_BITS,
    EMBEDDING_BLOCK,
    NORMS,
    QKV,
    Layout,
    LinearPlan,
    packed_qkv_rows,
    rotary_tables,
)
from ..neox import EMBEDDING, FINAL_NORM, HEAD, LINEARS, NeoXConfig, layer_prefix, layer_tensors
from ..progress import SILENT, Progress
from ..quantize.coupled import gptq_coupled
from ..quantize.gptq import WEIGHTS_AT_ONCE, correction, factor, gptq, row_errors
from ..quantize.grid import Quantized
from ..quantize.packing import pack, pack_rows, round_rows
from ..quantize.rtn import rtn
from ..recipe import Quantize
from ..weights import WeightsReader, WeightsWriter
from .activations import fits
from .folded import Folded
from .journal import Journal
from .observe import Observed
from .problem import Problem
from .sensitivity import Sensitivity, Tensors, expected_cost, measure_sensitivity


def quantize_stream(
    source: Tensors,
    quantize: Quantize,
    layout: Layout,
    dtype: str,
    windows: np.ndarray | None,
    writer: WeightsWriter,
    progress: Progress = SILENT,
    *,
    memory_gb: float = 4.0,
    journal: Journal | None = None,
    felt: Sensitivity | None = None,
) -> dict[str, Any]:
    """Stream every tensor of `source` into `writer`; windows [N, S] int64 are what GPTQ observes.

    `felt` is the sensitivity of these weights on these windows, where it was measured before. Activations beyond `memory_gb` lie in files beside the weights. With a journal, finished layers are committed to it,
    and those that it has already are read back instead of quantised. Returns the content of `quantization.json`.

    Raises:
        NumericsError: a NaN or an infinity in a weight or an activation, or a Hessian that no damping mends; the
            message names the linear or the layer.
    """
    began = time.perf_counter()
    if quantize.products == 2:
        source = Folded(source)
    with ExitStack() as stack:
        if journal is not None:
            folder = journal.folder
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=writer.path.parent)))
        if windows is not None and quantize.fisher and felt is None:
            felt = Sensitivity(folder)
            if journal is None or not journal.sensitivity:
                measure_sensitivity(source, windows, felt, memory_gb, progress=progress)
        stack.enter_context(torch.inference_mode())
        advance = stack.enter_context(progress.track("Quantising", len(layout.linears), "linears"))
        job = _Job(source, quantize, layout, dtype, writer, felt)
        job.start(windows, memory_gb, folder)
        if journal is not None:
            job.layers, job.linears = list(journal.layers), list(journal.linears)
        for layer in range(source.config.num_layers):
            if journal is not None and layer < len(journal.layers):
                job.go_past(layer)
            else:
                job.layer(layer)
                writer.commit()
                if journal is not None:
                    journal.commit(job.layers, job.linears, felt is not None)
            advance(4)
        job.finish()
        advance(1)
    place = {name: i for i, name in enumerate(layout.linears)}  # stages are quantised out of the checkpoint's order
    return {
        "schema": 2,
        "method": quantize.method,
        "bits_per_weight": round(layout.bits_per_weight, 4),
        "seconds": round(time.perf_counter() - began, 2),
        "linears": sorted(job.linears, key=lambda record: place[record["name"]]),
        "layers": job.layers,
    }


class _Job:
    """One checkpoint on its way through the quantiser."""

    def __init__(
        self,
        source: Tensors,
        quantize: Quantize,
        layout: Layout,
        dtype: str,
        writer: WeightsWriter,
        felt: Sensitivity | None,
    ) -> None:
        self.source, self.config, self.quantize, self.layout = source, source.config, quantize, layout
        self.felt = felt
        self.out = _Writer(writer, layout, dtype, packed_qkv_rows(source.config))
        self.observed: Observed | None = None
        self.linears: list[dict[str, Any]] = []
        self.layers: list[dict[str, Any]] = []

    def start(self, windows: np.ndarray | None, memory_gb: float, folder: Path) -> None:
        """Embedding and rotary tables; the calibration text becomes activations."""
        table = self.source.tensor(f"{EMBEDDING}.weight")
        stored = self.out.embedding(table, self.quantize.embedding)
        for name, values in zip(("rotary.cos", "rotary.sin"), rotary_tables(self.config), strict=True):
            self.out.file.put(name, values.astype(self.out.dtype))
        if windows is not None:
            correct = self.quantize.error_correction
            spill = None if fits((*windows.shape, self.config.hidden_size), 2 if correct else 1, memory_gb) else folder
            # The artifact's own embedding is what every layer will read.
            joint = (self.quantize.damp, self.quantize.max_damp) if self.quantize.joint_hessian else None
            self.observed = Observed(self.config, windows, stored, table if correct else None, spill, joint)

    def layer(self, layer: int) -> None:
        began, prefix = time.perf_counter(), layer_prefix(layer)
        weights = {spec.name: self.source.tensor(spec.name).float() for spec in layer_tensors(self.config, layer)}
        block = Block(self.config, layer, weights.__getitem__)

        def solve(linear: str, problem: Problem | None) -> Tensor:
            name = f"{prefix}.{linear}"
            plan, W, bias = self.layout.linears[name], weights[f"{name}.weight"], weights[f"{name}.bias"]
            result = self._quantized(plan, W, problem)
            self.out.linear(plan, W, result)
            # From here on what the artifact stands for takes the original's place.
            rounded = self.out.stored(plan, W) if result is None else result.dequantize()
            weights[f"{name}.weight"] = rounded
            if problem is not None and plan.method == "gptq" and f"{name}.bias" in self.layout.slots:
                bias = problem.bias(bias, rounded)
            weights[f"{name}.bias"] = self.out.vector(f"{name}.bias", bias)
            return rounded

        def norms() -> None:
            for norm in NORMS:
                for part in ("weight", "bias"):
                    name = f"{prefix}.{norm}.{part}"
                    weights[name] = self.out.vector(name, weights[name])

        if self.observed is None:
            for linear in LINEARS:
                solve(linear, None)
            norms()
        else:
            first = self.observed.first_stage(block)
            norms()
            for linear, problem in first.items():
                solve(linear, problem)
            self.observed.second_stage(block, solve)
        error = self.observed.propagate(block) if self.observed is not None else None
        seconds = round(time.perf_counter() - began, 3)
        self.layers.append({"layer": layer, "residual_error": error, "seconds": seconds})

    def go_past(self, layer: int) -> None:
        """A layer that is in the file already."""
        prefix, names = layer_prefix(layer), [spec.name for spec in layer_tensors(self.config, layer)]
        self.out.file.kept(f"{prefix}.")
        if self.observed is not None:
            source = {name: self.source.tensor(name).float() for name in names}
            self.observed.follow(Block(self.config, layer, source.__getitem__))
            stored = WeightsReader(self.out.file.path, self.layout, self.config)
            written = {name: stored.tensor(name) for name in names}
            self.observed.propagate(Block(self.config, layer, written.__getitem__), measure=False)

    def finish(self) -> None:
        """The final norm and the head."""
        ends = {f"{FINAL_NORM}.{x}": self.source.tensor(f"{FINAL_NORM}.{x}").float() for x in ("weight", "bias")}
        for name, vector in ends.items():
            ends[name] = self.out.vector(name, vector)
        plan, W = self.layout.linears[HEAD], self.source.tensor(f"{HEAD}.weight").float()
        problem = None
        if self.observed is not None and plan.method != "none":
            problem = self.observed.head(W, ends.__getitem__)
        self.out.linear(plan, W, self._quantized(plan, W, problem))

    def _quantized(self, plan: LinearPlan, W: Tensor, problem: Problem | None) -> Quantized | None:
        """Round one linear as its plan says, and record how well that went."""
        if plan.method == "none":
            return None
        began, scheme, quantize = time.perf_counter(), plan.scheme, self.quantize
        grid = (scheme.bits, scheme.group_size, scheme.symmetric)
        scale_dtype = getattr(torch, self.out.dtype)
        target, damp, G = W, None, self._felt(plan)
        try:
            result = nearest = rtn(W, *grid, scale_dtype)
            if plan.method == "gptq":
                assert problem is not None  # a recipe with GPTQ has calibration text: the schema sees to it
                L = factor(problem.H, quantize.act_order, quantize.damp, quantize.max_damp)
                if problem.drift is not None:
                    target = torch.addmm(W, W, correction(problem.drift, L, problem.tokens).to(W.dtype))
                elif problem.missing is not None:
                    target = W + correction(problem.missing, L, problem.tokens).to(W.dtype)
                damp = L.damp
                # Of h_to_4h's many outputs, behind a GELU, only the diagonal is kept: their coupling gained nothing.
                if G is None or G.ndim == 1:
                    result = gptq(target, L, *grid, quantize.clip, scale_dtype)
                else:
                    result = gptq_coupled(target, L, G, *grid, quantize.clip, scale_dtype)
                del L
        except PythiaExportError as e:
            raise type(e)(f"{plan.name}: {e}", hint=e.hint) from e
        record = {
            "name": plan.name,
            "layer": plan.layer,
            "shape": list(plan.shape),
            "method": plan.method,
            **scheme.model_dump(),
            **_losses(plan, W, target, nearest, result, problem, G, self.config),
            "damp": damp,
            "tokens": problem.tokens if problem is not None else 0,
        }
        self.linears.append(record | {"seconds": round(time.perf_counter() - began, 3)})
        return result

    def _felt(self, plan: LinearPlan) -> Tensor | None:
        """G at this linear's output."""
        if self.felt is None or plan.layer is None:
            return None
        return self.felt.of(plan.layer, plan.name.removeprefix(f"{layer_prefix(plan.layer)}."))


def _losses(
    plan: LinearPlan, W: Tensor, target: Tensor, nearest: Quantized, result: Quantized, problem: Problem | None,
    G: Tensor | None, config: NeoXConfig,
) -> dict[str, Any]:  # fmt: skip
    """Output errors relative to the output's energy: of rounding W to nearest, and of rounding what GPTQ was to round.

    Where G is known, errors and energy are weighed by it, as the loss feels them, and `expected_cost` is what the error
    is expected to cost in nats a token. `heads` [num_heads][q, k, v] splits the fused QKV's plain error, each part over
    its own energy.
    """
    if problem is None:
        return {"rtn_loss": None, "loss": None, "recovered": None, "expected_cost": None}
    H, rows = problem.H.to(W.dtype), max(1, WEIGHTS_AT_ONCE // W.shape[1])
    found: dict[str, Any] = {}
    if G is None or plan.name.endswith(QKV):
        sums = []
        for first in range(0, len(W), rows):
            part = slice(first, first + rows)
            error = row_errors(target[part] - result.rows(part).dequantize(), H)
            of_nearest = row_errors(W[part] - nearest.rows(part).dequantize(), H) if result is not nearest else error
            sums.append(torch.stack((row_errors(W[part], H), error, of_nearest)))
        by_row = torch.cat(sums, dim=1)
        whole, lost, lost_by_rtn = by_row.sum(1).tolist()
        if plan.name.endswith(QKV):
            parts = by_row[:2].view(2, config.num_heads, 3, config.head_dim).sum(3)
            found["heads"] = torch.div(parts[1], parts[0]).nan_to_num().tolist()
    if G is not None:
        whole, lost, lost_by_rtn = (
            expected_cost(E, H, G) for E in (W, target - result.dequantize(), W - nearest.dequantize())
        )
        found["expected_cost"] = lost
    whole = max(whole, 1e-300)
    return {
        "rtn_loss": lost_by_rtn / whole,
        "loss": lost / whole,
        "recovered": 1 - lost / lost_by_rtn if lost_by_rtn else None,
        "expected_cost": None,
    } | found


@dataclass
class _Writer:
    """Puts tensors into the file in the form that the graph reads."""

    file: WeightsWriter
    layout: Layout
    dtype: str
    config_rows: np.ndarray

    def vector(self, name: str, value: Tensor) -> Tensor:
        """Write a bias or a norm; returns it in float32 as the artifact will read it.

        Those that are folded into other weights are not stored and keep the value that this gave them.
        """
        if name not in self.layout.slots:
            return value
        stored = value.to(getattr(torch, self.dtype))
        packed = stored[torch.from_numpy(self.config_rows)] if name.removesuffix(".bias").endswith(QKV) else stored
        self.file.put(name, packed.numpy())
        return stored.float()

    def embedding(self, table: Tensor, kind: str) -> Tensor:
        """Write the table; returns it in float32 as the artifact will read it."""
        if kind in EMBEDDING_BITS:
            rounded = round_rows(table, EMBEDDING_BITS[kind], EMBEDDING_BLOCK, self.dtype)
            for part, array in pack_rows(rounded, self.dtype).items():
                self.file.put(f"{EMBEDDING}.{part}", array)
            return rounded.dequantize()
        stored = table.to(getattr(torch, kind))
        self.file.put(f"{EMBEDDING}.weight", stored.numpy())
        return stored.float()

    def stored(self, plan: LinearPlan, W: Tensor) -> Tensor:
        """A linear that is not quantised, in float32 as the artifact will read it."""
        return W.to(getattr(torch, self.layout.slots[f"{plan.name}.weight"].dtype)).float()

    def linear(self, plan: LinearPlan, W: Tensor, result: Quantized | None) -> None:
        """Write one linear [out, in]."""
        rows = torch.from_numpy(self.config_rows) if plan.name.endswith(QKV) else None
        if result is None:
            stored = W.to(getattr(torch, self.layout.slots[f"{plan.name}.weight"].dtype))
            packed = stored if rows is None else stored[rows]
            self.file.put(f"{plan.name}.weight", packed.T.contiguous().numpy())
            return
        ordered = result if rows is None else result.rows(rows)
        for part, array in pack(ordered, plan.scheme.stored_bits, plan.block_size, self.dtype).items():
            self.file.put(f"{plan.name}.{part}", array)
