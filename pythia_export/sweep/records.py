"""What a sweep's directory holds, as types: the sweep as it was pinned, results, failures, marks of tasks at work."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field, StringConstraints, model_validator

from ..base.errors import IntegrityError
from ..records.parity import Inside, Scored
from ..records.record import Count, Json, Record, Seconds, checked

SCHEMA: Literal[1] = 1
AGAIN = "Delete it; `sweep run` makes it again."
Schema = Annotated[Literal[1], Field(alias="schema")]
JobKey = Annotated[str, StringConstraints(pattern=r"^[\w-]{2,64}$")]  # its files are called by it


class Facts(Record):
    """What the results say of a snapshot; null where it is not known."""

    name: str
    size: str | None = None
    family: str | None = None
    data: str | None = None
    seed: int | None = None
    step: int | None = None
    training_tokens: int | None = None
    learning_rate: float | None = None
    parameters: int | None = None
    non_embedding_parameters: int | None = None


class Pinned(Record):
    """One snapshot of a sweep; `task` is what its jobs share."""

    name: str
    revision: str
    commit: str
    task: str
    facts: Facts | None = None  # earlier versions wrote none


class PinnedText(Record):
    section: str
    source: str
    tokens: Count


class LeftOut(Record):
    """Checkpoints that were asked for and are not measured."""

    name: str
    revisions: list[str]
    why: str


class Manifest(Record):
    """The content of sweep.json: the sweep as it was pinned."""

    version: Schema
    created: str
    versions: dict[str, str]
    sweep: Json  # the sweep's file
    texts: dict[str, PinnedText]  # by hash
    snapshots: list[Pinned]
    left_out: list[LeftOut]
    jobs: dict[str, Annotated[list[JobKey], Field(min_length=1)]]  # keys by task

    @model_validator(mode="after")
    def _tasks_have_jobs(self) -> Self:
        for snapshot in self.snapshots:
            if snapshot.task not in self.jobs:
                raise ValueError(f"`jobs` lacks the task {snapshot.task} of {snapshot.name} at {snapshot.revision}")
        return self

    @property
    def keys(self) -> list[str]:
        """Keys of all jobs, in the sweep's order."""
        return [key for snapshot in self.snapshots for key in self.jobs[snapshot.task]]


class Times(Record):
    """Seconds of a job: its share of what its task does once, quantising, scoring."""

    share: Seconds
    quantize: Seconds
    score: Seconds

    @property
    def total(self) -> float:
        return self.share + self.quantize + self.score


class Result(Record):
    """What came of one job."""

    version: Schema
    key: str
    job: Json
    bits_per_weight: float
    expected_cost: float | None
    residual_error: float | None
    cost: Scored
    seconds: Times
    peak_memory_bytes: Count
    threads: Count
    machine: str
    device: str
    when: str
    attempt: Count = 1
    inside: Inside | None = None  # earlier versions wrote none


class Failure(Record):
    """Why nothing came of one job."""

    version: Schema
    error: str
    exit_code: int
    message: str
    hint: str
    attempt: Count
    when: str


class Mark(Record):
    """Somebody works on a task."""

    jobs: Count
    attempt: Count
    pid: int
    host: str
    since: str


OfOneSchema = TypeVar("OfOneSchema", Manifest, Result, Failure)


def of_this_schema(kind: type[OfOneSchema], raw: Json, where: str, hint: str = AGAIN) -> OfOneSchema:
    """Return what one file of a sweep's directory holds.

    Raises:
        IntegrityError: it is of another version's schema, or lacks something.
    """
    if raw.get("schema") != SCHEMA:
        raise IntegrityError(
            f"{where}: schema {raw.get('schema')!r}; this version of pythia-export knows {SCHEMA}",
            hint="Go on with the version that began this sweep, or begin another.",
        )
    return checked(kind, raw, where, hint)
