"""`compare`: several artifacts on one text, beside the original that they were made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..artifact import Artifact
from ..base.compute import Compute
from ..base.errors import RecipeError, SourceError
from ..base.machine import machine, now, versions
from ..base.progress import SILENT, Progress
from ..checkpoint import Accept, Checkpoint, open_checkpoint, require_recorded
from ..checkpoint import pull as pull_checkpoint
from ..corpus import Windows, verify_windows
from ..proof.cost import corpus_of
from ..proof.pairs import pairs
from ..proof.reference import Reference
from ..proof.score import score
from ..proof.statistics import summarise
from ..recipe import Model, Verify
from ..records.comparison import COMPARISON_SCHEMA, Comparison, Contender
from ..records.parity import Mean, Scored
from ..report.words import treatment
from ..runtime import Session, check_graph
from ..weights.names import data_name
from .verify import is_its_own_original, pinned
from .whereabouts import located

_HOW = "--original MODEL names the float checkpoint of all of them; --first compares them with the first artifact."
_WORDS = ("bos_token_id", "eos_token_ids", "tied_head")  # of a configuration; none of the model's numbers


@dataclass(frozen=True)
class Text:
    """What they are compared on: a file or folder of texts in place of the first artifact's own, and how much of it."""

    path: Path | None = None
    tokens: int | None = None


def compare(
    artifacts: Sequence[Path],
    *,
    text: Text = Text(),  # noqa: B008 (it is frozen)
    original: Model | None = None,
    first: bool = False,
    progress: Progress = SILENT,
) -> Comparison:
    """Score artifacts on the same tokens, beside the original, and return what each lost and how each pair differs.

    The original is the one that all of them record, or `original`. With `first` the first artifact takes its place.

    Raises:
        RecipeError: fewer than two artifacts, or one twice.
        SourceError: artifacts of different originals, an original that is not found, vocabularies of different sizes,
            tokenizers that read the text differently.
    """
    if len(artifacts) < 2:
        raise RecipeError("compare takes two artifacts or more", hint="pythia-export compare A B")
    opened = {name: _opened(path) for name, path in zip(_names(artifacts), artifacts, strict=True)}
    every = list(opened.values())
    reference = None if first else _original(opened, original, progress)
    _require_one_vocabulary(opened)
    windows = _windows(opened, text, progress)
    sessions = {name: Session.open(artifact) for name, artifact in opened.items()}
    logits = {name: _logits(session, windows) for name, session in sessions.items()}
    if reference is None:
        of_baseline, name = logits[next(iter(opened))], next(iter(opened))
        contenders = dict(list(opened.items())[1:])
    else:
        compute = Compute(progress=progress)
        of_baseline = Reference(reference, every[0].config, windows.ids, "Original checkpoint", compute).logits
        name, contenders = f"{reference.pulled.name} at {reference.pulled.revision}", opened
    others = {one: logits[one] for one in contenders}
    begun = now()
    found = score(of_baseline, others, windows, "Artifacts beside each other", progress)
    scored = {one: summarise(figures, windows.n_bytes / windows.ids.size) for one, figures in found.items()}
    some = next(iter(scored.values()))
    return Comparison(
        version=COMPARISON_SCHEMA,
        versions=versions(),
        machine=machine(),
        created=begun,
        corpus=corpus_of(windows),
        clusters=some.clusters,
        tokens=some.tokens,
        baseline="first" if reference is None else "original",
        baseline_name=name,
        baseline_nll=some.nll_original,
        baseline_ppl=some.ppl_original,
        contenders=[_contender(one, opened[one], of) for one, of in scored.items()],
        pairs=pairs(scored),
    )


def _opened(path: Path) -> Artifact:
    artifact = Artifact.open(path)
    artifact.require_graph()
    artifact.check()
    check_graph(artifact)
    return artifact


def _names(artifacts: Sequence[Path]) -> list[str]:
    """Return the name of each folder; where two are called alike, as much of their paths as tells them apart.

    Raises:
        RecipeError: one is there twice.
    """
    whole = [path.absolute().resolve() for path in artifacts]
    twice = next((path for i, path in enumerate(whole) if path in whole[:i]), None)
    if twice is not None:
        raise RecipeError(f"{twice} is named twice; each artifact once was expected")
    return next(
        names
        for depth in range(1, max(len(path.parts) for path in whole) + 1)
        if len(set(names := ["/".join(path.parts[-depth:]) for path in whole])) == len(whole)
    )


def _logits(session: Session, windows: Windows) -> Callable[[int], np.ndarray]:
    return lambda i: session.logits(windows.ids[i : i + 1])[0]


def _windows(opened: dict[str, Artifact], text: Text, progress: Progress) -> Windows:
    """Return the text as every artifact reads it.

    Raises:
        SourceError: two read it differently.
    """
    first = next(iter(opened.values()))
    needed = () if text.path is not None else ("verify.path",)
    section = located(first.recipe, first.manifest.source.commit, first.folder, needed=needed).verify
    if text.path is not None:
        section = Verify(source="file", path=text.path.absolute(), tokens=section.tokens,
                         sequence_length=section.sequence_length, seed=section.seed)  # fmt: skip
    if text.tokens is not None:
        section = section.model_copy(update={"tokens": text.tokens})
    windows, read = None, dict[str, str]()  # by the tokenizer's file: the same file reads the same
    for name, artifact in opened.items():
        file = artifact.manifest.files["tokenizer.json"].sha256
        if file in read and artifact.config.max_positions >= section.sequence_length:
            continue
        found = verify_windows(section, artifact.tokenizer(), artifact.config, progress)
        if windows is not None and found.sha256 != windows.sha256:
            raise SourceError(
                f"{name} reads the text as other tokens than {next(iter(opened))}: losses per token cannot be compared",
                hint="Compare artifacts of one checkpoint.",
            )
        read[file], windows = name, windows or found
    assert windows is not None  # there are artifacts
    return windows


def _original(opened: dict[str, Artifact], given: Model | None, progress: Progress) -> Checkpoint:
    """Return the float checkpoint that stands for all.

    Raises:
        SourceError: they record different ones, or none; or it is not found.
    """
    name, first = next(iter(opened.items()))
    if given is None:
        _require_one_source(opened)
    origin = first.manifest.source
    accept = Accept(duplicates="unasked")
    if given is None:
        recipe = located(first.recipe, origin.commit, first.folder, needed=("model.path", "model.adapter"))
        pulled = pull_checkpoint(pinned(recipe, origin), accept=accept, progress=progress)
        source = open_checkpoint(require_recorded(pulled, origin, first.config), progress)
    else:
        source = open_checkpoint(pull_checkpoint(given, accept=accept, progress=progress), progress)
    for one, artifact in opened.items():
        a, b = asdict(source.config), asdict(artifact.config)
        other = [key for key in a if a[key] != b[key] and key not in _WORDS]
        if other:
            raise SourceError(
                f"{one} is not of {source.pulled.name}: {other[0]} is {b[other[0]]}, in the original {a[other[0]]}",
                hint=_HOW,
            )
    return source


def _require_one_vocabulary(opened: dict[str, Artifact]) -> None:
    """
    Raises:
        SourceError: two give logits of different tokens, whose distributions cannot be compared.
    """
    sizes = {name: artifact.config.vocab_size for name, artifact in opened.items()}
    first, size = next(iter(sizes.items()))
    other = next((name for name in sizes if sizes[name] != size), None)
    if other is not None:
        raise SourceError(
            f"{other} gives logits of {sizes[other]:,} tokens, {first} of {size:,}: one vocabulary was expected",
            hint="Compare artifacts of one checkpoint, or of models whose vocabularies are of one size.",
        )


def _require_one_source(opened: dict[str, Artifact]) -> None:
    own = next((name for name, artifact in opened.items() if is_its_own_original(artifact.manifest)), None)
    if own is not None:
        raise SourceError(f"{own} was imported without its original, so what it lost cannot be measured", hint=_HOW)
    commits = {name: artifact.manifest.source for name, artifact in opened.items()}
    name, of = next(iter(commits.items()))
    other = next((one for one, source in commits.items() if source.commit != of.commit), None)
    if other is not None:
        there = commits[other]
        raise SourceError(
            f"{name} was made of {of.name} at {of.revision} ({of.commit[:19]}), {other} of {there.name} at "
            f"{there.revision} ({there.commit[:19]})",
            hint=_HOW,
        )


def _contender(name: str, artifact: Artifact, scored: Scored) -> Contender:
    imported = artifact.manifest.imported
    return Contender(
        name=name,
        treatment=treatment(artifact.quantization),
        made_by="pythia-export" if imported is None else imported.tool or imported.format,
        bits_per_weight=artifact.layout.bits_per_weight,
        bytes=artifact.manifest.files[data_name(artifact.recipe)].size,
        nll=scored.nll_quantized,
        ppl=scored.ppl_quantized,
        delta_nll=scored.delta_nll,
        kld=Mean.model_validate(scored.kld.model_dump(include=set(Mean.model_fields))),
        same_top=scored.same_top,
    )
