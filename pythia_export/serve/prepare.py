"""An artifact made ready for a browser: graphs for WebAssembly and for WebGPU, over the weights where they lie.

Where a weight lies depends neither on the target nor on the form of attention, so any artifact in float32 can be
served: the graphs are built anew, in memory, in some milliseconds, and no weight is copied.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..artifact import Artifact
from ..base.errors import RecipeError
from ..graph.browser import UNPACKED_BYTES, require_keep, unpack, unpacked_bytes
from ..graph.decoder import build_decoder
from ..graph.targets import require_fit
from ..recipe import Export
from ..weights.names import DATA_FILE

State = tuple[int, int, int]
AGAIN = "End `pythia-export serve`, start it again, and open its page anew."


def state_of(file: Path | int) -> State:
    """Inode, size and time of the last change: while they are the same, a file is taken for the one that was hashed."""
    found = os.stat(file)
    return found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class WeightsFile:
    """The name by which the graph asks for the weights, and their size."""

    path: str
    bytes: int


@dataclass(frozen=True)
class About:
    """What the page is told of an artifact. `unpacked`: its weights are floats in the browser; `passed`: its proof,
    None without one."""

    name: str
    source: str
    treatment: str
    bits_per_weight: float
    unpacked: bool
    passed: bool | None
    weights: WeightsFile
    layers: int
    heads: int
    head_dim: int
    vocabulary: int
    positions: int
    ends: tuple[int, ...]


@dataclass(frozen=True)
class Ready:
    """What the page is told of the artifact in `folder` (`about`), and what it fetches; `states` of the files among
    that. `graph` is for WebAssembly; `packed`, for WebGPU, multiplies by the weights as they are packed."""

    folder: Path
    about: About
    graph: bytes
    packed: bytes
    weights: Path
    tokenizer: Path
    vocabulary: dict[str, int]
    states: dict[Path, State]


def ready(folder: Path) -> Ready:
    """Hash the artifact's files, and build its graphs for a browser.

    Raises:
        SourceError, IntegrityError: no artifact, or not what its manifest says.
        RecipeError: activations of float16, or weights beyond what a browser holds.
    """
    artifact = Artifact.open(folder)
    before = {path: state_of(path) for path in map(artifact.file, artifact.manifest.files)}
    artifact.check()
    recipe, config = artifact.recipe, artifact.config
    if recipe.export.dtype != "float32":
        raise RecipeError(
            f"{folder} computes in {recipe.export.dtype}, for {recipe.export.target}; WebAssembly runs float32",
            hint="Run its recipe with target = 'web' and dtype = 'float32'.",
        )
    export = Export(target="web", rotary=recipe.export.rotary)
    require_fit(config, artifact.layout, export)
    model = build_decoder(config, artifact.layout, export)
    require_keep(model)
    packed = bytes(model.SerializeToString())
    floats = unpacked_bytes(model)
    if floats <= UNPACKED_BYTES:
        unpack(model)

    source = artifact.manifest.source
    weights = artifact.weights_file
    about = About(
        name=artifact.folder.name,
        source=f"{source.name} at {source.revision}",
        treatment=_treatment(recipe.quantize.method, recipe.quantize.bits, recipe.quantize.group_size),
        bits_per_weight=artifact.layout.bits_per_weight,
        unpacked=floats <= UNPACKED_BYTES,
        passed=None if artifact.parity is None else artifact.parity.passed,
        weights=WeightsFile(DATA_FILE, weights.stat().st_size),
        layers=config.num_layers,
        heads=config.num_heads,
        head_dim=config.head_dim,
        vocabulary=config.vocab_size,
        positions=config.max_positions,
        ends=config.eos_token_ids,
    )
    vocabulary = artifact.tokenizer().get_vocab()
    graph = bytes(model.SerializeToString())
    tokenizer = artifact.file("tokenizer.json")
    states = {path: before[path] for path in (weights, tokenizer)}
    return Ready(artifact.folder, about, graph, packed, weights, tokenizer, vocabulary, states)


def require_comparable(first: Ready, second: Ready) -> None:
    """Two artifacts stand side by side only where a token is the same text in both.

    Raises:
        RecipeError: their tokenizers, or the widths of their vocabularies, differ.
    """
    a, b = first.about, second.about
    if first.vocabulary != second.vocabulary or a.vocabulary != b.vocabulary:
        raise RecipeError(
            f"{a.name} ({a.source}) and {b.name} ({b.source}) have other vocabularies, so their "
            "probabilities cannot be compared token by token",
            hint="Choose two artifacts of one checkpoint, or serve each by itself.",
        )


def _treatment(method: str, bits: int, group_size: int) -> str:
    if method == "none":
        return "not quantised"
    group = f"groups of {group_size}" if group_size > 0 else "one scale a row"
    named = {"gptq": "GPTQ", "imported": "imported"}.get(method, "round to nearest")
    return f"{named}, {bits} bits, {group}"
