"""The whole job, top to bottom: pull, read text, quantise layer by layer, write the graph, prove, publish."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from pydantic import ValidationError

from ..artifact import MANIFEST, Artifact, Parity, Publisher, Quantization, Staging, is_snapshot
from ..artifact.records import QUANTIZATION, Origin, checked
from ..base.device import DeviceName, described, device_called, memory_of
from ..base.errors import IntegrityError, OutputError, PythiaExportError, RecipeError, ResourceError, SourceError
from ..base.machine import versions
from ..base.progress import SILENT, Progress
from ..base.strict_json import read_object, shown
from ..calibrate import (
    Allocation,
    Journal,
    Publication,
    allocate,
    differences,
    published,
    quantize_stream,
    remove_work,
    require_begun,
)
from ..checkpoint import Accept, Checkpoint, Pulled, moved, open_checkpoint, require_recorded
from ..checkpoint import evict as evict_checkpoint
from ..checkpoint import pull as pull_checkpoint
from ..corpus import Windows, calibration_windows, verify_windows
from ..corpus.overlap import require_held_out
from ..disk import clean_up, explained, held, write_atomically
from ..graph.consumers import config_json, genai_config_json
from ..graph.decoder import build_decoder, kv_cache
from ..graph.targets import require_fit, warnings
from ..model.generation import GENERATION, Generation
from ..model.neox import NeoXConfig
from ..proof.against import check_comparable
from ..proof.prove import Subject, prove
from ..proof.table import require_parquet, token_table
from ..quantize import native
from ..recipe import Export, Model, Recipe
from ..report.card import model_card
from ..report.html import render_report
from ..runtime import check_graph, require_provider
from ..tokenizer import tokenizer_files
from ..weights.file import WeightsReader, WeightsWriter
from ..weights.layout import Layout, require_overrides_match
from ..weights.layout import layout as lay_out
from ..weights.names import DATA_FILE, MODEL, arrange, data_name, graph_name
from .whereabouts import Elsewhere, is_path, last_part, located, remember, without_paths

ACCEPT, HERE = Accept(), Elsewhere()
GENAI = "genai_config.json"
WORSE_THAN_CHANCE = 1.1  # times the logarithm of the vocabulary: an untrained model has about 1


@dataclass(frozen=True)
class Outcome:
    folder: Path
    quantization: Quantization | None
    parity: Parity | None
    seconds: dict[str, float]


class Unwritten(PythiaExportError):
    """`fault`, after a proof was made: `parity` is that proof."""

    def __init__(self, fault: PythiaExportError, parity: Parity) -> None:
        super().__init__(str(fault), hint=fault.hint)
        self.exit_code = fault.exit_code
        self.parity = parity


def pull(model: Model, *, accept: Accept = ACCEPT, progress: Progress = SILENT) -> Checkpoint:
    """Fetch a checkpoint, pin its commit and check its headers against its configuration."""
    return open_checkpoint(pull_checkpoint(model, accept=accept, progress=progress), progress)


def read_texts(recipe: Recipe, checkpoint: Checkpoint, progress: Progress = SILENT) -> dict[str, Windows]:
    """The text of each section that needs some; of the hub's, the cache has it from then on."""
    tokenizer, config = checkpoint.tokenizer(), checkpoint.config
    texts = {"verify": verify_windows(recipe.verify, tokenizer, config, progress)}
    if recipe.calibration is not None and recipe.uses_gptq:
        texts = {"calibration": calibration_windows(recipe.calibration, tokenizer, config, progress)} | texts
    return texts


def run(
    recipe: Recipe,
    out: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    accept: Accept = ACCEPT,
    evict: bool = False,
    device: DeviceName = "cpu",
    progress: Progress = SILENT,
) -> Outcome:
    """Recipe in, verified artifact out: published whether its gates pass or not, with the verdict in it.

    `resume` goes on after the last layer that an interrupted run of the same inputs finished. `evict` takes the
    checkpoint out of the hub's cache once the artifact is published. torch computes on `device`.
    """
    finished = _finish_interrupted(recipe, out, resume, progress)
    if finished is not None:
        return finished
    job = _Job(recipe, progress, accept, device_called(device))
    with Publisher(out, overwrite) as publisher:
        if resume:
            require_begun(_work_folder(out))  # before anything is read
        job.open()
        if recipe.export.target == "cuda":
            require_provider("cuda", _probe())  # hours of quantisation would end in this error
        with job.stage("text"):
            # Before the long part: text that is too short is found now.
            held_out = verify_windows(recipe.verify, job.tokenizer, job.config, progress)
        with job.journal(out, resume, held_out) as journal:
            quantization = job.quantize_into(journal)
            model = job.export_into(journal.output, recipe.export)
            with job.stage("verify"):
                subject = Subject(
                    job.source, job.checkpoint, job.reader(journal.output), job.config, model, journal.output,
                    job.recipe.quantize, recipe.export, job.device,
                )  # fmt: skip
                with memory_of(job.device):
                    parity = prove(subject, held_out, recipe.verify.gates, progress).parity
            _tell_of_another_models_text(parity, job.config, progress)
            manifest = job.manifest(recipe.export)
            _write_reports(journal.output, manifest, quantization, parity)
            _publish(publisher, journal, recipe, manifest)
    if evict:
        _evict(job.checkpoint.pulled, progress)
    return Outcome(publisher.out, quantization, parity, job.seconds)


def quantize(
    recipe: Recipe,
    out: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    accept: Accept = ACCEPT,
    evict: bool = False,
    device: DeviceName = "cpu",
    progress: Progress = SILENT,
) -> Outcome:
    """Only the weights: `model.onnx_data` and `quantization.json`, for `export` to build graphs over."""
    finished = _finish_interrupted(recipe, out, resume, progress)
    if finished is not None:
        return finished
    job = _Job(recipe, progress, accept, device_called(device))
    with Publisher(out, overwrite) as publisher:
        if resume:
            require_begun(_work_folder(out))  # before anything is read
        job.open()
        with job.journal(out, resume) as journal:
            quantization = job.quantize_into(journal)
            _publish(publisher, journal, recipe, job.manifest(recipe.export))
    if evict:
        _evict(job.checkpoint.pulled, progress)
    return Outcome(publisher.out, quantization, None, job.seconds)


def _publish(publisher: Publisher, journal: Journal, recipe: Recipe, manifest: dict[str, Any]) -> None:
    """Give what the journal's directory holds its name, and remove the rest of that directory."""
    arrange(journal.output, recipe)

    def announce(whole: dict[str, Any], sha256: str) -> None:
        weights = whole["files"][data_name(recipe)]["sha256"]
        journal.announce(Publication(manifest=sha256, weights=weights, recipe=recipe.model_dump(mode="json")))

    publisher.publish(journal.output, manifest, announce)
    journal.finish()


def _finish_interrupted(recipe: Recipe, out: Path, resume: bool, progress: Progress) -> Outcome | None:
    """Tidy up after a run that was killed when it had published and had not tidied up; with `resume`, that is all.

    Raises:
        SourceError: `resume`, and that run was of another recipe.
    """
    work, out = _work_folder(out), Path(os.path.abspath(out))
    if not work.is_dir():
        return None
    with held(out), explained(out):
        clean_up(out)
        done = published(work, out)
        if done is None:
            return None
        remove_work(work)
    if not resume:
        return None
    differing = differences(done.recipe, recipe.model_dump(mode="json"))
    if differing:
        raise SourceError(
            f"{out} was published before its run was interrupted, from another recipe than this:\n  "
            + "\n  ".join(differing),
            hint="There is nothing left to go on with. Without --resume the recipe starts from its beginning.",
        )
    progress.note(f"{out} was published before its run was interrupted: there is nothing left to do.")
    opened = Artifact.open(out)
    opened.check()
    return Outcome(out, opened.quantization, opened.parity, {})


def _work_folder(out: Path) -> Path:
    out = Path(os.path.abspath(out))
    return out.parent / f".{out.name}.work"


def _evict(pulled: Pulled, progress: Progress) -> None:
    freed = evict_checkpoint(pulled)
    progress.note(f"{pulled.name} at {pulled.revision}: {freed / 1e6:,.1f} MB taken out of the cache")


def export(
    weights: Path,
    out: Path,
    *,
    rotary: str | None = None,
    accuracy_level: int | None = None,
    target: str | None = None,
    kv_cache: str | None = None,
    layout: str | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Outcome:
    """Build the graph over quantised weights (of `quantize`, or of another artifact), unverified."""
    source = Artifact.open(weights)
    source.check()
    changes = {
        "rotary": rotary, "accuracy_level": accuracy_level, "target": target, "kv_cache": kv_cache, "layout": layout,
    }  # fmt: skip
    chosen = source.recipe.export.model_dump() | {k: v for k, v in changes.items() if v is not None}
    try:
        known = located(source.recipe, source.manifest["source"]["commit"], source.folder, needed=())
        recipe = known.model_copy(update={"export": Export(**chosen)})
    except ValidationError as e:
        first = e.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            option = f"--{first['loc'][0]}".replace("_", "-")
            raise RecipeError(f"{option} {first['input']}: {reason}") from e
        raise RecipeError(f"these export options do not go together: {reason}") from e
    began = time.perf_counter()
    places = lay_out(source.config, recipe.quantize, recipe.export.dtype)
    require_fit(source.config, places, recipe.export)
    for warning in warnings(places, recipe.export):
        progress.note(warning)
    with Staging(out, overwrite) as staging:
        made_here = (MODEL, graph_name(source.recipe), GENAI, "parity.json", "report.html", "README.md")
        kept = [name for name in source.manifest["files"] if name not in made_here]
        with progress.track("Copying", len(kept), "files") as advance:
            for name in kept:
                to = staging.folder / (DATA_FILE if name == data_name(source.recipe) else name)
                to.parent.mkdir(exist_ok=True)
                shutil.copyfile(source.folder / name, to)
                advance(1)
        _save(build_decoder(source.config, places, recipe.export), staging.folder)
        _write_configs(staging.folder, source.config, recipe, source.generation)
        arrange(staging.folder, recipe)
        source.require_unchanged()
        carried: dict[str, Any] = {k: source.manifest[k] for k in ("source", "calibration") if k in source.manifest}
        staging.publish(_manifest(recipe, carried, recipe.export))
    return Outcome(staging.out, source.quantization, None, {"export": time.perf_counter() - began})


def verify(
    artifact: Path,
    *,
    tokens: int | None = None,
    against: Path | None = None,
    nearest: bool = False,
    per_token: Path | None = None,
    elsewhere: Elsewhere = HERE,
    device: DeviceName = "cpu",
    progress: Progress = SILENT,
) -> Parity:
    """Prove a published artifact against its source again, and put `parity.json` and the report into it.

    `against` is the parity.json of another artifact, to be compared with; `nearest` rounds the checkpoint to nearest
    and scores that beside GPTQ; `per_token` is a Parquet file to write, one row a token. `elsewhere`
    says where local sources lie now: they are accepted by the hashes that the artifact recorded. torch computes on
    `device`.

    Raises:
        EnvironmentProblem: `per_token` without pyarrow, or a `device` that is not there.
        RecipeError: `nearest` where nothing was rounded by GPTQ.
        SourceError: the checkpoint is another one or is not found; `against` is of another text or checkpoint.
        OutputError: the artifact cannot be written, or another process is writing to it.
        Unwritten: it, or `per_token`, could no longer be written when the proof was made.
    """
    computes = device_called(device)
    with nullcontext() if is_snapshot(artifact) else held(artifact):  # the cache is the client's: no lock file there
        return _verify_held(artifact, tokens, against, nearest, per_token, elsewhere, computes, progress)


def _verify_held(
    artifact: Path,
    tokens: int | None,
    against: Path | None,
    nearest: bool,
    per_token: Path | None,
    elsewhere: Elsewhere,
    computes: torch.device,
    progress: Progress,
) -> Parity:
    opened = Artifact.open(artifact)
    opened.require_graph()
    if opened.is_snapshot:
        progress.note(f"{opened.folder} lies in the hub's cache: the proof is printed and not put into it.")
    else:
        opened.require_writable()
    if per_token is not None:
        require_parquet()
    if nearest and not opened.recipe.uses_gptq:
        raise RecipeError(f"{artifact} was not rounded by GPTQ: there is nothing to set beside round-to-nearest")
    other = None if against is None else _read_parity(against)
    opened.check()
    recipe, origin = opened.recipe, opened.manifest["source"]
    recipe = located(recipe, origin["commit"], opened.folder, elsewhere)
    # Which weights these are was settled when the artifact was made.
    pulled = pull_checkpoint(_pinned(recipe, origin["commit"]), accept=Accept(duplicates="unasked"), progress=progress)
    source = open_checkpoint(require_recorded(pulled, origin, opened.config), progress)
    if (told := moved(recipe.model, origin["commit"], progress)) is not None:
        progress.note(told)
    section = recipe.verify if tokens is None else recipe.verify.model_copy(update={"tokens": tokens})
    windows = verify_windows(section, opened.tokenizer(), opened.config, progress)
    _tell_of_other_text(opened, windows, progress)
    places = lay_out(opened.config, recipe.quantize, recipe.export.dtype)
    reader = WeightsReader(opened.file(data_name(opened.recipe)), places, opened.config)
    check_graph(opened)
    model = onnx.load(opened.file(MODEL), load_external_data=False)
    subject = Subject(
        origin, source, reader, opened.config, model, opened.folder, recipe.quantize, recipe.export, computes
    )
    with tempfile.TemporaryDirectory(prefix="pythia-export-rtn-") as scratch, memory_of(computes):
        beside = _rounded_to_nearest(source, recipe, Path(scratch), progress) if nearest else None
        proof = prove(subject, windows, recipe.verify.gates, progress, nearest=beside, against=other)
        del beside  # unmapped before its folder goes
    _tell_of_another_models_text(proof.parity, opened.config, progress)
    described = checked(Origin, opened.manifest, opened.folder / MANIFEST)
    reports = _reports(described, opened.quantization, proof.parity)
    try:
        if not opened.is_snapshot:
            opened.replace_files({name: text.encode() for name, text in reports.items()})
        if per_token is not None:
            with explained(per_token):
                write_atomically(per_token, token_table(proof.figures, windows))
    except (OutputError, ResourceError) as e:
        raise Unwritten(e, proof.parity) from e
    return proof.parity


def _tell_of_another_models_text(parity: Parity, config: NeoXConfig, progress: Progress) -> None:
    """A model that has learnt anything does better than a guess; with another model's tokenizer none does."""
    nats, guess = parity.cost.nll_original, math.log(config.vocab_size)
    if nats > WORSE_THAN_CHANCE * guess:
        progress.note(
            f"The original itself reads the held-out text worse than by chance ({nats:.2f} nats a token; a guess among "
            f"{config.vocab_size:,} tokens has {guess:.2f}). Are tokenizer and text this model's?"
        )


def _tell_of_other_text(opened: Artifact, windows: Windows, progress: Progress) -> None:
    """As many tokens as the artifact was proved on before, and others: a file changed, or its path leads elsewhere."""
    try:
        before = opened.parity
    except IntegrityError as e:  # what is proved now takes its place
        progress.note(f"{e}: it is replaced")
        return
    if before is not None and before.corpus.tokens == windows.ids.size and before.corpus.sha256 != windows.sha256:
        progress.note(f"The held-out text ({windows.source}) is not what this artifact was proved on before.")


def _read_parity(path: Path) -> dict[str, Any]:
    """Another artifact's parity.json, or the artifact itself."""
    hint = "--against takes another artifact's parity.json."
    try:
        path = path / "parity.json" if path.is_dir() else path
        found = read_object(path, error=SourceError, hint=hint)
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file", hint=hint) from None
    except (OSError, ValueError) as e:  # a name that is too long, or of no file system
        raise SourceError(f"{shown(str(path))}: {getattr(e, 'strerror', None) or e}", hint=hint) from e
    check_comparable(found, str(path))
    return found


def _rounded_to_nearest(checkpoint: Checkpoint, recipe: Recipe, folder: Path, progress: Progress) -> WeightsReader:
    """The checkpoint on the artifact's own grids, without GPTQ."""
    asked = recipe.quantize
    rules = tuple(r.model_copy(update={"method": "rtn"}) if r.method == "gptq" else r for r in asked.override)
    method = "rtn" if asked.method == "gptq" else asked.method
    plain = asked.model_copy(update={"method": method, "override": rules, "bits_per_weight": None})
    places = lay_out(checkpoint.config, plain, recipe.export.dtype)
    path = folder / DATA_FILE
    with WeightsWriter(path, places) as writer:
        quantize_stream(checkpoint, plain, places, recipe.export.dtype, None, writer, progress)
    return WeightsReader(path, places, checkpoint.config)


@dataclass
class _Job:
    """One recipe on its way: what has been opened so far, and how long each stage took."""

    recipe: Recipe
    progress: Progress
    accept: Accept
    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

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
        exact = asked.exactly(self.checkpoint.dtype) if chosen.dtype == "float32" else asked
        if exact != asked:
            self.progress.note(f"Embedding and head are stored as float32: the weights are {self.checkpoint.dtype}.")
            self.recipe = self.recipe.model_copy(update={"quantize": exact})
        self.layout: Layout = lay_out(self.config, exact, chosen.dtype)
        require_fit(self.config, self.layout, self.recipe.export)
        require_overrides_match(self.config, self.recipe.quantize)
        self.calibration: Windows | None = None
        self.allocation: Allocation | None = None

    def journal(self, out: Path, resume: bool, held_out: Windows | None = None) -> Journal:
        """Beside the output, so that the weights need not be copied; reads the calibration text, part of the inputs.

        Raises:
            RecipeError: `held_out` is not.
        """
        with self.stage("text"):
            if self.recipe.calibration is not None and self.recipe.uses_gptq:
                text = self.recipe.calibration
                self.calibration = calibration_windows(text, self.tokenizer, self.config, self.progress)
                if held_out is not None:
                    require_held_out(held_out, self.calibration, self.progress)
        self._allocate()
        return Journal(_work_folder(out), self._fingerprint(), resume, self.progress)

    def _allocate(self) -> None:
        """Turn a budget of bits into a recipe that names the linears."""
        asked, calibration = self.recipe.quantize, self.calibration
        if asked.bits_per_weight is None:
            return
        assert calibration is not None and self.recipe.calibration is not None  # the schema sees to it
        with self.stage("allocate"), tempfile.TemporaryDirectory() as scratch:
            resolved, self.allocation = allocate(
                self.checkpoint, asked, self.recipe.export.dtype, calibration.ids,
                self.recipe.calibration.memory_gb, Path(scratch), self.progress, self.device,
            )  # fmt: skip
        self.recipe = self.recipe.model_copy(update={"quantize": resolved})
        self.layout = lay_out(self.config, resolved, self.recipe.export.dtype)

    def quantize_into(self, journal: Journal) -> Quantization:
        recipe = self.recipe
        ids = self.calibration.ids if self.calibration is not None else None
        memory_gb = recipe.calibration.memory_gb if recipe.calibration is not None else 0.0
        folder, keep = journal.output, bool(journal.finished)
        with self.stage("quantize"), WeightsWriter(journal.weights, self.layout, keep=keep) as writer:
            record = quantize_stream(
                self.checkpoint, recipe.quantize, self.layout, recipe.export.dtype, ids, writer, self.progress,
                memory_gb=memory_gb, journal=journal, device=self.device,
            )  # fmt: skip
        if self.allocation is not None:
            record["allocation"] = self.allocation.to_json()
        quantization = Quantization.model_validate(record)
        _write_json(folder / QUANTIZATION, quantization.to_json())
        _write_json(folder / "config.json", config_json(self.config, recipe))
        _write_json(folder / GENERATION, dict(self.checkpoint.generation.raw))
        for name, data in tokenizer_files(self.checkpoint.tokenizer_folder, self.config.max_positions).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        return quantization

    def _fingerprint(self) -> dict[str, Any]:
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
            model = build_decoder(self.config, self.layout, chosen)
            _save(model, folder)
            _write_configs(folder, self.config, self.recipe, self.checkpoint.generation)
        return model

    def reader(self, folder: Path) -> WeightsReader:
        return WeightsReader(folder / DATA_FILE, self.layout, self.config)

    def manifest(self, chosen: Export) -> dict[str, Any]:
        calibration = None
        if self.calibration is not None:
            windows, length = self.calibration.ids.shape
            calibration = {
                "source": self.calibration.source,
                "sha256": self.calibration.sha256,
                "windows": windows,
                "sequence_length": length,
                "end_tokens": self.calibration.end_tokens,
            }
        source = self.source | {"dtype": self.checkpoint.dtype} | self.checkpoint.pulled.record
        return _manifest(self.recipe, {"source": source, "calibration": calibration}, chosen)

    @property
    def source(self) -> dict[str, str]:
        pulled = self.checkpoint.pulled
        return {"name": pulled.name, "revision": pulled.revision, "commit": pulled.commit}


def _manifest(recipe: Recipe, carried: dict[str, Any], chosen: Export) -> dict[str, Any]:
    """What is published of a recipe; where its local files lie is kept on this machine alone."""
    source = carried["source"]
    remember(recipe, source["commit"])
    return {
        "versions": versions(),
        **carried,
        "source": source | {"name": last_part(source["name"]) if is_path(source["name"]) else source["name"]},
        "recipe": without_paths(recipe).model_dump(mode="json"),
        "layout": {"kv_cache": kv_cache(chosen), "kv_dtype": chosen.cache_dtype},
    }


def _write_configs(folder: Path, config: NeoXConfig, recipe: Recipe, generation: Generation) -> None:
    """What consumers read beside the graph."""
    _write_json(folder / "config.json", config_json(config, recipe))
    genai = genai_config_json(config, recipe, generation)
    if genai is not None:
        _write_json(folder / GENAI, genai)


def _probe() -> bytes:
    """The smallest graph that a session opens."""
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "probe", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


def _save(model: onnx.ModelProto, folder: Path) -> None:
    (folder / MODEL).write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(folder / MODEL), full_check=True)


def _reports(origin: Origin, quantization: Quantization, parity: Parity) -> dict[str, str]:
    return {
        "parity.json": json.dumps(parity.to_json(), indent=2, allow_nan=False) + "\n",
        "report.html": render_report(origin, quantization, parity),
        "README.md": model_card(origin, quantization, parity),
    }


def _write_reports(folder: Path, manifest: dict[str, Any], quantization: Quantization, parity: Parity) -> None:
    for name, text in _reports(Origin.model_validate(manifest), quantization, parity).items():
        (folder / name).write_text(text, encoding="utf-8")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _pinned(recipe: Recipe, commit: str) -> Any:
    """The recipe's model at the commit that the artifact was made from; a local directory has no history to go to."""
    if recipe.model.id in (None, "demo"):
        return recipe.model
    return recipe.model.model_copy(update={"revision": commit.partition("+")[0]})
