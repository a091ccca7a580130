"""`import`: a checkpoint that another tool has quantised becomes an artifact, with its codes as they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import onnx

from ..artifact import Parity, Quantization, Staging
from ..base.beside import beside
from ..base.compute import Compute
from ..base.errors import SourceError
from ..base.progress import SILENT, Progress
from ..checkpoint import Accept, Checkpoint, Opened, Pulled, open_checkpoint, with_hashes
from ..checkpoint import pull as pull_checkpoint
from ..corpus import Windows, calibration_windows, verify_windows
from ..corpus.overlap import require_held_out
from ..graph.consumers import config_json
from ..graph.targets import require_fit, warnings
from ..graph.trunk import build_graph
from ..imported import Imported, open_imported, write_imported
from ..imported.write import quantize_section
from ..model.generation import GENERATION
from ..model.neox import NeoXConfig
from ..proof.autoencoder import Autoencoder, autoencoders
from ..proof.prove import prove
from ..proof.reference import Reference, Tensors
from ..proof.score import score
from ..proof.statistics import summarise
from ..proof.subject import Subject
from ..recipe import Changes, Model, Recipe, imported_recipe
from ..recipe.scheme import Bits
from ..records import manifest
from ..records.manifest import Difference, FileEntry, Requantized, Source
from ..records.quantization import QUANTIZATION
from ..report.words import rounded_again
from ..tokenizer import tokenizer_files
from ..weights.layout import Layout, layout_of
from ..weights.names import DATA_FILE
from ..weights.reader import WeightsReader
from ..weights.writer import WeightsWriter
from .cache_scales import measured_scales
from .contents import arrange, origin_of, save_graph, write_configs, write_json, write_reports
from .publication import Outcome
from .pull import ACCEPT
from .verify import tell_of_another_models_text

_NOT_OF_MATRICES = ("bos_token_id", "eos_token_ids", "tied_head")  # tools write these down in their own way


@dataclass(frozen=True)
class Wanted:
    """What an import is asked for: `model` is quantised, `original` the float checkpoint that it was made of, if that
    is to be had; linears that do not fit are rounded again to `requantize` bits."""

    model: Model
    original: Model | None = None
    requantize: Bits | None = None


def import_checkpoint(
    wanted: Wanted,
    out: Path,
    changes: Changes,
    *,
    overwrite: bool = False,
    accept: Accept = ACCEPT,
    progress: Progress = SILENT,
) -> Outcome:
    """Write the artifact of a quantised checkpoint, prove it and publish it; `changes` are of [verify] and [export].

    ONNX Runtime is held to the weights that the quantiser's own library computes with. The cost is measured against
    the original, or, where none is given, against the quantised checkpoint itself.

    Raises:
        SourceError: a method that is not known or does not fit; an original of another shape; no tokenizer, no text.
        IntegrityError: tensors that contradict the configuration.
        RecipeError: a change that does not go with an import.
    """
    job = Import(wanted, accept, progress)
    with Staging(out, overwrite) as staging:
        job.open(changes)
        with job.stage("text"):
            held_out, features = job.text(), job.autoencoders()
        quantization = job.write(staging.folder)
        model = job.export(staging.folder)
        with job.stage("verify"):
            parity, imported = job.prove(staging.folder, model, held_out, features)
        origin = origin_of(job.recipe, job.source_record, None, job.recipe.export, imported, job.kv_scales)
        write_reports(staging.folder, origin, quantization, parity)
        arrange(staging.folder, job.recipe)
        staging.publish(origin, {DATA_FILE: job.written})
    return Outcome(staging.out, quantization, parity, job.seconds)


class Import:
    """One checkpoint on its way: what has been opened so far, and how long each stage took."""

    def __init__(self, wanted: Wanted, accept: Accept, progress: Progress) -> None:
        self.wanted, self.accept, self.progress = wanted, accept, progress
        self.seconds: dict[str, float] = {}
        self.text_for_scales: Windows | None = None
        self.kv_scales: manifest.CacheScales | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def open(self, changes: Changes) -> None:
        with self.stage("pull"):
            quantised = replace(self.accept, quantised=True, duplicates="unasked", hashed=False)
            pulled = pull_checkpoint(self.wanted.model, accept=quantised, progress=self.progress)
            self.hashed: Callable[[], Pulled] = beside(partial(with_hashes, pulled))  # while its weights are written
            self.quantised: Imported = open_imported(pulled, self.wanted.requantize, self.progress)
            self.original: Checkpoint | None = None
            if self.wanted.original is not None:
                pulled = pull_checkpoint(self.wanted.original, accept=self.accept, progress=self.progress)
                self.original = open_checkpoint(pulled, self.progress)
                _require_same_shape(self.original, self.quantised)
        self.config: NeoXConfig = self.quantised.config
        self.of_tokenizer: Opened = self.quantised
        if not self.quantised.has_tokenizer and self.original is not None:
            self.of_tokenizer = self.original
        for note in self.of_tokenizer.notes():
            self.progress.note(note)
        model = self.wanted.original or self.wanted.model
        recipe = imported_recipe(model, quantize_section(self.quantised), changes)
        stored, notes = recipe.quantize.in_field(recipe.export.reads_three_bits)
        for note in notes:
            self.progress.note(note)
        self.recipe: Recipe = recipe.model_copy(update={"quantize": stored})
        self.layout: Layout = layout_of(self.recipe, self.config)
        require_fit(self.config, self.layout, self.recipe.export)
        for warning in warnings(self.layout, self.recipe.export):
            self.progress.note(warning)

    def text(self) -> Windows:
        """Return the held-out text; that of [calibration] is read where a cache's scales are measured on it."""
        tokenizer, calibration = self.of_tokenizer.tokenizer(), self.recipe.calibration
        held_out = verify_windows(self.recipe.verify, tokenizer, self.config, self.progress)
        if calibration is not None and self.recipe.export.static_scales:
            self.text_for_scales = calibration_windows(calibration, tokenizer, self.config, self.progress)
            require_held_out(held_out, self.text_for_scales, self.progress)
        return held_out

    def autoencoders(self) -> tuple[Autoencoder, ...]:
        sae = self.recipe.verify.sae
        return () if sae is None else autoencoders(sae, self.config)

    def write(self, folder: Path) -> Quantization:
        """Write weights, tokenizer and configurations."""
        with (
            self.stage("import"),
            WeightsWriter(folder / DATA_FILE, self.layout, digests=False, whole=True) as writer,
        ):
            quantization = write_imported(self.quantised, writer, self.progress)
        self.written = FileEntry(sha256=writer.sha256(), size=self.layout.nbytes)
        write_json(folder / QUANTIZATION, quantization.to_json())
        write_json(folder / "config.json", config_json(self.config, self.recipe))
        write_json(folder / GENERATION, dict(self.quantised.generation.raw))
        files = tokenizer_files(self.of_tokenizer.tokenizer_folder, self.config.max_positions)
        for name, data in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        return quantization

    def export(self, folder: Path) -> onnx.ModelProto:
        with self.stage("export"):
            chosen, scales = self.recipe.export, None
            if self.text_for_scales is not None:
                text = self.text_for_scales
                measured = measured_scales(self.config, self.layout, chosen, folder, text, self.progress)
                scales, self.kv_scales = measured.scales, measured.record
            model = build_graph(self.config, self.layout, chosen, scales)
            save_graph(model, folder)
            write_configs(folder, self.config, self.recipe, self.quantised.generation)
        return model

    def prove(
        self, folder: Path, model: onnx.ModelProto, windows: Windows, features: tuple[Autoencoder, ...]
    ) -> tuple[Parity, manifest.Imported]:
        """Prove the artifact; return also what the manifest says of the import."""
        reader = WeightsReader(folder / DATA_FILE, self.layout)
        again = [linear.name for linear in self.quantised.linears.values() if linear.rounded]
        # The weights as the quantiser's library computes with them, unless some were rounded again.
        stored: Tensors = reader if again else self.quantised
        subject = Subject(
            self.source_record, self.original or self.quantised, stored, self.config, model, folder,
            self.recipe.quantize, self.recipe.export, "imported" if self.original is None else "original",
        )  # fmt: skip
        compute = Compute(progress=self.progress)
        gates, inside = self.recipe.verify.gates, self.recipe.verify.inside
        parity = prove(subject, windows, gates, compute, inside=inside, autoencoders=features).parity
        tell_of_another_models_text(parity, self.config, self.progress)
        requantized = None if not again else self._requantized(again, reader, windows, compute)
        return parity, self.record(requantized)

    def _requantized(self, again: list[str], reader: Tensors, windows: Windows, compute: Compute) -> Requantized:
        """What rounding again cost: the stored weights against the quantised checkpoint's own, both in torch."""
        ours, theirs = (
            Reference(of, self.config, windows.ids, title, compute, together=2).logits
            for of, title in ((reader, "Artifact's weights"), (self.quantised, "Imported weights"))
        )
        found = score(theirs, {"artifact": ours}, windows, "Rounding again", self.progress)["artifact"]
        scored, bits = summarise(found, windows.n_bytes / windows.ids.size), self.wanted.requantize
        assert bits is not None  # open_imported sees to it
        delta, kld = (Difference(mean=x.mean, low=x.low, high=x.high) for x in (scored.delta_nll, scored.kld))
        record = Requantized(bits=bits, linears=again, delta_nll=delta, kld=kld)
        self.progress.note(f"rounded again: {rounded_again(record)}")
        return record

    def record(self, requantized: Requantized | None) -> manifest.Imported:
        """What the manifest says of the quantised checkpoint."""
        pulled, of = self.hashed(), self.quantised
        return manifest.Imported(
            name=pulled.name, revision=pulled.revision, commit=pulled.commit, files=pulled.record.files,
            format=of.form.name, tool=of.form.tool, config=of.settings, requantized=requantized,
        )  # fmt: skip

    @property
    def source_record(self) -> Source:
        """The original; where there is none, the quantised checkpoint."""
        of = self.original or self.quantised
        pulled = self.hashed() if self.original is None else self.original.pulled
        record = pulled.record.model_copy(update={"dtype": of.dtype})
        named = {"name": pulled.name, "revision": pulled.revision, "commit": pulled.commit}
        return Source.model_validate(named | record.to_json())


def _require_same_shape(original: Checkpoint, quantised: Imported) -> None:
    """
    Raises:
        SourceError: the two are of different models.
    """
    a, b = asdict(original.config), asdict(quantised.config)
    differing = [name for name in a if a[name] != b[name] and name not in _NOT_OF_MATRICES]
    if differing:
        name = differing[0]
        raise SourceError(
            f"{original.pulled.name} is not what {quantised.pulled.folder} was quantised from: {name} is {a[name]} in "
            f"the original, {b[name]} there",
            hint="--original takes the float checkpoint that the quantiser was given.",
        )
