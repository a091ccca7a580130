"""What the jobs of one snapshot share, and the measurement of each.

Original and quantised weights are both run in torch, in float32, on the same text: nothing but the weights differs
(docs/reference/parity.md has what a graph adds to that). A job's result depends on nothing that other jobs do, so the
order and the number of those that are done together make no difference.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from ..base.compute import Compute
from ..base.device import described, memory_of
from ..base.errors import IntegrityError, SourceError
from ..base.machine import machine, now, peak_memory_bytes
from ..calibrate import Sensitivity, measure_sensitivity, quantize_stream, quantize_together
from ..calibrate.balance import canonical
from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint import evict as evict_checkpoint
from ..checkpoint import pull as pull_checkpoint
from ..corpus import Windows
from ..proof.autoencoder import autoencoders, fingerprint
from ..proof.cost import subsets_of
from ..proof.inside import Inside as Look
from ..proof.reference import Reference
from ..proof.score import score
from ..proof.statistics import summarise
from ..recipe import Quantize
from ..records.parity import Inside, Scored
from ..records.quantization import Quantization
from ..weights.layout import layout
from ..weights.names import DATA_FILE
from ..weights.reader import WeightsReader
from ..weights.writer import WeightsWriter
from .folder import Folder
from .jobs import Job
from .records import SCHEMA, Result, Times

DTYPE = "float32"  # of scales, biases and norms


class Shared:
    """The open checkpoint, the original's hidden states on the held-out text, and how sensitive the loss is to each
    layer's outputs: all computed once, the latter two when they are first needed."""

    def __init__(self, job: Job, folder: Folder, compute: Compute, stack: ExitStack) -> None:
        """`job` is any of the snapshot's. What is spilled to disk lies in the system's temporary directory, TMPDIR.

        Raises:
            SourceError: the checkpoint cannot be had, or is not the one that the sweep was pinned to.
            IntegrityError: it is not what it says.
        """
        began = time.perf_counter()
        pulled = pull_checkpoint(job.model, progress=compute.progress)
        if pulled.commit != job.commit:
            raise SourceError(
                f"{job.model.name} at {job.model.revision} is {pulled.commit}; the sweep was pinned to {job.commit}",
                hint="It changed since. `sweep run` pins it anew.",
            )
        self.checkpoint: Checkpoint = open_checkpoint(pulled)
        self._folder, self._compute, self._progress = folder, compute, compute.progress
        self._scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pythia-export-sweep-")))
        self._texts: dict[str, Windows] = {}
        self._originals: dict[str, Reference] = {}
        self._measured: dict[tuple[str, int, bool, bool], Sensitivity] = {}
        self._opening = time.perf_counter() - began  # seconds; the first job's record has them

    def measure(self, jobs: Sequence[Job]) -> Iterator[Result]:
        """The records of one job, or of several that have their Hessians in common, as each is done.

        Raises:
            NumericsError: as `quantize_stream`; of several jobs, before there is a record of any.
            ResourceError: the disk, or a GPU's memory, did not suffice.
        """
        with memory_of(self._compute.device):
            yield from self._measure(jobs)

    def _measure(self, jobs: Sequence[Job]) -> Iterator[Result]:
        began, config, first = time.perf_counter() - self._opening, self.checkpoint.config, jobs[0]
        self._opening = 0.0
        verify = self._text(first.verify)
        ids = self._text(first.calibration).ids if first.calibration is not None else None
        sensitivity = None
        if first.calibration is not None and any(job.quantize.fisher for job in jobs):
            sensitivity = self._sensitivity(first.calibration, first.quantize)
        original = self._original(first.verify)
        shared = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=self._scratch) as scratch:
            with ExitStack() as files:
                writers = []
                for job in jobs:
                    places, path = layout(config, job.quantize, DTYPE), Path(scratch) / f"{job.key}.{DATA_FILE}"
                    writers.append(files.enter_context(WeightsWriter(path, places)))
                quantized = self._quantize(writers, ids, sensitivity)
            rounded = time.perf_counter()
            for job, writer, found in zip(jobs, writers, quantized, strict=True):
                start, reader = time.perf_counter(), WeightsReader(writer.path, writer.layout)
                stored = Reference(reader, config, verify.ids, "Quantised weights", self._compute)
                cost = self._score(original, stored, verify)
                inside = self._look_inside(reader, verify, job) if job.inside else None
                del stored, reader  # unmapped before the file goes
                writer.path.unlink()
                share, each = (shared - began) / len(jobs), (rounded - shared) / len(jobs)
                yield self._record(job, found, cost, inside, (share, each, time.perf_counter() - start))

    def evict(self) -> None:
        """Take the checkpoint out of the hub's cache."""
        freed = evict_checkpoint(self.checkpoint.pulled)
        self._progress.note(f"{freed / 1e6:,.1f} MB of the checkpoint taken out of the cache")

    def _quantize(
        self, writers: Sequence[WeightsWriter], ids: np.ndarray | None, sensitivity: Sensitivity | None
    ) -> list[Quantization]:
        if len(writers) > 1:
            assert ids is not None  # only GPTQ has Hessians to share
            return quantize_together(self.checkpoint, writers, ids, self._compute, sensitivity=sensitivity)
        (one,) = writers
        needed = sensitivity if one.layout.quantize.fisher else None
        return [quantize_stream(self.checkpoint, one, ids, self._compute, sensitivity=needed)]

    def _score(self, original: Reference, stored: Reference, windows: Windows) -> Scored:
        others = {"stored": stored.logits}
        figures = score(original.logits, others, windows, "Against the original", self._compute.progress)["stored"]
        return summarise(figures, windows.n_bytes / windows.ids.size, subsets_of(windows))

    def _look_inside(self, stored: WeightsReader, windows: Windows, job: Job) -> Inside:
        """Run original and quantised weights in step, once more: of the original's pass the end alone was kept."""
        source, config = self.checkpoint, self.checkpoint.config
        found = () if job.sae is None else autoencoders(job.sae, config, job.quantize.products, weights=False)
        if found and fingerprint(found) != job.features:
            raise SourceError(
                f"{job.sae}: these are not the autoencoders that the sweep was prepared with",
                hint="They changed since. `sweep run` prepares it anew.",
            )
        watch = Look(source, {"artifact": stored}, config, windows, self._compute, autoencoders=found)
        Reference(source, config, windows.ids, "Inside", self._compute, watch=watch).watched()
        return watch.result()

    def _record(
        self,
        job: Job,
        quantized: Quantization,
        cost: Scored,
        inside: Inside | None,
        seconds: tuple[float, float, float],
    ) -> Result:
        expected = [linear.expected_cost for linear in quantized.linears if linear.expected_cost is not None]
        share, rounding, scoring = (round(s, 3) for s in seconds)
        return Result(
            version=SCHEMA,
            key=job.key,
            job=job.to_json(),
            bits_per_weight=quantized.bits_per_weight,
            expected_cost=sum(expected) if expected else None,
            residual_error=quantized.layers[-1].residual_error,
            cost=cost,
            inside=inside,
            seconds=Times(share=share, quantize=rounding, score=scoring),
            peak_memory_bytes=peak_memory_bytes(),
            threads=torch.get_num_threads(),
            machine=machine(),
            device=described(self._compute.device),
            when=now(),
        )

    def _text(self, sha256: str) -> Windows:
        if sha256 not in self._texts:
            found, config = self._folder.text(sha256), self.checkpoint.config
            if found.ids.shape[1] > config.max_positions:
                raise SourceError(
                    f"windows of {found.ids.shape[1]} tokens; the context of this model is {config.max_positions}",
                    hint="Lower `sequence_length`, or leave the model out.",
                )
            if found.ids.max() >= config.vocab_size:
                raise IntegrityError(f"token {found.ids.max()}; the vocabulary is {config.vocab_size}")
            self._texts[sha256] = found
        return self._texts[sha256]

    def _original(self, text: str) -> Reference:
        if text not in self._originals:
            ids, config = self._text(text).ids, self.checkpoint.config
            self._originals[text] = Reference(self.checkpoint, config, ids, "Original", self._compute)
        return self._originals[text]

    def _sensitivity(self, text: str, quantize: Quantize) -> Sensitivity:
        """Measure the unquantised model once for all quantisations that take it in the same form."""
        at = text, quantize.products, quantize.balance, quantize.measures_attention
        if at not in self._measured:
            found = Sensitivity(Path(tempfile.mkdtemp(dir=self._scratch)))
            measure_sensitivity(
                canonical(self.checkpoint, quantize),
                self._text(text).ids,
                found,
                self._compute,
                attention=quantize.measures_attention,
            )
            self._measured[at] = found
        return self._measured[at]
