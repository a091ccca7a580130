"""The whole quantised model trained to predict what the original predicts: ``quantize.effort = "best"``.

GPTQ rounds a matrix at a time, and knows of the rest of the model by second-order statistics. Here the divergence
between the predictions of both models is taken itself, through all layers, and scales, biases and LayerNorms
follow its gradient; so do embedding and head where they are stored in float. Only values change: no format, no graph.

The text is the calibration windows, and some more that the original writes itself (`drawn`): of the calibration text
alone a model learns much by heart. GPTQ has observed some of that text as well.

GPTQ's result is the start, and stays where training does not help: the last eighth of the calibration windows is not
trained on, and says what share of what was learned is kept, perhaps none. GPTQ has seen these windows, so the
comparison favours it.

The whole model is in memory: `Text.nbytes`. Where the recipe's `calibration.memory_gb` is less, nothing is drawn; where
that is too little still, nothing is trained, and that is recorded.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..base.compute import Compute
from ..base.device import free_bytes
from ..model.block import Block, Rotary, final_norm
from ..model.neox import EMBEDDING, FINAL_NORM, HEAD, NORMS, NeoXConfig, layer_tensors, tensors
from ..records.quantization import Training
from ..rounding.learned import Learned
from ..weights.layout import Layout
from ..weights.reader import WeightsReader
from ..weights.writer import WeightsWriter
from .activations import Activations, place
from .divergence import LOGITS, divergence
from .drawn import draw, drawing_memory, windows_drawn
from .placed import Tensors

HELD_OUT = 8  # every so many windows one is not trained on
BATCH_TOKENS = 1024
EPOCHS = 3
OF_SCALES, OF_VECTORS, OF_TABLES = 1e-3, 1e-3, 5e-4  # Adam's steps at 4 bits, relative; a bit less doubles them
BETAS = (0.9, 0.99)
WARM_UP = 10
KEPT_BYTES = 1 << 30  # of activations
SHARES = (1.0, 0.5, 0.25)  # of what was learned, that are tried on windows that were not trained on


@dataclass(frozen=True)
class Text:
    """Windows that training reads: of the calibration text and of the original's own, and those that it is judged by.
    nbytes: what training with them takes."""

    given: int
    drawn: int
    held_out: int
    nbytes: int


def text_read(layout: Layout, windows: int, length: int, budget: float) -> Text:
    """Return what is read with so many calibration windows of `length` tokens, at least two. Nothing is drawn where
    `budget` bytes are too few for that."""
    held_out = max(1, windows // HELD_OUT)
    drawn = windows_drawn(layout.config, windows - held_out, length)
    nbytes = max(_memory(layout, windows + drawn, length), drawing_memory(layout.config, drawn, length))
    if drawn and nbytes > budget:
        drawn, nbytes = 0, _memory(layout, windows, length)
    return Text(windows - held_out, drawn, held_out, nbytes)


def _memory(layout: Layout, windows: int, length: int) -> int:
    """Return the bytes of parameters, gradients and Adam's moments, what one layer's backward pass holds, the inputs of
    all layers, logits, and the original's outputs on so many windows."""
    config = layout.config
    d, vocab = config.hidden_size, config.vocab_size
    codes = sum(p.shape[0] * p.shape[1] for p in layout.linears.values() if p.method == "gptq")
    floats = sum(layout.config.vocab_size * d for _ in _tables(layout))
    weights = 9 * codes + 20 * floats  # a byte, the matrix and its gradient; with Adam's moments
    layers = _backward(config, length)
    layers = layers * config.num_layers if _kept(config, length) else layers
    inputs = 4 * length * d * (_batch(length) * (config.num_layers + 1) + windows)
    return weights + 12 * vocab * d + layers + inputs + 16 * LOGITS


def _backward(config: NeoXConfig, length: int) -> int:
    """Return the bytes of a layer's activations, of one batch, that its backward pass reads."""
    return 4 * length * _batch(length) * (14 * config.hidden_size + 4 * config.intermediate_size)


def _kept(config: NeoXConfig, length: int) -> bool:
    """Say whether those of all layers are kept at once; if not, each layer is computed again."""
    return config.num_layers * _backward(config, length) <= KEPT_BYTES


def _batch(length: int) -> int:
    return max(1, BATCH_TOKENS // length)


def why_not(layout: Layout, windows: np.ndarray, compute: Compute) -> str | None:
    """Return why nothing is trained; None where it is."""
    if not any(plan.method == "gptq" for plan in layout.linears.values()):
        return "no linear is rounded by GPTQ"
    if len(windows) < 2:
        return "there is one calibration window; one to train on and one to judge by are needed"
    budget = _budget(compute)
    needed = text_read(layout, len(windows), windows.shape[1], budget).nbytes
    if needed > budget:
        return f"the whole model takes {needed / 1e9:.1f} GB; calibration.memory_gb allows {budget / 1e9:.1f} GB"
    return None


def _budget(compute: Compute) -> int:
    return max(int(compute.memory_gb * 1e9), free_bytes(compute.device) // 2)


def written(source: Tensors, layout: Layout, windows: np.ndarray, compute: Compute) -> np.ndarray:
    """Return the text [count, S] that `source` writes beside windows [N, S]: nothing where nothing is trained."""
    if why_not(layout, windows, compute) is not None:
        return windows[:0]
    budget, length = _budget(compute), windows.shape[1]
    read, wanted = (text_read(layout, len(windows), length, allowed) for allowed in (budget, math.inf))
    if read.drawn < wanted.drawn:
        compute.progress.note(
            f"The original writes no text to train on: with it the model takes {wanted.nbytes / 1e9:.1f} GB, "
            f"calibration.memory_gb allows {budget / 1e9:.1f} GB."
        )
    return draw(source, windows[: read.given], read.drawn, compute)


def train(
    source: Tensors, path: Path, layout: Layout, windows: np.ndarray, own: np.ndarray, compute: Compute
) -> tuple[Training, Path | None]:
    """Train what is stored at `path` on windows [N, S], and on `own` text as `written` gives it, to predict as `source`
    does.

    Returns how it went, and the file beside `path` that holds the result: None where everything stays as it was.
    """
    began, progress = time.perf_counter(), compute.progress
    reason = why_not(layout, windows, compute)
    if reason is not None:
        progress.note(f"Not trained end to end: {reason}.")
        return Training(done=False, reason=reason), None
    read = text_read(layout, len(windows), windows.shape[1], _budget(compute))
    with torch.inference_mode(False), torch.enable_grad():
        given, kept_apart = np.split(windows, [read.given])
        text = np.concatenate((given, own, kept_apart))
        ids, judged = torch.from_numpy(text).to(compute.device), range(read.given + len(own), len(text))
        student = _Student(path, layout, windows.shape[1], compute)
        teacher = _Teacher(source, text, compute)
        steps = _train(student, teacher, ids, judged.start, compute)
        before = _mean(student.divergence(ids, teacher, judged, 0.0))
        tried = {share: _mean(student.divergence(ids, teacher, judged, share)) for share in SHARES}
    share = min(tried, key=lambda s: tried[s])
    after = tried[share]
    kept = share if after < before else 0.0
    if not kept:
        progress.note("Training end to end did not help on windows that it had not seen: the rounding stays as it was.")
    if 0 < kept < 1:
        progress.note(
            f"{kept:.0%} of what was learned end to end is kept: more did not help on windows it had not seen."
        )
    found = Training(
        done=True,
        reason=None,
        steps=steps,
        windows=read.given,
        drawn=len(own),
        held_out=read.held_out,
        before=before,
        after=min(before, after),
        kept=kept,
        seconds=round(time.perf_counter() - began, 2),
    )
    return found, student.store(path, kept) if kept else None


class _Teacher:
    """The original: its head, and the final LayerNorm's output of every window, computed a layer at a time."""

    def __init__(self, source: Tensors, windows: np.ndarray, compute: Compute) -> None:
        config, device = source.config, compute.device
        shape = (*windows.shape, config.hidden_size)
        self.outputs = x = Activations(shape, 1, place(shape, 1, compute), device)
        rotary = Rotary.of(config, windows.shape[1], torch.float32, device)

        def read(name: str) -> Tensor:
            return source.tensor(name).to(device).float()

        self.head = read(f"{HEAD}.weight")
        with (
            torch.no_grad(),
            compute.progress.track("Reading the original", config.num_layers + 1, "layers") as advance,
        ):
            table = read(f"{EMBEDDING}.weight")
            for i in range(len(x)):
                x[i] = table[torch.from_numpy(windows[i : i + 1].copy()).to(device)]
            del table
            for layer in range(config.num_layers):
                block = Block(config, layer, {s.name: read(s.name) for s in layer_tensors(config, layer)}.__getitem__)
                for i in range(len(x)):
                    x[i] = block(x[i], rotary)
                advance(1)
            ends = {name: read(name) for name in (f"{FINAL_NORM}.weight", f"{FINAL_NORM}.bias")}
            for i in range(len(x)):
                x[i] = final_norm(x[i], config, ends.__getitem__)
            advance(1)


class _Student:
    """The quantised model as it is stored, and what has been learned of it."""

    def __init__(self, path: Path, layout: Layout, length: int, compute: Compute) -> None:
        self.layout, self.config, device = layout, layout.config, compute.device
        stored, tables = WeightsReader(path, layout), set(_tables(layout))
        self.rotary = Rotary.of(self.config, length, torch.float32, device)
        self.linears = {
            plan.name: Learned(stored.quantized(plan).to(device))
            for plan in layout.linears.values()
            if plan.method == "gptq"
        }
        self.floats: dict[str, _Float] = {}
        self.fixed: dict[str, Tensor] = {}
        for spec in tensors(self.config):
            name = spec.name
            if name.removesuffix(".weight") in self.linears:
                continue
            value, twin = stored.tensor(name).to(device), _twin(layout, name)
            if name not in layout.slots or (name.removesuffix(".weight") in _matrices(layout) and name not in tables):
                self.fixed[name] = value
            elif twin in self.floats:
                self.floats[name] = self.floats[twin]
            else:
                self.floats[name] = _Float(value, getattr(torch, layout.slots[name].dtype))

    def parameters(self) -> list[tuple[list[Tensor], float]]:
        """Return what is trained, and by what steps: what there is to mend is as large as the steps of the grid."""
        coarse = 2.0 ** (4 - min(self.layout.linears[name].scheme.bits for name in self.linears))
        unique = {id(found): (name, found.moved) for name, found in self.floats.items()}.values()
        tables = set(_tables(self.layout))
        return [
            ([linear.grown for linear in self.linears.values()], coarse * OF_SCALES),
            ([moved for name, moved in unique if name not in tables], coarse * OF_VECTORS),
            ([moved for name, moved in unique if name in tables], coarse * OF_TABLES),
        ]

    def weight(self, name: str) -> Tensor:
        """Return a tensor as it is now, with its gradient."""
        linear = self.linears.get(name.removesuffix(".weight"))
        if linear is not None:
            return linear.weight()
        return self.floats[name].value() if name in self.floats else self.fixed[name]

    def outputs(self, ids: Tensor) -> Tensor:
        """Return the final LayerNorm's output [B, S, hidden], with gradients."""
        x, kept = F.embedding(ids, self.weight(f"{EMBEDDING}.weight")), _kept(self.config, ids.shape[1])
        for layer in range(self.config.num_layers):
            block = Block(self.config, layer, self.weight)
            x = block(x, self.rotary) if kept else checkpoint(block, x, self.rotary, use_reentrant=False)
        return final_norm(x, self.config, self.weight)

    @torch.no_grad()
    def divergence(self, ids: Tensor, teacher: _Teacher, windows: range, share: float) -> list[float]:
        """Return the mean divergence of each of some windows, with `share` of what was learned, as it is stored."""
        weights = self.fixed | {name: value.result(share) for name, value in self.floats.items()}
        for name, linear in self.linears.items():
            weights[f"{name}.weight"] = linear.result(share, self._dtype).dequantize()
        found = []
        for i in windows:
            x = weights[f"{EMBEDDING}.weight"][ids[i : i + 1]]
            for layer in range(self.config.num_layers):
                x = Block(self.config, layer, weights.__getitem__)(x, self.rotary)
            h = final_norm(x, self.config, weights.__getitem__)
            found.append(float(divergence(h[0], weights[f"{HEAD}.weight"], teacher.outputs[i][0], teacher.head)))
        return found

    @property
    def _dtype(self) -> torch.dtype:
        found: torch.dtype = getattr(torch, self.layout.dtype)
        return found

    def store(self, path: Path, share: float) -> Path:
        """Write a copy of the file with `share` of what was learned, beside it; it is on the disk when this returns."""
        beside = path.with_name(f"{path.name}.trained")
        shutil.copyfile(path, beside)
        with WeightsWriter(beside, self.layout, keep=True, digests=False) as out:
            for name, linear in self.linears.items():
                result = linear.result(share, self._dtype)
                out.linear(self.layout.linears[name], result.q, result)
            for name, value in self.floats.items():
                if name == f"{EMBEDDING}.weight":
                    out.float_embedding(value.result(share))
                elif name.removesuffix(".weight") in _matrices(self.layout):
                    out.linear(self.layout.linears[HEAD], value.result(share), None)
                else:
                    out.vector(name, value.result(share))
            out.kept("")
            out.commit()
        return beside


class _Float:
    """A bias, a LayerNorm's gain or shift, or a table, stored as `dtype`; it moves in units of its root mean square.
    One of zeros stays."""

    def __init__(self, start: Tensor, dtype: torch.dtype) -> None:
        self.start, self._dtype, self._unit = start, dtype, start.square().mean().sqrt()
        self.moved = torch.zeros_like(start).requires_grad_()

    def value(self) -> Tensor:
        return self.start + self._unit * self.moved

    @torch.no_grad()
    def result(self, share: float) -> Tensor:
        """Return it with `share` of what was learned, as it will be read."""
        return (self.start + share * self._unit * self.moved).to(self._dtype).float()


def _train(student: _Student, teacher: _Teacher, ids: Tensor, windows: int, compute: Compute) -> int:
    """Train on the first so many windows of ids [N, S]; return the number of steps."""
    groups = [{"params": params, "lr": rate, "rate": rate} for params, rate in student.parameters() if params]
    optimiser = torch.optim.Adam(groups, betas=BETAS, eps=1e-12)
    batch = min(windows, _batch(ids.shape[1]))
    steps = EPOCHS * max(1, windows // batch)
    with compute.progress.track("Training end to end", steps, "steps") as advance:
        for step, chosen in enumerate(_batches(windows, batch, steps)):
            pace = min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimiser.param_groups:
                group["lr"] = group["rate"] * pace
            h = student.outputs(ids[chosen])
            wanted = torch.cat([teacher.outputs[i] for i in chosen])
            loss = divergence(h.flatten(0, 1), student.weight(f"{HEAD}.weight"), wanted.flatten(0, 1), teacher.head)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            advance(1)
    return steps


def _batches(windows: int, batch: int, steps: int) -> Iterator[list[int]]:
    """Yield windows in an order that is drawn anew for each time over the text, by a seed that does not change."""
    generator = np.random.default_rng(0)
    left: list[int] = []
    for _ in range(steps):
        if len(left) < batch:
            left = generator.permutation(windows).tolist()
        yield [left.pop() for _ in range(batch)]


def _tables(layout: Layout) -> Iterator[str]:
    """Yield the names of embedding and head, where they are stored in float."""
    if layout.embedding is None:
        yield f"{EMBEDDING}.weight"
    if layout.linears[HEAD].method == "none":
        yield f"{HEAD}.weight"


def _matrices(layout: Layout) -> set[str]:
    return {EMBEDDING, *layout.linears}


def _twin(layout: Layout, name: str) -> str:
    """Return the name of the first LayerNorm's tensor, where both are stored as one."""
    first = name.replace(NORMS[1], NORMS[0])
    return first if layout.slots.get(first) is layout.slots.get(name) else name


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
