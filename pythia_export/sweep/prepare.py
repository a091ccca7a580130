"""From a sweep's file to its jobs: every checkpoint pinned to its commit, every text tokenised once and saved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from .. import hub
from ..base.errors import SourceError
from ..base.machine import now
from ..base.progress import SILENT, Progress
from ..checkpoint import commit_of_mean, tokenizer_of
from ..checkpoint import pull as pull_checkpoint
from ..corpus import Windows, calibration_windows, verify_windows
from ..corpus.overlap import require_held_out
from ..model import suite
from ..model.mean import is_mean, terms
from ..model.neox import NeoXConfig
from ..proof.autoencoder import autoencoders, fingerprint
from ..recipe import Model, Quantize, Recipe
from . import records
from .folder import Folder
from .jobs import Job, task_key, versions
from .records import SCHEMA, Facts, Manifest, Pinned, PinnedText
from .schema import SweepFile
from .snapshots import LeftOut, Snapshot, snapshots


@dataclass(frozen=True)
class Task:
    """A snapshot and its jobs."""

    key: str
    snapshot: Snapshot
    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Prepared:
    tasks: tuple[Task, ...]
    left_out: tuple[LeftOut, ...]

    @property
    def jobs(self) -> list[Job]:
        return [job for task in self.tasks for job in task.jobs]


def prepare(file: SweepFile, folder: Folder, progress: Progress = SILENT) -> Prepared:
    """Ask the hub, a call a model; tokenise; write `sweep.json` and the texts.

    Raises:
        RecipeError: the product is empty, or a recipe of it is none; an autoencoder of a place that a model lacks.
        SourceError: a model, a revision or a text cannot be had, or the models have different tokenizers.
    """
    members, left_out = snapshots(file.sweep)
    commits = _commits(members, progress)
    texts = _Texts(file, members, folder, progress)
    installed, tasks, pinned = versions(), [], []
    sae, features = file.verify.sae, _Features(file.verify.sae)
    for member, commit in zip(members, commits, strict=True):
        facts = facts_of(member)
        jobs = []
        for quantize in file.quantize:
            calibration, verify = texts.of(member, quantize)
            found = features.of(member.config, quantize)
            inside = file.verify.inside or sae is not None
            jobs.append(Job(member.model, commit, facts, quantize, calibration, verify, installed, inside, sae, found))
        key = task_key(facts, member.revision, commit)
        tasks.append(Task(key, member, tuple(jobs)))
        pinned.append(Pinned(name=member.name, revision=member.revision, commit=commit, task=key, facts=facts))
    folder.put_manifest(
        Manifest(
            version=SCHEMA,
            created=now(),
            versions=installed,
            sweep=file.model_dump(mode="json"),
            texts=texts.record,
            snapshots=pinned,
            left_out=[records.LeftOut(name=x.name, revisions=list(x.revisions), why=x.why) for x in left_out],
            jobs={task.key: [job.key for job in task.jobs] for task in tasks},
        )
    )
    return Prepared(tuple(tasks), tuple(left_out))


def facts_of(member: Snapshot) -> Facts:
    """Return what the results say of a snapshot."""
    vocab = member.config.vocab_size * member.config.hidden_size
    return Facts(
        name=member.name,
        size=member.size,
        family=member.family,
        data=member.data,
        seed=member.seed,
        step=member.step,
        training_tokens=member.tokens,
        learning_rate=member.learning_rate,
        parameters=member.config.parameters,
        non_embedding_parameters=member.config.parameters - 2 * vocab,
    )


def _commits(members: Sequence[Snapshot], progress: Progress) -> list[str]:
    """Return the commit of each snapshot: by one call per repository of the hub, or from the cache."""
    known: dict[str, dict[str, str]] = {}
    found = []
    with progress.track("Pinning", len(members), "checkpoints") as advance:
        for member in members:
            repo, revision = member.model.id, member.revision
            if repo is None:
                found.append(pull_checkpoint(member.model, progress=progress).commit)
            elif is_mean(revision):
                pythia = suite.find(repo)
                averaged = terms(revision, () if pythia is None else pythia.revisions)
                found.append(commit_of_mean([(t, _on_hub(repo, t.revision, known, progress)) for t in averaged]))
            else:
                found.append(_on_hub(repo, revision, known, progress))
            advance(1)
    return found


def _on_hub(repo: str, revision: str, known: dict[str, dict[str, str]], progress: Progress) -> str:
    """Return a revision's commit; `known` keeps what a repository's one call told."""
    if hub.offline():
        return hub.list_revision(repo, revision, progress=progress).commit
    if repo not in known:
        known[repo] = hub.branches(repo, progress)
    if revision not in known[repo]:
        raise SourceError(f"{repo}: the hub has no branch {revision}", hint="Leave it out of `sweep.revisions`.")
    return known[repo][revision]


class _Features:
    """Hashes of the autoencoders in a folder, for every kind of model once: they are read whole, and must fit it."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._found: dict[tuple[NeoXConfig, int], str] = {}

    def of(self, config: NeoXConfig, quantize: Quantize) -> str | None:
        if self._folder is None:
            return None
        asked = config, quantize.products
        if asked not in self._found:
            self._found[asked] = fingerprint(autoencoders(self._folder, *asked))
        return self._found[asked]


class _Texts:
    """The sections of the sweep as token windows, each once: only of training order do they differ by model."""

    def __init__(self, file: SweepFile, members: Sequence[Snapshot], folder: Folder, progress: Progress) -> None:
        self._file, self._folder, self._progress = file, folder, progress
        self.record: dict[str, PinnedText] = {}
        self._recipes: dict[tuple[str, Quantize], Recipe] = {}
        self._read: dict[str, str] = {}
        self._windows: dict[str, Windows] = {}
        self._held_out: set[tuple[str, str]] = set()
        self._members = {member.name: member for member in members}
        self._tokenizer, self._config = self._one_tokenizer()

    def of(self, member: Snapshot, quantize: Quantize) -> tuple[str | None, str]:
        """Hashes of the calibration text, None where none is read, and of the held-out text."""
        recipe = self._recipes.get((member.name, quantize))
        if recipe is None:
            recipe = self._recipes[member.name, quantize] = self._file.recipe(member.model, quantize)
        calibration = None
        if recipe.uses_gptq and recipe.calibration is not None:
            calibration = self._hash("calibration", recipe)
        verify = self._hash("verify", recipe)
        if calibration is not None and (verify, calibration) not in self._held_out:
            require_held_out(self._windows[verify], self._windows[calibration], self._progress)
            self._held_out.add((verify, calibration))
        return calibration, verify

    def _hash(self, name: str, recipe: Recipe) -> str:
        section = getattr(recipe, name)
        asked = name + section.model_dump_json()
        if asked not in self._read:
            windows: Windows = (
                calibration_windows(section, self._tokenizer, self._config, self._progress)
                if name == "calibration"
                else verify_windows(section, self._tokenizer, self._config, self._progress)
            )
            self._folder.put_text(windows)
            self._read[asked] = windows.sha256
            self._windows[windows.sha256] = windows
            tokens = int(windows.ids.size)
            self.record[windows.sha256] = PinnedText(section=name, source=windows.source, tokens=tokens)
        return self._read[asked]

    def _one_tokenizer(self) -> Any:
        """That of the first model, once it is seen that the others' vocabularies are the same."""
        first: tuple[str, str] | None = None
        for member in self._members.values():
            model = Model(id=member.model.id) if member.model.id not in (None, "demo") else member.model
            tokenizer, config = tokenizer_of(model, self._progress)
            vocabulary = _vocabulary(tokenizer)
            if first is None:
                first, found = (member.name, vocabulary), (tokenizer, config)
            elif vocabulary != first[1]:
                raise SourceError(
                    f"{member.name} has another tokenizer than {first[0]}: one text cannot be tokens of both",
                    hint="Make two sweeps of them.",
                )
        return found


def _vocabulary(tokenizer: Tokenizer) -> str:
    entries = sorted(tokenizer.get_vocab(with_added_tokens=False).items())
    return hashlib.sha256(json.dumps(entries).encode()).hexdigest()
