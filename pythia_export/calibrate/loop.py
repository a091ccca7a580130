"""The layer loop: the one place where weights, activations and the writer meet.

A layer is observed, quantised, written and passed through before the next one is read, so that memory holds one layer,
its Hessians and the calibration activations (or, beyond a budget, a chunk of them).
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.compute import DEFAULT, Compute
from ..base.device import described, memory_of
from ..base.errors import NumericsError, PythiaExportError
from ..model.block import DENSE, Block
from ..model.neox import EMBEDDING, FINAL_NORM, HEAD, LINEARS, NORMS, QKV, NeoXConfig, layer_prefix, layer_tensors
from ..recipe import Quantize
from ..records.quantization import QUANTIZATION_SCHEMA, LayerRecord, LinearRecord, Quantization, Training
from ..rounding import native
from ..rounding.attention import Basis, gptq_attention
from ..rounding.columns import HUGE
from ..rounding.coupled import gptq_coupled
from ..rounding.gptq import WEIGHTS_AT_ONCE, Factor, correction, factor, gptq, row_errors
from ..rounding.grid import Quantized
from ..rounding.rtn import rtn
from ..weights.layout import LinearPlan
from ..weights.reader import WeightsReader
from ..weights.writer import WeightsWriter
from .activations import place, place_of_middles
from .balance import canonical, centre
from .end_to_end import train, written
from .interruption import finishing_layers
from .journal import Journal, Trained
from .largest import Largest
from .observe import Observed
from .placed import Placed, Tensors
from .problem import Mean, Problem, Step
from .sensitivity import Attention, Sensitivity, expected_cost, measure_sensitivity
from .steps import steps


def quantize_stream(
    source: Tensors,
    writer: WeightsWriter,
    windows: np.ndarray | None,
    compute: Compute = DEFAULT,
    *,
    journal: Journal | None = None,
    sensitivity: Sensitivity | None = None,
) -> Quantization:
    """Stream every tensor of `source` into `writer`, whose layout says how it is quantised.

    windows [N, S] int64 are what GPTQ observes. `sensitivity` is that of these weights on these windows, where it was
    measured before. Activations that memory has no room for are kept in files beside the weights. With a journal,
    finished layers are committed to it, and those that it has already are read back instead of quantised. Returns how
    each linear was rounded.

    Raises:
        NumericsError: a NaN or an infinity in a weight or an activation, or a Hessian that no damping mends; the
            message names the linear or the layer.
        ResourceError: the disk, or the device's memory, did not suffice.
    """
    return _stream(source, [writer], windows, compute, journal, sensitivity)[0]


def quantize_together(
    source: Tensors,
    writers: Sequence[WeightsWriter],
    windows: np.ndarray,
    compute: Compute = DEFAULT,
    *,
    sensitivity: Sensitivity | None = None,
) -> list[Quantization]:
    """Make several quantisations of one checkpoint in one pass: all by GPTQ with Hessians of the original model, which
    they share, and with the same `products` and `balance`. Each comes out as `quantize_stream` would make it alone.

    Raises:
        NumericsError: as there; of one of them, and then of all.
    """
    asked = [writer.layout.quantize for writer in writers]
    if len({q.form for q in asked}) > 1 or any(q.hessian != "original" for q in asked):
        raise ValueError("only quantisations by the original model's Hessians, of one form of it, go together")
    return _stream(source, writers, windows, compute, None, sensitivity)


def _stream(
    source: Tensors,
    writers: Sequence[WeightsWriter],
    windows: np.ndarray | None,
    compute: Compute,
    journal: Journal | None,
    sensitivity: Sensitivity | None,
) -> list[Quantization]:
    began, first, asked = time.perf_counter(), writers[0], [writer.layout.quantize for writer in writers]
    device, progress = compute.device, compute.progress
    largest = Largest(source)
    original, source = largest, Placed(canonical(largest, asked[0]), device)
    if windows is not None and any(q.beam > 1 for q in asked) and not native.available(device):
        how = "for this GPU are not built (`make cuda`" if device.type == "cuda" else "are not built (`make kernels`"
        progress.note(f"The native kernels {how}): rounding takes many times as long.")
    with ExitStack() as stack:
        stack.enter_context(memory_of(device))
        stack.enter_context(largest.named())
        if journal is not None:
            folder = journal.folder
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=compute.scratch or first.path.parent)))
        compute = replace(compute, scratch=folder)
        if journal is not None:
            journal.check(first, source.config.num_layers)
        seen, own = windows, None
        if windows is not None and reads_own_text(asked[0]) and (journal is None or journal.trained is None):
            own = _own_text(original, first, windows, compute, journal)
            seen = np.concatenate((windows, own[: len(windows)]))
        if seen is not None and sensitivity is None and any(q.fisher for q in asked):
            sensitivity = Sensitivity(folder, None if journal is None else journal.sensitivity)
            if not sensitivity.digests:
                attention = any(q.measures_attention for q in asked)
                measure_sensitivity(source, seen, sensitivity, compute, attention=attention)
        stack.enter_context(torch.inference_mode())
        linears = sum(len(writer.layout.linears) for writer in writers)
        advance = stack.enter_context(progress.track("Quantising", linears, "linears"))
        made = [_Quantisation(writer, device, sensitivity) for writer in writers]
        if journal is not None:
            made[0].layers = [entry.layer for entry in journal.finished]
            made[0].linears = [record for entry in journal.finished for record in entry.linears]
            if journal.trained is not None:
                return [made[0].as_trained(journal.trained)]
        layers = _Layers(source, made, seen, compute)
        # Without a journal nothing is stored that could be resumed.
        finishing = finishing_layers(progress) if journal is not None else nullcontext()
        interrupted = stack.enter_context(finishing)
        for layer in range(source.config.num_layers):
            if journal is not None and layer < len(journal.finished):
                layers.read_back(layer)
            else:
                before = len(made[0].linears)
                layers.quantise(layer)
                for writer in writers:
                    writer.commit()
                if journal is not None:
                    weights = first.digest(f"{layer_prefix(layer)}.")
                    digests = None if sensitivity is None else sensitivity.digests
                    journal.commit(made[0].layers[-1], made[0].linears[before:], weights, digests)
            advance(4 * len(writers))
            if interrupted is not None:
                interrupted(layer + 1, source.config.num_layers)
        layers.finish()
        advance(len(writers))
        for one in made:
            if one.quantize.effort == "best" and windows is not None:
                text = own if own is not None else written(original, one.layout, windows, compute)
                one.train(original, windows, text, compute, journal)
    seconds = round(time.perf_counter() - began, 2)
    return [one.record(seconds) for one in made]


def reads_own_text(quantize: Quantize) -> bool:
    """Say whether GPTQ also observes text that the original writes, up to as much as there is of calibration text.
    Quantisations that share what they observe, none of which corrects errors, do without."""
    return quantize.effort == "best" and quantize.error_correction


def _own_text(
    original: Tensors, first: WeightsWriter, windows: np.ndarray, compute: Compute, journal: Journal | None
) -> np.ndarray:
    """Return the text that the original writes, or wrote when a run began that goes on."""
    kept = None if journal is None else journal.own_text()
    if kept is not None:
        return kept
    own = written(original, first.layout, windows, compute)
    if journal is not None:
        journal.keep_own_text(own)
    return own


class _Layers:
    """The layers one after the other, for one quantisation or for several that observe the same activations."""

    def __init__(
        self, source: Placed, made: Sequence[_Quantisation], windows: np.ndarray | None, compute: Compute
    ) -> None:
        """Embeddings are written; the calibration text becomes activations."""
        self.source, self.config = source, source.config
        self.made = sorted(made, key=lambda one: one.damping)  # those that share a factor one after the other
        quantize, table = made[0].quantize, source.tensor(f"{EMBEDDING}.weight")
        stored = [one.start(table) for one in made]
        self.original = quantize.hessian == "original"
        self.centred = quantize.form[1] and quantize.products == 4  # with two products no shift is stored
        self.observed: Observed | None = None
        if windows is not None:
            correct = quantize.error_correction
            shape = (*windows.shape, self.config.hidden_size)
            where = place(shape, 2 if correct else 1, compute)
            # The artifact's own embedding is what every layer will read.
            x = table if self.original else stored[0]
            middles = place_of_middles(self.config, windows.size, compute)
            self.observed = Observed(self.config, windows, x, table if correct else None, where, middles, quantize)

    def quantise(self, layer: int) -> None:
        """Observe a layer, round it, write it, and move the text past it."""
        began = time.perf_counter()
        weights = self._weights(layer)
        views = [dict(weights) for _ in self.made]  # from rounding on each has its own
        # Hessians are those of what the artifact will compute, or of the original model.
        block = Block(self.config, layer, (weights if self.original else views[0]).__getitem__)
        without: Iterator[Step] = ((name, None) for name in (*LINEARS, *NORMS))
        for name, found in without if self.observed is None else steps(self.observed, block):
            factors: Factors | None = {} if len(self.made) > 1 else None
            if isinstance(found, Mean) and self.centred:
                for changed in (weights, *views):
                    centre(changed, self.config, layer, name, found.value)
            problem = found if isinstance(found, Problem) else None
            for one, view in zip(self.made, views, strict=True):
                if name in NORMS:
                    one.norm(layer, name, view)
                    continue
                one.solve(layer, name, problem, view, factors)
                if self.original:  # nothing reads it again, and of each quantisation a layer would stay in memory
                    matrix = f"{layer_prefix(layer)}.{name}.weight"
                    view[matrix] = weights[matrix]
        error = None if self.observed is None else self.observed.propagate(block)
        seconds = round((time.perf_counter() - began) / len(self.made), 3)
        for one in self.made:
            one.layers.append(LayerRecord(layer=layer, residual_error=error, seconds=seconds))

    def read_back(self, layer: int) -> None:
        """Move the text past a layer that is in the file already."""
        out = self.made[0].out
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
        """Write the final norm and the head."""
        ends = {f"{FINAL_NORM}.{x}": self.source.tensor(f"{FINAL_NORM}.{x}").float() for x in ("weight", "bias")}
        stored = [{name: one.out.vector(name, vector) for name, vector in ends.items()} for one in self.made]
        W, problem = self.source.tensor(f"{HEAD}.weight").float(), None
        if self.observed is not None and any(one.layout.linears[HEAD].method != "none" for one in self.made):
            problem = self.observed.head(W, (ends if self.original else stored[0]).__getitem__)
        factors: Factors | None = {} if len(self.made) > 1 else None
        for one in self.made:
            plan = one.layout.linears[HEAD]
            needed = problem if plan.method != "none" else None
            one.out.linear(plan, W, one.quantized(plan, W, needed, factors)[0])

    def _weights(self, layer: int) -> dict[str, Tensor]:
        return {spec.name: self.source.tensor(spec.name).float() for spec in layer_tensors(self.config, layer)}


Damping = tuple[bool, float, float]  # act_order, damp and max_damp
Factors = dict[Damping, Factor]  # of one Hessian, the latest


class _Quantisation:
    """One quantisation of a checkpoint on its way into its file."""

    def __init__(self, writer: WeightsWriter, device: torch.device, sensitivity: Sensitivity | None) -> None:
        self.out, self.layout, self.quantize = writer, writer.layout, writer.layout.quantize
        self.device, self.sensitivity = device, sensitivity if self.quantize.fisher else None
        self.linears: list[LinearRecord] = []
        self.layers: list[LayerRecord] = []
        self.training: Training | None = None

    def start(self, table: Tensor) -> Tensor:
        """Write embedding and rotary tables; return the embedding as the artifact will read it."""
        self.out.rotary()
        return self.out.embedding(table)

    def norm(self, layer: int, norm: str, weights: dict[str, Tensor]) -> None:
        """Write one LayerNorm; from here on `weights` has it as the artifact will read it."""
        for part in ("weight", "bias"):
            name = f"{layer_prefix(layer)}.{norm}.{part}"
            weights[name] = self.out.vector(name, weights[name])

    def solve(
        self, layer: int, linear: str, problem: Problem | None, weights: dict[str, Tensor], factors: Factors | None
    ) -> None:
        """Round one linear; from here on `weights` has what the artifact will compute with, in the original's place."""
        name = f"{layer_prefix(layer)}.{linear}"
        plan, W = self.layout.linears[name], weights[f"{name}.weight"]
        result, basis = self.quantized(plan, W, problem, factors)
        self.out.linear(plan, W, result)
        rounded = self.out.stored(plan, W) if result is None else result.dequantize()
        weights[f"{name}.weight"] = rounded
        if plan.bias:
            bias = weights[f"{name}.bias"]
            if basis is not None and problem is not None:  # what is wanted of q, k and v, and what dense reads, with it
                bias, problem = basis.of_qkv(bias), problem.in_basis(basis.of_qkv)
                dense = f"{layer_prefix(layer)}.{DENSE}.weight"
                weights[dense] = basis.of_dense(weights[dense])
            if problem is not None and plan.method == "gptq" and f"{name}.bias" in self.layout.slots:
                bias = problem.bias(bias, rounded)
            weights[f"{name}.bias"] = self.out.vector(f"{name}.bias", bias)

    def train(
        self, original: Tensors, windows: np.ndarray, own: np.ndarray, compute: Compute, journal: Journal | None
    ) -> None:
        """Train what was written, as a whole, and put the result in its place."""
        self.out.commit()
        self.training, result = train(original, self.out.path, self.layout, windows, own, compute)
        if journal is not None:
            head = [record for record in self.linears if record.layer is None]
            journal.commit_training(self.training, head, result or self.out.path)
        if result is not None:
            os.replace(result, self.out.path)

    def as_trained(self, found: Trained) -> Quantization:
        """Return the record of an earlier process that finished all of this."""
        self.out.kept("")
        self.linears, self.training = [*self.linears, *found.head], found.training
        return self.record(0.0)

    def record(self, seconds: float) -> Quantization:
        place = {name: i for i, name in enumerate(self.layout.linears)}  # stages are out of the checkpoint's order
        found = Quantization(
            version=QUANTIZATION_SCHEMA,
            method=self.quantize.method,
            bits_per_weight=round(self.layout.bits_per_weight, 4),
            seconds=seconds,
            device=described(self.device),
            linears=sorted(self.linears, key=lambda record: place[record.name]),
            layers=self.layers,
        )
        return found if self.training is None else found.model_copy(update={"training": self.training})

    def quantized(
        self, plan: LinearPlan, W: Tensor, problem: Problem | None, factors: Factors | None = None
    ) -> tuple[Quantized | None, Basis | None]:
        """Round one linear as its plan says, and record how well that went. Of QKV, where attention was measured, also
        return the basis of its heads."""
        if plan.method == "none":
            return None, None
        began, scheme, quantize = time.perf_counter(), plan.scheme, self.quantize
        scale_dtype = getattr(torch, self.layout.dtype)
        target, damp, G, basis = W, None, self._sensitivity_of(plan), None
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
                attention = self._attention_of(plan, problem)
                # Of h_to_4h's many outputs, behind a GELU, only the diagonal is kept: their coupling gained nothing.
                if attention is not None:
                    inputs, outputs = attention.inputs.to(problem.H), attention.outputs.to(W)
                    turned = self.layout.config.rotary_dim
                    result, basis, damp = gptq_attention(
                        target, inputs, outputs, scheme, quantize, scale_dtype, turned=turned
                    )
                    target = basis.of_qkv(target)
                elif G is None or G.ndim == 1:
                    result = gptq(target, L, scheme, quantize, scale_dtype)
                else:
                    result = gptq_coupled(target, L, G, scheme, quantize, scale_dtype)
                del L
            losses = _losses(plan, W, target, nearest, result, problem, G, self.layout.config)
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
        return result, basis

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

    def _sensitivity_of(self, plan: LinearPlan) -> Tensor | None:
        """Return G at this linear's output."""
        if self.sensitivity is None or plan.layer is None:
            return None
        return self.sensitivity.of(plan.layer, plan.name.removeprefix(f"{layer_prefix(plan.layer)}.")).to(self.device)

    def _attention_of(self, plan: LinearPlan, problem: Problem) -> Attention | None:
        """Return what was measured of q, k and v; it is about the mean, so a bias must make up for that."""
        if self.sensitivity is None or plan.layer is None or not plan.name.endswith(QKV) or problem.mean is None:
            return None
        return self.sensitivity.attention(plan.layer) if self.quantize.measures_attention else None


def _losses(
    plan: LinearPlan, W: Tensor, target: Tensor, nearest: Quantized, result: Quantized, problem: Problem | None,
    G: Tensor | None, config: NeoXConfig,
) -> dict[str, Any]:  # fmt: skip
    """Output errors relative to the output's energy: of rounding W to nearest, and of rounding what GPTQ was to round.

    Where G is known, errors and energy are weighted by it, and `expected_cost` is what the error is expected to cost in
    nats per token. `heads` [num_heads][q, k, v] splits the fused QKV's plain error, each part over its own energy.
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
