"""How far a sweep is: from the names of files alone, so that it is quick however many results there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from ..base.errors import PythiaExportError, RecipeError
from ..records.record import Json
from .folder import Folder
from .records import LeftOut, Mark


@dataclass(frozen=True)
class Of:
    """Jobs of one model."""

    name: str
    jobs: int
    done: int
    running: int
    failed: int

    @property
    def waiting(self) -> int:
        return self.jobs - self.done - self.running - self.failed


@dataclass(frozen=True)
class Failed:
    key: str
    title: str
    exit_code: int
    message: str
    hint: str
    attempt: int


@dataclass(frozen=True)
class Status:
    models: tuple[Of, ...]
    failures: tuple[Failed, ...]
    running: Mapping[str, Mark]
    left_out: tuple[LeftOut, ...]

    @property
    def jobs(self) -> int:
        return sum(of.jobs for of in self.models)

    @property
    def done(self) -> int:
        return sum(of.done for of in self.models)

    def to_json(self) -> Json:
        return {
            "models": [asdict(of) for of in self.models],
            "failures": [asdict(failed) for failed in self.failures],
            "running": {task: mark.to_json() for task, mark in self.running.items()},
            "left_out": [entry.to_json() for entry in self.left_out],
            "jobs": self.jobs,
            "done": self.done,
        }


def status(folder: Folder) -> Status:
    manifest = folder.pinned()
    done, failed, running = folder.done(), folder.failed(), folder.running()
    counts: dict[str, list[int]] = {}
    failures = []
    for snapshot in manifest.snapshots:
        own = manifest.jobs[snapshot.task]
        count = counts.setdefault(snapshot.name, [0, 0, 0, 0])
        for key in own:
            state = 1 if key in done else 3 if key in failed else 2 if snapshot.task in running else None
            count[0] += 1
            if state is not None:
                count[state] += 1
            if state == 3:
                failures.append(key)
    models = tuple(Of(name, *count) for name, count in counts.items())
    return Status(models, tuple(_failed(folder, failures)), running, tuple(manifest.left_out))


def keys(folder: Folder) -> list[str]:
    """Return the keys of all jobs, in the sweep's order."""
    return folder.pinned().keys


def find(folder: Folder, beginning: str) -> str:
    """The one job whose key begins so.

    Raises:
        RecipeError: none, or several.
    """
    found = [key for key in keys(folder) if key.startswith(beginning)]
    if len(found) != 1:
        raise RecipeError(
            f"{len(found) or 'no'} jobs whose keys begin with {beginning!r}",
            hint="`pythia-export sweep status` lists those that failed; results.csv has all.",
        )
    return found[0]


def task_of(folder: Folder, key: str) -> str:
    return next(task for task, own in folder.pinned().jobs.items() if key in own)


def _failed(folder: Folder, failures: Iterable[str]) -> Iterable[Failed]:
    for key in failures:
        record = folder.failure(key)
        if record is not None:
            try:
                title = folder.job(key).title
            except PythiaExportError:  # perhaps that is what failed
                title = "a job whose file cannot be read"
            yield Failed(key, title, record.exit_code, record.message, record.hint, record.attempt)
