"""`verify`: the proof of a published artifact, made again."""

from __future__ import annotations

import math
import tempfile
from contextlib import nullcontext
from pathlib import Path

import onnx
import torch

from ..artifact import Artifact, Parity, is_snapshot
from ..base.compute import Compute
from ..base.device import DeviceName, device_called, memory_of
from ..base.errors import IntegrityError, OutputError, PythiaExportError, RecipeError, ResourceError, SourceError
from ..base.progress import SILENT, Progress
from ..base.strict_json import read_object, shown
from ..calibrate import quantize_stream
from ..checkpoint import Accept, Checkpoint, moved, open_checkpoint, require_recorded
from ..checkpoint import pull as pull_checkpoint
from ..corpus import Windows, verify_windows
from ..disk import explained, held, write_atomically
from ..imported import open_imported
from ..model.mean import Term, written
from ..model.neox import NeoXConfig
from ..proof.against import comparable
from ..proof.autoencoder import autoencoders
from ..proof.prove import prove
from ..proof.subject import Subject
from ..proof.table import require_parquet, token_table
from ..recipe import Model, Recipe
from ..records.manifest import Manifest, Source
from ..runtime import check_graph
from ..weights.layout import layout
from ..weights.names import DATA_FILE, MODEL
from ..weights.reader import WeightsReader
from ..weights.writer import WeightsWriter
from .contents import reports
from .whereabouts import Elsewhere, located

HERE = Elsewhere()
WORSE_THAN_CHANCE = 1.1  # times the logarithm of the vocabulary: an untrained model has about 1


class Unwritten(PythiaExportError):
    """`fault`, after a proof was made: `parity` is that proof."""

    def __init__(self, fault: PythiaExportError, parity: Parity) -> None:
        super().__init__(str(fault), hint=fault.hint)
        self.exit_code = fault.exit_code
        self.parity = parity


def verify(
    artifact: Path,
    *,
    tokens: int | None = None,
    against: Path | None = None,
    nearest: bool = False,
    inside: bool = False,
    per_token: Path | None = None,
    elsewhere: Elsewhere = HERE,
    device: DeviceName = "cpu",
    progress: Progress = SILENT,
) -> Parity:
    """Prove a published artifact against its source again, and put `parity.json` and the report into it.

    `against` is the parity.json of another artifact, to be compared with; `nearest` rounds the checkpoint to nearest
    and scores that beside GPTQ; `inside` compares what is computed inside the model, which the recipe may ask for
    itself, and so do the sparse autoencoders of the recipe, or of `elsewhere`; `per_token` is a Parquet file to write,
    one row a token. `elsewhere` says where local sources lie now: they are accepted by the hashes that the artifact
    recorded. torch computes on `device`.

    Raises:
        EnvironmentProblem: `per_token` without pyarrow, or a `device` that is not there.
        RecipeError: `nearest` where nothing was rounded by GPTQ; an autoencoder of a place that the model lacks.
        SourceError: the checkpoint is another one or is not found; `against` is of another text or checkpoint.
        OutputError: the artifact cannot be written, or another process is writing to it.
        Unwritten: it, or `per_token`, could no longer be written when the proof was made.
    """
    computes = device_called(device)
    with nullcontext() if is_snapshot(artifact) else held(artifact):  # the cache is the client's: no lock file there
        return _verify_held(artifact, tokens, against, nearest, inside, per_token, elsewhere, computes, progress)


def _verify_held(
    artifact: Path,
    tokens: int | None,
    against: Path | None,
    nearest: bool,
    inside: bool,
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
    _ = opened.generation  # refuses an end token that the model does not have
    recipe, origin = opened.recipe, opened.manifest.source
    recipe = located(recipe, origin.commit, opened.folder, elsewhere)
    # Which weights these are was settled when the artifact was made.
    quantised = is_its_own_original(opened.manifest)
    accept = Accept(duplicates="unasked", quantised=quantised)
    pulled = pull_checkpoint(pinned(recipe, origin), accept=accept, progress=progress)
    pulled = require_recorded(pulled, origin, opened.config)
    source = open_imported(pulled, 8) if quantised else open_checkpoint(pulled, progress)
    if (told := moved(recipe.model, origin, progress)) is not None:
        progress.note(told)
    section = recipe.verify if tokens is None else recipe.verify.model_copy(update={"tokens": tokens})
    windows = verify_windows(section, opened.tokenizer(), opened.config, progress)
    _tell_of_other_text(opened, windows, progress)
    check_graph(opened)
    features = (
        () if recipe.verify.sae is None else autoencoders(recipe.verify.sae, opened.config, recipe.quantize.products)
    )
    model = onnx.load(opened.file(MODEL), load_external_data=False)
    subject = Subject(
        origin, source, opened.weights(), opened.config, model, opened.folder, recipe.quantize, recipe.export,
        "imported" if quantised else "original",
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="pythia-export-rtn-") as scratch, memory_of(computes):
        beside = None
        if nearest and isinstance(source, Checkpoint):
            beside = _rounded_to_nearest(source, recipe, Path(scratch), Compute(progress=progress))
        proof = prove(
            subject, windows, recipe.verify.gates, Compute(computes, progress), nearest=beside, against=other,
            inside=inside or recipe.verify.inside, autoencoders=features,
        )  # fmt: skip
        del beside  # unmapped before its folder goes
    tell_of_another_models_text(proof.parity, opened.config, progress)
    written = reports(opened.manifest, opened.quantization, proof.parity)
    try:
        if not opened.is_snapshot:
            opened.replace_files({name: text.encode() for name, text in written.items()})
        if per_token is not None:
            with explained(per_token):
                write_atomically(per_token, token_table(proof.figures, windows))
    except (OutputError, ResourceError) as e:
        raise Unwritten(e, proof.parity) from e
    return proof.parity


def is_its_own_original(manifest: Manifest) -> bool:
    """Return whether an artifact was imported without its original: the quantised checkpoint is its source then."""
    return manifest.imported is not None and manifest.imported.commit == manifest.source.commit


def tell_of_another_models_text(parity: Parity, config: NeoXConfig, progress: Progress) -> None:
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


def _read_parity(path: Path) -> Parity:
    """Another artifact's parity.json, or the artifact itself."""
    hint = "--against takes another artifact's parity.json."
    try:
        path = path / "parity.json" if path.is_dir() else path
        found = read_object(path, error=SourceError, hint=hint)
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file", hint=hint) from None
    except (OSError, ValueError) as e:  # a name that is too long, or of no file system
        raise SourceError(f"{shown(str(path))}: {getattr(e, 'strerror', None) or e}", hint=hint) from e
    return comparable(found, str(path))


def _rounded_to_nearest(checkpoint: Checkpoint, recipe: Recipe, folder: Path, compute: Compute) -> WeightsReader:
    """The checkpoint on the artifact's own grids, without GPTQ."""
    asked = recipe.quantize
    rules = tuple(r.model_copy(update={"method": "rtn"}) if r.method == "gptq" else r for r in asked.override)
    method = "rtn" if asked.method == "gptq" else asked.method
    plain = asked.model_copy(update={"method": method, "override": rules, "bits_per_weight": None})
    places = layout(checkpoint.config, plain, recipe.export.dtype)
    path = folder / DATA_FILE
    with WeightsWriter(path, places) as writer:
        quantize_stream(checkpoint, writer, None, compute)
    return WeightsReader(path, places)


def pinned(recipe: Recipe, origin: Source) -> Model:
    """The recipe's model at the commit that the artifact was made from; a local directory has no history to go to."""
    if recipe.model.id in (None, "demo"):
        return recipe.model
    commit = origin.commit.partition("+")[0]
    if origin.averaged:
        commit = written([Term(one.commit, one.weight) for one in origin.averaged])
    return recipe.model.model_copy(update={"revision": commit})
