"""The mean of several revisions: each is pulled and checked by itself, and tensors are averaged as they are read."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .. import hub
from ..base.errors import NumericsError, SourceError
from ..base.progress import Progress
from ..model.mean import Term, terms
from ..model.suite import find
from ..recipe import Model
from ..recipe.model import PLACE
from ..records.manifest import Averaged, Contents
from .pulled import Pulled
from .read import StoredTensor


def known_revisions(model: Model, demo: Path, config_name: str, progress: Progress) -> tuple[str, ...]:
    """Return the revisions that a range may mean, in no order: the suite's, the folders that there are, or branches."""
    if model.path is None and model.id != "demo":
        pythia = find(model.id)
        if pythia is not None and pythia.revisions:
            return pythia.revisions
        assert model.id is not None
        if ".." not in model.revision:
            return ()
        if hub.offline():
            raise SourceError(
                f"{model.id}: which steps are in {model.revision} cannot be asked offline",
                hint="Name each step: mean(step1000, step2000).",
            )
        return tuple(hub.branches(model.id, progress))
    pattern = str(demo / PLACE) if model.path is None else str(model.path)
    if PLACE not in pattern:
        raise SourceError(
            f"{pattern}: one folder; {model.revision} is made of several",
            hint=f"Say where the revision's name stands in the path: `runs/{PLACE}`, for example.",
        )
    before, _, after = pattern.partition(PLACE)
    parent = Path(before) if before.endswith(("/", "\\")) else Path(before).parent
    start, end = Path(before).name if not before.endswith(("/", "\\")) else "", re.split(r"[/\\]", after)[0]
    if not parent.is_dir():
        raise SourceError(f"{parent}: no such directory", hint="`path` is taken from the recipe's own folder.")
    alike = (re.fullmatch(f"{re.escape(start)}(.+){re.escape(end)}", entry.name) for entry in parent.iterdir())
    names = (match[1] for match in alike if match is not None)
    return tuple(name for name in names if Path(pattern.replace(PLACE, name), config_name).is_file())


def pull_mean(model: Model, known: Sequence[str], pull: Callable[[Model], Pulled], progress: Progress) -> Pulled:
    """Pull each revision of a mean by `pull`. What is no weight is that of the last one.

    Raises:
        RecipeError: no mean of revisions that there are.
        SourceError: two of them are one commit; what `pull` raises.
    """
    parts: list[tuple[Term, Pulled]] = []
    for term in terms(model.revision, known):
        place = {"path": model.folder(term.revision)} if model.path is not None else {}
        found = pull(model.model_copy(update={"revision": term.revision, "adapter": None, **place}))
        same = next((t.revision for t, pulled in parts if pulled.commit == found.commit), None)
        if same is not None:
            raise SourceError(
                f"{model.name}: {term.revision} and {same} are one checkpoint, {found.commit[:19]}",
                hint="Leave one of them out of the mean, or give the other more weight: step3000:2.",
            )
        parts.append((term, found))
    record = _averaged([(term, pulled.commit) for term, pulled in parts])
    last = parts[-1][1]
    files = {f"{p.revision}/{name}": digest for _, p in parts for name, digest in (p.record.files or {}).items()}
    formats = {p.record.format for _, p in parts}
    name = last.name if model.path is None else (_name(model.path) or last.name)
    progress.note(f"{name}: the mean of {len(parts)} revisions, {parts[0][0].revision} to {parts[-1][0].revision}")
    return replace(
        last,
        name=name,
        revision=model.revision,
        commit=_commit(record),
        record=Contents(format=formats.pop() if len(formats) == 1 else None, files=files or None, averaged=record),
        averaged=tuple((one.weight, pulled) for one, (_, pulled) in zip(record, parts, strict=True)),
    )


def commit_of_mean(commits: Sequence[tuple[Term, str]]) -> str:
    """Return the commit that `pull_mean` gives a mean of revisions at these commits."""
    return _commit(_averaged(commits))


def _averaged(commits: Sequence[tuple[Term, str]]) -> list[Averaged]:
    whole = sum(term.weight for term, _ in commits)
    # Rounded, so that shares read back from a record add up to the same shares.
    return [Averaged(revision=t.revision, commit=c, weight=round(t.weight / whole, 12)) for t, c in commits]


def _commit(averaged: Sequence[Averaged]) -> str:
    made_of = json.dumps([(one.commit, one.weight) for one in averaged])
    return f"mean:{hashlib.sha256(made_of.encode()).hexdigest()}"


def _name(path: Path) -> str:
    """Return the last part of a path that is no revision's: `runs` of `runs/{revision}`."""
    return next((part for part in reversed(path.absolute().parts[1:]) if PLACE not in part), "")


@dataclass(frozen=True)
class MeanTensor:
    """One tensor of a mean. `parts` are its share of 1 and where it is stored, for each revision."""

    parts: tuple[tuple[float, StoredTensor], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts[0][1].shape

    def read(self) -> Tensor:
        """Return the mean in float32, with one stored tensor beside it in memory; raises as `StoredTensor.read`."""
        mean = torch.zeros(self.shape, dtype=torch.float32)
        for share, stored in self.parts:
            mean.add_(stored.read(), alpha=share)
        if not torch.isfinite(mean).all():
            raise NumericsError(f"{self.parts[-1][1].name}: the mean of its revisions holds an infinity")
        return mean
