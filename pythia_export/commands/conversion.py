"""One recipe on its way from a checkpoint to the files of an artifact, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import torch

from ..artifact import Publisher, Quantization
from ..base.compute import Compute
from ..base.device import described, device_called
from ..base.machine import versions
from ..base.progress import Progress
from ..calibrate import Allocation, Journal, allocate, quantize_stream, require_begun
from ..checkpoint import Accept, Checkpoint
from ..corpus import Windows, calibration_windows
from ..corpus.overlap import require_held_out
from ..graph.consumers import config_json
from ..graph.targets import require_fit, warnings
from ..graph.trunk import build_graph
from ..model.generation import GENERATION
from ..model.neox import NeoXConfig
from ..recipe import Export, Recipe
from ..records import manifest
from ..records.manifest import Calibration, Origin, Source
from ..records.quantization import QUANTIZATION
from ..records.record import Json
from ..rounding import native
from ..tokenizer import tokenizer_files
from ..weights.layout import Layout, layout_of, require_overrides_match
from ..weights.names import DATA_FILE
from ..weights.reader import WeightsReader
from ..weights.writer import WeightsWriter
from .cache_scales import measured_scales
from .contents import origin_of, save_graph, save_taps, write_configs, write_json
from .options import Options
from .publication import work_folder
from .pull import drop, pull


@contextmanager
def conversion(
    recipe: Recipe, out: Path, options: Options, progress: Progress
) -> Iterator[tuple[Conversion, Publisher]]:
    """Open the checkpoint of a recipe, for what publishes its artifact; then give back what disk it may."""
    job = Conversion(recipe, progress, options.accept, device_called(options.device))
    with Publisher(out, options.overwrite) as publisher:
        if options.resume:
            require_begun(work_folder(out))  # before anything is read
        job.open()
        yield job, publisher
    if options.evict:
        drop(job.checkpoint.pulled, progress)


@dataclass
class Conversion:
    """One recipe on its way: what has been opened so far, and how long each stage took."""

    recipe: Recipe
    progress: Progress
    accept: Accept
    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def compute(self) -> Compute:
        calibration = self.recipe.calibration
        return Compute(self.device, self.progress, calibration.memory_gb if calibration is not None else 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def open(self) -> None:
        with self.stage("pull"):
            self.checkpoint: Checkpoint = pull(self.recipe.model, accept=self.accept, progress=self.progress)
        self.config: NeoXConfig = self.checkpoint.config
        self.tokenizer = self.checkpoint.tokenizer()
        for note in self.checkpoint.notes():
            self.progress.note(note)
        asked, chosen = self.recipe.quantize, self.recipe.export
        settled, notes = asked.settled(
            self.checkpoint.dtype, self.config.parallel_residual, chosen.dtype, chosen.reads_three_bits
        )
        for note in notes:
            self.progress.note(note)
        self.recipe = self.recipe.model_copy(update={"quantize": settled})
        self.layout: Layout = layout_of(self.recipe, self.config)
        require_fit(self.config, self.layout, self.recipe.export)
        require_overrides_match(self.config, self.recipe.quantize)
        self.calibration: Windows | None = None
        self.text_for_scales: Windows | None = None
        self.kv_scales: manifest.CacheScales | None = None
        self.allocation: Allocation | None = None

    def journal(self, out: Path, resume: bool, held_out: Windows | None = None) -> Journal:
        """Beside the output, so that the weights need not be copied; reads the calibration text, part of the inputs.

        Raises:
            RecipeError: `held_out` is not.
        """
        with self.stage("text"):
            if self.recipe.calibration is not None and self.recipe.calibrates:
                windows = calibration_windows(self.recipe.calibration, self.tokenizer, self.config, self.progress)
                if held_out is not None:
                    require_held_out(held_out, windows, self.progress)
                self.calibration = windows if self.recipe.uses_gptq else None
                self.text_for_scales = windows if self.recipe.export.static_scales else None
        self._allocate()
        return Journal(work_folder(out), self._fingerprint(), resume, self.progress)

    def _allocate(self) -> None:
        """Turn a budget of bits into a recipe that names the linears."""
        asked, calibration = self.recipe.quantize, self.calibration
        if asked.bits_per_weight is None:
            return
        assert calibration is not None  # the schema sees to it
        with self.stage("allocate"):
            dtype = self.recipe.export.dtype
            resolved, self.allocation = allocate(self.checkpoint, asked, dtype, calibration.ids, self.compute)
        self.recipe = self.recipe.model_copy(update={"quantize": resolved})
        self.layout = layout_of(self.recipe, self.config)

    def quantize_into(self, journal: Journal) -> Quantization:
        recipe = self.recipe
        ids = self.calibration.ids if self.calibration is not None else None
        folder, keep = journal.output, bool(journal.finished)
        with self.stage("quantize"), WeightsWriter(journal.weights, self.layout, keep=keep) as writer:
            quantization = quantize_stream(self.checkpoint, writer, ids, self.compute, journal=journal)
        if self.allocation is not None:
            quantization = quantization.model_copy(update={"allocation": self.allocation})
        write_json(folder / QUANTIZATION, quantization.to_json())
        write_json(folder / "config.json", config_json(self.config, recipe))
        write_json(folder / GENERATION, dict(self.checkpoint.generation.raw))
        for name, data in tokenizer_files(self.checkpoint.tokenizer_folder, self.config.max_positions).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        return quantization

    def _fingerprint(self) -> Json:
        """Everything that the quantised bytes depend on."""
        recipe, calibration = self.recipe.model_dump(mode="json"), self.calibration
        return {
            "model": {"name": self.checkpoint.pulled.name, "commit": self.checkpoint.pulled.commit},
            "quantize": recipe["quantize"],
            "dtype": recipe["export"]["dtype"],
            "calibration": None if calibration is None else {"sha256": calibration.sha256},
            "versions": versions(),
            "device": described(self.device),
            "kernels": native.available(self.device),  # as they are in torch
            "threads": torch.get_num_threads(),  # sums are taken in another order
        }

    def export_into(self, folder: Path, chosen: Export) -> onnx.ModelProto:
        for warning in warnings(self.layout, chosen):
            self.progress.note(warning)
        with self.stage("export"):
            scales = None
            if self.text_for_scales is not None:
                text = self.text_for_scales
                measured = measured_scales(self.config, self.layout, chosen, folder, text, self.progress)
                scales, self.kv_scales = measured.scales, measured.record
            model = build_graph(self.config, self.layout, chosen, scales)
            save_graph(model, folder)
            save_taps(folder, self.config, self.layout, chosen, scales)
            write_configs(folder, self.config, self.recipe, self.checkpoint.generation)
        return model

    def reader(self, folder: Path) -> WeightsReader:
        return WeightsReader(folder / DATA_FILE, self.layout)

    def origin(self, chosen: Export) -> Origin:
        calibration = None
        if self.calibration is not None:
            windows, length = self.calibration.ids.shape
            calibration = Calibration(
                source=self.calibration.source,
                sha256=self.calibration.sha256,
                windows=windows,
                sequence_length=length,
                end_tokens=self.calibration.end_tokens,
            )
        contents = self.checkpoint.pulled.record.model_copy(update={"dtype": self.checkpoint.dtype})
        source = Source.model_validate(self.source.to_json() | contents.to_json())
        return origin_of(self.recipe, source, calibration, chosen, kv_scales=self.kv_scales)

    @property
    def source(self) -> manifest.Checkpoint:
        pulled = self.checkpoint.pulled
        return manifest.Checkpoint(name=pulled.name, revision=pulled.revision, commit=pulled.commit)
