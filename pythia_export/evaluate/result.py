"""What an evaluation found: a row a task and metric, as a table shows it and as `eval --json` prints it."""

from __future__ import annotations

from ..records.manifest import Checkpoint
from ..records.record import Record


class Score(Record):
    """A value and its standard error; null where there is none."""

    value: float | None
    stderr: float | None


class _Named(Record):
    task: str
    metric: str
    filter: str


class Row(Score, _Named):
    """One metric of one task."""

    higher_is_better: bool | None
    samples: int | None
    published: Score | None
    """What EleutherAI published of the source, zero-shot and of the whole task."""


class Evaluation(Record):
    source: Checkpoint
    speed: str
    num_fewshot: int | None
    limit: int | None
    rows: list[Row]
    machine: str
    versions: dict[str, str]
    seconds: float
