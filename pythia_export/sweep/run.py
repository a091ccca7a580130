"""A sweep done: what is not done yet is ordered from an engine, and ordered again where that may help.

It may help a task that was killed from outside, and one that ran short of memory or time, which gets twice as much of
it. It does not help a bad recipe or a Hessian that is not positive definite: they would fail in the same way each time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ..base.errors import EnvironmentProblem, NumericsError, PythiaExportError, RecipeError, ResourceError
from ..base.progress import SILENT, Progress
from ..records.record import Json
from .engines import End, Engine, Inline, Local, Order
from .folder import Folder
from .plan import need
from .prepare import Task, prepare
from .schema import SweepFile
from .slurm import Slurm
from .work import failure

POLL_SECONDS = 1.0
GRACE, LEAST_HOURS = 3.0, 1 / 6  # of a task's time, over the estimate
THE_SAME_EACH_TIME = (RecipeError.exit_code, NumericsError.exit_code)


@dataclass(frozen=True)
class Outcome:
    """jobs: of the sweep; done: those that have a result, `did` of them by this run."""

    jobs: int
    done: int
    did: int
    failed: int
    seconds: float

    def to_json(self) -> Json:
        return asdict(self)


def run(
    file: SweepFile,
    folder: Folder,
    *,
    engine: Literal["inline", "local", "slurm"] = "inline",
    workers: int | None = None,
    again: bool = False,
    progress: Progress = SILENT,
) -> Outcome:
    """Raises:
    OutputError: another run holds the directory.
    RecipeError, SourceError: as `prepare`.
    EnvironmentProblem: the engine is not there.
    """
    began = time.perf_counter()
    with folder.held():
        kinds: dict[str, type[Inline | Local | Slurm]] = {"inline": Inline, "local": Local, "slurm": Slurm}
        at_work: Engine = kinds[engine](folder, file.resources, workers, file.sweep.evict, progress)
        prepared = prepare(file, folder, progress)
        every = {job.key for job in prepared.jobs}
        before = folder.done() & every
        orders = _orders(file, folder, prepared.tasks, before, again)
        wanted = {key for order in orders for key in order.keys}
        folder.forget_failures(wanted)
        folder.put_jobs(job for job in prepared.jobs if job.key in wanted)
        with progress.track("Sweep", len(every), "jobs") as advance:
            advance(len(before))
            _until_done(at_work, orders, folder, file.resources.attempts, before, every, advance)
        done, failed = folder.done() & every, folder.failed() & every
    return Outcome(len(every), len(done), len(done - before), len(failed - done), round(time.perf_counter() - began, 1))


def _orders(file: SweepFile, folder: Folder, tasks: Iterable[Task], done: set[str], again: bool) -> list[Order]:
    """One for each task that has jobs left, the smallest models first: what is wrong with a sweep shows early."""
    failed, found = folder.failed(), []
    for task in tasks:
        left = [job.key for job in task.jobs if job.key not in done]
        if not again:
            left = [key for key in left if key not in failed or not _hopeless(folder, key)]
        if left:
            wanted, given = need(file, task.snapshot), file.resources.hours
            hours = given if given is not None else max(LEAST_HOURS, GRACE * wanted.hours)
            found.append(Order(task.key, str(task.snapshot), tuple(left), wanted.memory_gb, hours))
    sizes = {task.key: task.snapshot.config.parameters for task in tasks}
    return sorted(found, key=lambda order: sizes[order.task])


def _hopeless(folder: Folder, key: str) -> bool:
    record = folder.failure(key)
    return record is not None and record.exit_code in THE_SAME_EACH_TIME


def _until_done(
    engine: Engine, orders: Sequence[Order], folder: Folder, attempts: int, before: set[str], every: set[str],
    advance: Any,
) -> None:  # fmt: skip
    seen = len(before)
    # Left by a driver that was killed; what the engine finds by itself, it waits for by itself.
    running = folder.running().keys()
    elsewhere = {order.task: order for order in orders if order.task in running - engine.found}
    try:
        engine.submit([order for order in orders if order.task not in elsewhere])
        while engine.busy or elsewhere:
            ended = engine.ended() if engine.busy else []
            if elsewhere:
                running = folder.running().keys()
                gone = [task for task in elsewhere if task not in running]
                ended += [(elsewhere.pop(task), "elsewhere") for task in gone]
            now = len(folder.done() & every)
            advance(now - seen)
            seen = now
            more = [_next(folder, order, how, attempts) for order, how in ended]
            engine.submit([order for order in more if order is not None])
            if not ended:
                time.sleep(POLL_SECONDS)
    finally:
        engine.close()
        advance(len(folder.done() & every) - seen)


def _next(folder: Folder, order: Order, how: End, attempts: int) -> Order | None:
    """What is to be ordered once more of a task that has ended; what is not is put down as failed."""
    left = [key for key in order.keys if folder.result(key) is None]
    if how == "elsewhere":
        left = [key for key in left if not _hopeless(folder, key)]
        folder.forget_failures(left)
        return replace(order, keys=tuple(left)) if left else None
    lost = [key for key in left if folder.failure(key) is None]
    short = [key for key in left if _code(folder, key) == ResourceError.exit_code]
    if short and how == "finished":
        how = "memory"
    retry = tuple(dict.fromkeys(lost + short))
    if not retry:
        return None
    if order.attempt < attempts:
        folder.forget_failures(retry)
        return replace(
            order, keys=retry, attempt=order.attempt + 1,
            memory_gb=order.memory_gb * (2 if how == "memory" else 1), hours=order.hours * (2 if how == "time" else 1),
        )  # fmt: skip
    for key in lost:
        folder.put_failure(key, failure(_given_up(how, order), order.attempt))
    return None


def _code(folder: Folder, key: str) -> int | None:
    record = folder.failure(key)
    return None if record is None else record.exit_code


def _given_up(how: End, order: Order) -> PythiaExportError:
    times = f"{order.attempt} attempt{'s' if order.attempt > 1 else ''}"
    if how == "memory":
        return ResourceError(
            f"not enough memory, at last with {order.memory_gb:.1f} GB ({times})",
            hint="Raise `resources.memory_gb`, or calibrate on fewer tokens.",
        )
    if how == "time":
        hours = f"{order.hours:.1f} h" if order.hours >= 1 else f"{math.ceil(60 * order.hours)} min"
        return ResourceError(f"not enough time, at last with {hours} ({times})", hint="Raise `resources.hours`.")
    if how == "finished":
        return EnvironmentProblem(
            f"its process failed ({times})", hint="`sweep logs` shows its last words; `sweep run` tries again."
        )
    return EnvironmentProblem(
        f"its process was ended from outside ({times})",
        hint="`sweep logs` shows its last words; `sweep run` tries again.",
    )
