"""Run tasks of lm-evaluation-harness on an artifact, and set published results of the original beside them."""

from __future__ import annotations

import difflib
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from requests.exceptions import RequestException

from ..artifact import Artifact
from ..base.errors import RecipeError, SourceError
from ..base.machine import machine, versions
from ..records.manifest import Checkpoint
from .model import PythiaOnnx
from .published import published
from .result import Evaluation, Row, Score


def evaluate(
    artifact: Path,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    native: bool = True,
) -> Evaluation:
    """`tasks` are the harness's names, groups too, or those of YAML files under `include_path`.

    Raises:
        RecipeError: a task of no such name.
        SourceError: a task's data cannot be had.
    """
    opened = Artifact.open(artifact)
    opened.require_graph()
    opened.check()
    source = opened.manifest.source
    manager = _tasks(tasks, include_path)
    model = PythiaOnnx(artifact, batch_size=batch_size, threads=threads, native=native)
    began = time.perf_counter()
    try:
        with redirect_stdout(sys.stderr):  # the harness prints; stdout is for the result
            found = simple_evaluate(
            model, tasks=list(tasks), num_fewshot=num_fewshot, limit=limit, task_manager=manager, log_samples=False,
            bootstrap_iters=1000,
        )  # fmt: skip
    except (OSError, RequestException) as e:  # the hub client's own are among them, and a file that is not there
        reason = " ".join(str(e).split())
        raise SourceError(
            f"the data of {', '.join(tasks)} cannot be had: {reason}",
            hint="Tasks of the harness take theirs from the hub; --include-path names a folder of your own tasks.",
        ) from e
    assert found is not None
    whole = limit is None and num_fewshot in (None, 0)
    return Evaluation(
        source=Checkpoint(name=source.name, revision=source.revision, commit=source.commit),
        speed=model.speed,
        num_fewshot=num_fewshot,
        limit=limit,
        rows=list(_rows(found, published(source.name, source.revision) if whole else {})),
        machine=machine(),
        versions=versions() | {"lm_eval": version("lm_eval")},
        seconds=round(time.perf_counter() - began, 1),
    )


def _tasks(wanted: Sequence[str], folder: Path | None) -> TaskManager:
    """Knows all that are wanted. The harness reads 14,000 of its own files for its index: only if one of them is."""
    if folder is not None:
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if all(own.match_tasks([task]) for task in wanted):
            return own
    every = TaskManager(include_path=None if folder is None else str(folder))
    for task in wanted:
        if not every.match_tasks([task]):
            near = difflib.get_close_matches(task, every.all_tasks, 3)
            raise RecipeError(
                f"no task {task!r} among {len(every.all_tasks):,}",
                hint=(f"Did you mean {', '.join(near)}? " if near else "") + "`lm-eval ls tasks` lists the harness's.",
            )
    return every


def _rows(found: Any, known: dict[tuple[str, str], tuple[float, float]]) -> Iterator[Row]:
    for task, figures in found["results"].items():
        better, samples = found["higher_is_better"].get(task) or {}, found.get("n-samples", {}).get(task) or {}
        for key, value in figures.items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = figures.get(f"{metric}_stderr,{chosen}")
            there = known.get((task, metric))
            yield Row(
                task=task,
                metric=metric,
                filter=chosen,
                value=_finite(value),
                stderr=_finite(stderr),
                higher_is_better=better.get(metric),
                samples=samples.get("effective"),
                published=None if there is None else Score(value=there[0], stderr=there[1]),
            )


def _finite(x: Any) -> float | None:
    return float(x) if isinstance(x, int | float) and math.isfinite(x) else None
