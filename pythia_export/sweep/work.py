"""One task: a checkpoint is opened and scored once, then quantised and scored again for each of its jobs.

Original and quantised weights are both run in torch, in float32, on the same text: nothing but the weights differs
(docs/parity.md has what a graph adds to that). A job's result depends on nothing that the other jobs do, so the order
and the number of those that are left make no difference.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import Accept, Checkpoint, open_checkpoint
from ..checkpoint import evict as evict_checkpoint
from ..checkpoint import pull as pull_checkpoint
from ..corpus import Windows
from ..errors import IntegrityError, PythiaExportError, ResourceError, SourceError
from ..graph.files import DATA_FILE
from ..graph.layout import layout as lay_out
from ..machine import machine
from ..parity.cost import subsets_of
from ..parity.metrics import TokenFigures
from ..parity.reference import Reference
from ..parity.statistics import summarise
from ..progress import SILENT, Progress
from ..recipe import Quantize
from ..stream import Sensitivity, measure_sensitivity, quantize_stream
from ..stream.folded import Folded
from ..weights import WeightsReader, WeightsWriter
from .folder import Folder, now
from .jobs import SCHEMA, Job, label

DTYPE = "float32"  # of scales, biases and norms
OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
)  # what torch says of it, in RuntimeErrors


def work(
    root: Path,
    task: str,
    keys: Sequence[str],
    *,
    cores: int,
    memory_gb: float = 4.0,
    evict: bool = False,
    attempt: int = 1,
    progress: Progress = SILENT,
) -> dict[str, int]:
    """Do the jobs of one task that have no result yet; the exit code of each, 0 for those that are done.

    What fails is recorded, job by job, and the rest goes on; only where memory is short does the task end, for another
    process with more of it to go on.
    """
    folder = Folder(root)
    told = _Logged(folder, task, progress)
    codes = {key: 0 for key in keys if folder.result(key) is not None}
    left = [key for key in keys if key not in codes]
    torch.set_num_threads(cores)
    told.log(f"attempt {attempt}: {len(left)} jobs, {cores} threads")
    with ExitStack() as stack:
        shared: _Checkpoint | None = None
        if left:
            stack.enter_context(folder.working(task, {"jobs": len(left), "attempt": attempt}))
        for key in left:
            try:
                job = folder.job(key)
                if shared is None:
                    shared = _Checkpoint(job, folder, memory_gb, stack, told)
                record = shared.measure(job)
                record["attempt"] = attempt
                folder.put_result(key, record)
                codes[key] = 0
                told.log(f"{key} {label(job.quantize)}: done in {sum(record['seconds'].values()):.1f} s")
            except Exception as e:
                error = _known(e)
                codes[key] = error.exit_code
                told.log(f"{key}: {type(error).__name__}: {error}")
                told.log("".join(traceback.format_exception(e)).rstrip())
                failed = [key] if shared is not None else [k for k in left if k not in codes or k == key]
                for k in failed:
                    codes[k] = error.exit_code
                    folder.put_failure(k, failure(error, attempt, traceback.format_exception_only(e)[-1].strip()))
                if shared is None or isinstance(error, ResourceError):
                    break
        if shared is not None and evict and all(code == 0 for code in codes.values()):
            shared.evict()
    return codes


def failure(error: PythiaExportError, attempt: int, raised: str = "") -> dict[str, Any]:
    """The record of a job that came to nothing."""
    return {
        "schema": SCHEMA,
        "error": type(error).__name__,
        "exit_code": error.exit_code,
        "message": str(error),
        "hint": error.hint,
        "raised": raised,
        "attempt": attempt,
        "when": now(),
    }


def _known(error: Exception) -> PythiaExportError:
    """As one of ours; what is not, is a fault of this program."""
    if isinstance(error, PythiaExportError):
        return error
    said = str(error)
    if isinstance(error, MemoryError) or any(words in said for words in OUT_OF_MEMORY):
        return ResourceError(f"not enough memory: {said}".removesuffix(": "))
    return PythiaExportError(f"{type(error).__name__}: {said}")


class _Logged:
    """Progress that also goes into the task's log."""

    def __init__(self, folder: Folder, task: str, progress: Progress) -> None:
        self._folder, self._task, self._progress = folder, task, progress
        self.track = progress.track

    def note(self, message: str) -> None:
        self.log(message)
        self._progress.note(message)

    def log(self, line: str) -> None:
        self._folder.write_log(self._task, line)


class _Checkpoint:
    """What the jobs of one snapshot share: the open checkpoint, the original's hidden states on the held-out text, and
    what the loss feels of each layer's outputs."""

    def __init__(self, job: Job, folder: Folder, memory_gb: float, stack: ExitStack, progress: Progress) -> None:
        began = time.perf_counter()
        pulled = pull_checkpoint(job.model, accept=Accept(), progress=progress)
        if pulled.commit != job.commit:
            raise SourceError(
                f"{job.model.name} at {job.model.revision} is {pulled.commit}; the sweep was pinned to {job.commit}",
                hint="It changed since. `sweep run` pins it anew.",
            )
        self.checkpoint: Checkpoint = open_checkpoint(pulled)
        self._folder, self._memory_gb, self._progress = folder, memory_gb, progress
        self._scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pythia-export-sweep-")))
        self._texts: dict[str, Windows] = {}
        self._originals: dict[str, Reference] = {}
        self._felt: dict[tuple[str, int], Sensitivity] = {}
        self.opened_in = time.perf_counter() - began

    def measure(self, job: Job) -> dict[str, Any]:
        """The record of one job."""
        began = time.perf_counter()
        verify, quantize, config = self._text(job.verify), job.quantize, self.checkpoint.config
        places = lay_out(config, quantize, DTYPE)
        ids = self._text(job.calibration).ids if job.calibration is not None else None
        felt = self._sensitivity(job.calibration, quantize) if job.calibration is not None and quantize.fisher else None
        shared = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=self._scratch) as scratch:
            path = Path(scratch) / DATA_FILE
            with WeightsWriter(path, places) as writer:
                quantized = quantize_stream(
                    self.checkpoint, quantize, places, DTYPE, ids, writer, self._progress,
                    memory_gb=self._memory_gb, felt=felt,
                )  # fmt: skip
            rounded = time.perf_counter()
            stored = Reference(
                WeightsReader(path, places, config), config, verify.ids, "Quantised weights", self._progress
            )
            cost = self._score(job.verify, stored, verify)
            del stored  # unmapped before its folder goes
        scored = time.perf_counter()
        linears = quantized["linears"]
        return {
            "schema": SCHEMA,
            "key": job.key,
            "job": job.to_json(),
            "bits_per_weight": quantized["bits_per_weight"],
            "expected_cost": _sum(linear["expected_cost"] for linear in linears),
            "residual_error": quantized["layers"][-1]["residual_error"],
            "cost": cost,
            "seconds": {
                "share": round(shared - began, 3),
                "quantize": round(rounded - shared, 3),
                "score": round(scored - rounded, 3),
            },
            "peak_memory_bytes": _peak_memory(),
            "threads": torch.get_num_threads(),
            "machine": machine(),
            "when": now(),
        }

    def evict(self) -> None:
        freed = evict_checkpoint(self.checkpoint.pulled)
        self._progress.note(f"{freed / 1e6:,.1f} MB of the checkpoint taken out of the cache")

    def _score(self, text: str, stored: Reference, windows: Windows) -> dict[str, Any]:
        original, figures = self._original(text, windows), TokenFigures()
        with self._progress.track("Against the original", len(windows.ids), "windows") as advance:
            for i, window in enumerate(windows.ids):
                figures.add(original.logits(i)[:-1], stored.logits(i)[:-1], window[1:], windows.documents[i, 1:])
                advance(1)
        return summarise(figures, windows.n_bytes / windows.ids.size, subsets_of(windows))

    def _text(self, sha256: str) -> Windows:
        if sha256 not in self._texts:
            found = self._folder.text(sha256)
            limit = self.checkpoint.config.max_positions
            if found.ids.shape[1] > limit:
                raise SourceError(f"windows of {found.ids.shape[1]} tokens; this model's context is {limit}")
            if found.ids.max() >= self.checkpoint.config.vocab_size:
                raise IntegrityError(f"token {found.ids.max()}; the vocabulary is {self.checkpoint.config.vocab_size}")
            self._texts[sha256] = found
        return self._texts[sha256]

    def _original(self, text: str, windows: Windows) -> Reference:
        if text not in self._originals:
            config = self.checkpoint.config
            self._originals[text] = Reference(self.checkpoint, config, windows.ids, "Original", self._progress)
        return self._originals[text]

    def _sensitivity(self, text: str, quantize: Quantize) -> Sensitivity:
        """Of the unquantised model: the same for every quantisation that folds its layers alike."""
        at = text, quantize.products
        if at not in self._felt:
            folder = Path(tempfile.mkdtemp(dir=self._scratch))
            source = Folded(self.checkpoint) if quantize.products == 2 else self.checkpoint
            felt = Sensitivity(folder)
            measure_sensitivity(source, self._text(text).ids, felt, self._memory_gb, progress=self._progress)
            self._felt[at] = felt
        return self._felt[at]


def _sum(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return float(sum(known)) if known else None


def _peak_memory() -> int:
    """Of this process so far, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
