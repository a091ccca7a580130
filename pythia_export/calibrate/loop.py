"""The layer loop: the one place where weights, activations and the writer meet.

A layer is observed, quantised, written and passed through before the next one is read, so that memory holds one layer,
its Hessians and the calibration activations (or, beyond a budget, a chunk of them).
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.device import CPU, described, memory_of
from ..base.errors import NumericsError, PythiaExportError
from ..base.progress import SILENT, Progress
from ..model.block import Block
from ..model.neox import EMBEDDING, FINAL_NORM, HEAD, LINEARS, NORMS, QKV, NeoXConfig, layer_prefix, layer_tensors
from ..quantize import native
from ..quantize.coupled import gptq_coupled
from ..quantize.gptq import WEIGHTS_AT_ONCE, Factor, correction, factor, gptq, row_errors
from ..quantize.grid import Quantized
from ..quantize.rounding import HUGE
from ..quantize.rtn import rtn
from ..recipe import Quantize
from ..records.quantization import QUANTIZATION_SCHEMA, LayerRecord, LinearRecord, Quantization
from ..weights.layout import Layout, LinearPlan
from ..weights.reader import WeightsReader
from ..weights.writer import WeightsWriter
from .activations import place
from .fold_norms import Folded
from .interruption import finishing_layers
from .journal import Journal
from .largest import Largest
from .observe import Observed
from .placed import Placed
from .problem import Problem
from .sensitivity import Sensitivity, Tensors, expected_cost, measure_sensitivity
from .sequential import quantise_in_sequence


@dataclass(frozen=True)
class Output:
    """One quantisation of a checkpoint, and the file that it goes into."""

    quantize: Quantize
    layout: Layout
    writer: WeightsWriter


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
    device: torch.device = CPU,
) -> Quantization:
    """Stream every tensor of `source` into `writer`; windows [N, S] int64 are what GPTQ observes.

    Computes on `device`. `felt` is the sensitivity of these weights on these windows, where it was measured before.
    Activations beyond `memory_gb`, and beyond a GPU's own memory, lie in files beside the weights. With a journal,
    finished layers are committed to it, and those that it has already are read back instead of quantised. Returns how
    each linear was rounded.

    Raises:
        NumericsError: a NaN or an infinity in a weight or an activation, or a Hessian that no damping mends; the
            message names the linear or the layer.
        ResourceError: the disk, or the device's memory, did not suffice.
    """
    one = [Output(quantize, layout, writer)]
    return _stream(source, one, dtype, windows, progress, memory_gb, journal, felt, device)[0]


def quantize_together(
    source: Tensors,
    outputs: Sequence[Output],
    dtype: str,
    windows: np.ndarray,
    progress: Progress = SILENT,
    *,
    memory_gb: float = 4.0,
    felt: Sensitivity | None = None,
    device: torch.device = CPU,
) -> list[Quantization]:
    """Several quantisations of one checkpoint in one pass: all by GPTQ with Hessians of the original model, which they
    share, and with the same `products`. Each comes out as `quantize_stream` would make it alone.

    Raises:
        NumericsError: as there; of one of them, and then of all.
    """
    if any(o.quantize.hessian != "original" or o.quantize.products != outputs[0].quantize.products for o in outputs):
        raise ValueError("only quantisations by the original model's Hessians, of equal products, go together")
    return _stream(source, outputs, dtype, windows, progress, memory_gb, None, felt, device)


def _stream(
    source: Tensors,
    outputs: Sequence[Output],
    dtype: str,
    windows: np.ndarray | None,
    progress: Progress,
    memory_gb: float,
    journal: Journal | None,
    felt: Sensitivity | None,
    device: torch.device,
) -> list[Quantization]:
    began, first = time.perf_counter(), outputs[0]
    source = largest = Largest(source)
    if first.quantize.products == 2:
        source = Folded(source)
    source = Placed(source, device)
    if windows is not None and any(o.quantize.beam > 1 for o in outputs) and not native.available(device):
        how = "for this GPU are not built (`make cuda`" if device.type == "cuda" else "are not built (`make kernels`"
        progress.note(f"The native kernels {how}): rounding takes many times as long.")
    with ExitStack() as stack:
        stack.enter_context(memory_of(device))
        stack.enter_context(largest.named())
        if journal is not None:
            folder = journal.folder
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=first.writer.path.parent)))
        if windows is not None and felt is None and any(o.quantize.fisher for o in outputs):
            felt = Sensitivity(folder, None if journal is None else journal.sensitivity)
            if not felt.digests:
                measure_sensitivity(source, windows, felt, memory_gb, progress=progress)
        stack.enter_context(torch.inference_mode())
        linears = sum(len(o.layout.linears) for o in outputs)
        advance = stack.enter_context(progress.track("Quantising", linears, "linears"))
        jobs = [_Job(source, o, dtype, felt if o.quantize.fisher else None) for o in outputs]
        layers = _Layers(source, jobs, windows, memory_gb, folder)
        if journal is not None:
            journal.check(first.writer, source.config.num_layers)
            jobs[0].layers = [entry.layer for entry in journal.finished]
            jobs[0].linears = [record for entry in journal.finished for record in entry.linears]
        # Without a journal nothing is kept that could be resumed.
        finishing = finishing_layers(progress) if journal is not None else nullcontext()
        interrupted = stack.enter_context(finishing)
        for layer in range(source.config.num_layers):
            if journal is not None and layer < len(journal.finished):
                layers.go_past(layer)
            else:
                before = len(jobs[0].linears)
                layers.do(layer)
                for o in outputs:
                    o.writer.commit()
                if journal is not None:
                    weights = first.writer.digest(f"{layer_prefix(layer)}.")
                    sensitivity = None if felt is None else felt.digests
                    journal.commit(jobs[0].layers[-1], jobs[0].linears[before:], weights, sensitivity)
            advance(4 * len(outputs))
            if interrupted is not None:
                interrupted(layer + 1, source.config.num_layers)
        layers.finish()
        advance(len(outputs))
    seconds = round(time.perf_counter() - began, 2)
    return [job.record(seconds) for job in jobs]


class _Layers:
    """The layers one after the other, for one quantisation or for several that observe the same activations."""

    def __init__(
        self, source: Placed, jobs: Sequence[_Job], windows: np.ndarray | None, memory_gb: float, folder: Path
    ) -> None:
        """Embeddings are written; the calibration text becomes activations."""
        self.source, self.config = source, source.config
        self.jobs = sorted(jobs, key=lambda job: job.damping)  # those that share a factor one after the other
        quantize, table = jobs[0].quantize, source.tensor(f"{EMBEDDING}.weight")
        stored = [job.start(table) for job in jobs]
        self.original = quantize.hessian == "original"
        self.observed: Observed | None = None
        if windows is not None:
            correct = quantize.error_correction
            shape = (*windows.shape, self.config.hidden_size)
            where = place(shape, 2 if correct else 1, memory_gb, folder, source.device)
            # The artifact's own embedding is what every layer will read.
            x = table if self.original else stored[0]
            self.observed = Observed(self.config, windows, x, table if correct else None, where, quantize)

    def do(self, layer: int) -> None:
        began = time.perf_counter()
        weights = self._weights(layer)
        views = [dict(weights) for _ in self.jobs]  # from rounding on each has its own
        # Hessians are those of what the artifact will compute, or of the original model.
        block = Block(self.config, layer, (weights if self.original else views[0]).__getitem__)
        factors: Factors | None = {} if len(self.jobs) > 1 else None

        def solve(linear: str, problem: Problem | None) -> Tensor:
            if factors is not None:
                factors.clear()
            for job, view in zip(self.jobs, views, strict=True):
                rounded = job.solve(layer, linear, problem, view, factors)
                if self.original:  # nothing reads it again; kept, a layer of each quantisation would lie in memory
                    name = f"{layer_prefix(layer)}.{linear}.weight"
                    view[name] = weights[name]
            return rounded

        def norms(*names: str) -> None:
            for job, view in zip(self.jobs, views, strict=True):
                job.norms(layer, names, view)

        error = None
        if self.observed is None:
            for linear in LINEARS:
                solve(linear, None)
            norms(*NORMS)
        elif not self.config.parallel_residual:
            quantise_in_sequence(self.observed, block, solve, norms)
            error = self.observed.propagate(block)
        else:
            first = self.observed.first_stage(block)
            norms(*NORMS)
            for linear, problem in first.items():
                solve(linear, problem)
            self.observed.second_stage(block, solve)
            error = self.observed.propagate(block)
        seconds = round((time.perf_counter() - began) / len(self.jobs), 3)
        for job in self.jobs:
            job.layers.append(LayerRecord(layer=layer, residual_error=error, seconds=seconds))

    def go_past(self, layer: int) -> None:
        """A layer that is in the file already."""
        out = self.jobs[0].out
        out.kept(f"{layer_prefix(layer)}.")
        if self.observed is None:
            return
        source = Block(self.config, layer, self._weights(layer).__getitem__)
        self.observed.follow(source)
        if self.original:
            self.observed.propagate(source, measure=False)
            return
        stored, device = WeightsReader(out.path, out.layout), self.source.device
        written = {spec.name: stored.tensor(spec.name).to(device) for spec in layer_tensors(self.config, layer)}
        self.observed.propagate(Block(self.config, layer, written.__getitem__), measure=False)

    def finish(self) -> None:
        """The final norm and the head."""
        ends = {f"{FINAL_NORM}.{x}": self.source.tensor(f"{FINAL_NORM}.{x}").float() for x in ("weight", "bias")}
        stored = [{name: job.out.vector(name, vector) for name, vector in ends.items()} for job in self.jobs]
        W, problem = self.source.tensor(f"{HEAD}.weight").float(), None
        if self.observed is not None and any(job.layout.linears[HEAD].method != "none" for job in self.jobs):
            problem = self.observed.head(W, (ends if self.original else stored[0]).__getitem__)
        factors: Factors | None = {} if len(self.jobs) > 1 else None
        for job in self.jobs:
            plan = job.layout.linears[HEAD]
            needed = problem if plan.method != "none" else None
            job.out.linear(plan, W, job.quantized(plan, W, needed, factors))

    def _weights(self, layer: int) -> dict[str, Tensor]:
        return {spec.name: self.source.tensor(spec.name).float() for spec in layer_tensors(self.config, layer)}


Damping = tuple[bool, float, float]  # act_order, damp and max_damp
Factors = dict[Damping, Factor]  # of one Hessian, the latest


class _Job:
    """One quantisation of a checkpoint on its way."""

    def __init__(self, source: Placed, output: Output, dtype: str, felt: Sensitivity | None) -> None:
        self.config, self.quantize, self.layout, self.felt = source.config, output.quantize, output.layout, felt
        self.device = source.device
        self.out = output.writer
        self.linears: list[LinearRecord] = []
        self.layers: list[LayerRecord] = []

    def start(self, table: Tensor) -> Tensor:
        """Embedding and rotary tables; the embedding comes back as the artifact will read it."""
        self.out.rotary()
        return self.out.embedding(table)

    def norms(self, layer: int, names: Sequence[str], weights: dict[str, Tensor]) -> None:
        for norm in names:
            for part in ("weight", "bias"):
                name = f"{layer_prefix(layer)}.{norm}.{part}"
                weights[name] = self.out.vector(name, weights[name])

    def solve(
        self, layer: int, linear: str, problem: Problem | None, weights: dict[str, Tensor], factors: Factors | None
    ) -> Tensor:
        """Round one linear; from here on what the artifact stands for takes the original's place in `weights`."""
        name = f"{layer_prefix(layer)}.{linear}"
        plan, W = self.layout.linears[name], weights[f"{name}.weight"]
        result = self.quantized(plan, W, problem, factors)
        self.out.linear(plan, W, result)
        rounded = self.out.stored(plan, W) if result is None else result.dequantize()
        weights[f"{name}.weight"] = rounded
        if plan.bias:
            bias = weights[f"{name}.bias"]
            if problem is not None and plan.method == "gptq" and f"{name}.bias" in self.layout.slots:
                bias = problem.bias(bias, rounded)
            weights[f"{name}.bias"] = self.out.vector(f"{name}.bias", bias)
        return rounded

    def record(self, seconds: float) -> Quantization:
        place = {name: i for i, name in enumerate(self.layout.linears)}  # stages are out of the checkpoint's order
        return Quantization(
            version=QUANTIZATION_SCHEMA,
            method=self.quantize.method,
            bits_per_weight=round(self.layout.bits_per_weight, 4),
            seconds=seconds,
            device=described(self.device),
            linears=sorted(self.linears, key=lambda record: place[record.name]),
            layers=self.layers,
        )

    def quantized(
        self, plan: LinearPlan, W: Tensor, problem: Problem | None, factors: Factors | None = None
    ) -> Quantized | None:
        """Round one linear as its plan says, and record how well that went."""
        if plan.method == "none":
            return None
        began, scheme, quantize = time.perf_counter(), plan.scheme, self.quantize
        scale_dtype = getattr(torch, self.layout.dtype)
        target, damp, G = W, None, self._felt(plan)
        try:
            result = nearest = rtn(W, scheme, scale_dtype)
            if plan.method == "gptq":
                assert problem is not None  # a recipe with GPTQ has calibration text: the schema sees to it
                L = self._factor(problem, factors)
                if problem.drift is not None:
                    target = torch.addmm(W, W, correction(problem.drift, L, problem.tokens).to(W.dtype))
                elif problem.missing is not None:
                    target = W + correction(problem.missing, L, problem.tokens).to(W.dtype)
                damp = L.damp
                # Of h_to_4h's many outputs, behind a GELU, only the diagonal is kept: their coupling gained nothing.
                if G is None or G.ndim == 1:
                    result = gptq(target, L, scheme, quantize, scale_dtype)
                else:
                    result = gptq_coupled(target, L, G, scheme, quantize, scale_dtype)
                del L
            losses = _losses(plan, W, target, nearest, result, problem, G, self.config)
        except PythiaExportError as e:
            raise type(e)(f"{plan.name}: {e}", hint=e.hint) from e
        record = LinearRecord(
            name=plan.name,
            layer=plan.layer,
            shape=list(plan.shape),
            method=plan.method,
            **scheme.model_dump(),
            **losses,
            damp=damp,
            tokens=problem.tokens if problem is not None else 0,
            seconds=round(time.perf_counter() - began, 3),
        )
        self.linears.append(record)
        return result

    def _factor(self, problem: Problem, factors: Factors | None) -> Factor:
        found = None if factors is None else factors.get(self.damping)
        if found is None:
            if factors is not None:
                factors.clear()
            found = factor(problem.H, self.quantize)
            if factors is not None:
                factors[self.damping] = found
        return found

    @property
    def damping(self) -> Damping:
        return self.quantize.act_order, self.quantize.damp, self.quantize.max_damp

    def _felt(self, plan: LinearPlan) -> Tensor | None:
        """G at this linear's output."""
        if self.felt is None or plan.layer is None:
            return None
        return self.felt.of(plan.layer, plan.name.removeprefix(f"{layer_prefix(plan.layer)}.")).to(self.device)


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
    if not all(map(math.isfinite, (whole, lost, lost_by_rtn))):
        raise NumericsError(
            f"the error of rounding weights as large as {W.abs().max():.3g}, on inputs as large as "
            f"{float(problem.H.diagonal().max()) ** 0.5:.3g}, is more than {str(W.dtype)[6:]} holds",
            hint=HUGE,
        )
    whole = max(whole, 1e-300)
    return {
        "rtn_loss": lost_by_rtn / whole,
        "loss": lost / whole,
        "recovered": 1 - lost / lost_by_rtn if lost_by_rtn else None,
        "expected_cost": None,
    } | found
