"""Where tasks run: in this process, or in processes of this machine (slurm.py has those of a cluster). The results are
the same: an engine decides where and when `work` is called, and says how its process ended."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, Protocol

import torch

from ..base.device import device_called
from ..base.errors import EnvironmentProblem
from ..base.extras import install
from ..base.interpreter import isolated_environment
from ..base.machine import cores
from ..base.progress import Progress
from .folder import Folder
from .schema import Resources
from .work import work

# elsewhere: it was another run's, which had been killed; what it left is ordered as if for the first time.
End = Literal["finished", "memory", "time", "interrupted", "elsewhere"]

UNLIMITED_HOURS = 24.0 * 365
OUT_OF_MEMORY = re.compile(r"exceeded memory limit|oom[-_ ]kill|out of memory", re.IGNORECASE)
OUT_OF_TIME = re.compile(r"due to time limit|TimeIsOver", re.IGNORECASE)


@dataclass(frozen=True)
class Order:
    """A task's jobs that are left, and what it may use."""

    task: str
    title: str
    keys: tuple[str, ...]
    memory_gb: float
    hours: float
    attempt: int = 1


class Engine(Protocol):
    @property
    def busy(self) -> bool:
        """Something runs, or waits to."""
        ...

    @property
    def found(self) -> set[str]:
        """Tasks of an earlier run that it knows of, and waits for."""
        ...

    def submit(self, orders: Sequence[Order]) -> None: ...

    def ended(self) -> list[tuple[Order, End]]:
        """Since it was asked last."""
        ...

    def close(self) -> None:
        """The one who submits goes, whether all has ended or not."""
        ...


class Inline:
    """One task after another, in this process."""

    def __init__(
        self, folder: Folder, resources: Resources, workers: int | None, evict: bool, progress: Progress
    ) -> None:
        if workers not in (None, 1):
            raise EnvironmentProblem("--engine inline is one process", hint="--engine local has --workers.")
        device_called(resources.device)
        self._call = Call(folder, resources, evict)
        self._progress = progress
        self._left: list[Order] = []
        self.found: set[str] = set()

    @property
    def busy(self) -> bool:
        return bool(self._left)

    def submit(self, orders: Sequence[Order]) -> None:
        self._left += orders

    def ended(self) -> list[tuple[Order, End]]:
        order = self._left.pop(0)
        self._call(order, self._progress)
        return [(order, "finished")]

    def close(self) -> None:
        return None


class Call:
    """`work` with what all tasks of a sweep share; what submitit pickles."""

    def __init__(self, folder: Folder, resources: Resources, evict: bool) -> None:
        self._root, self._resources, self._evict = folder.root.resolve(), resources, evict

    def __call__(self, order: Order, progress: Progress | None = None, gpu: str | None = None) -> dict[str, int]:
        """`gpu`: the only one that this process is to see, as CUDA_VISIBLE_DEVICES has it."""
        told: dict[str, Any] = {} if progress is None else {"progress": progress}
        if gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        if progress is None:  # in a process of its own
            # submitit's handlers are an Exception, which would be taken for one of a job, and none.
            signal.signal(signal.SIGUSR2, _time_is_over)
            signal.signal(signal.SIGTERM, _told_to_end)
        return work(
            self._root, order.task, order.keys, cores=self._resources.cores, device=self._resources.device,
            evict=self._evict, attempt=order.attempt, **told,
        )  # fmt: skip


class TimeIsOver(BaseException):
    """The signal for it comes some seconds before a process is killed, so that it leaves no files behind. It is not an
    error of the job that is being done."""


def _time_is_over(*_: object) -> NoReturn:
    raise TimeIsOver


def _told_to_end(number: int, _: object) -> NoReturn:
    raise SystemExit(128 + number)


def how_it_ended(stderr: Path, result: Path) -> End:
    """By the last words on stderr, its own or of what killed it; `result` is there if it came to an end by itself."""
    last = stderr.read_text(encoding="utf-8", errors="replace")[-20_000:] if stderr.is_file() else ""
    if OUT_OF_MEMORY.search(last):
        return "memory"
    if OUT_OF_TIME.search(last):
        return "time"
    return "finished" if result.is_file() else "interrupted"


class Local:
    """Processes of this machine, by submitit's local executor; so many at once that cores and memory hold them,
    or one a GPU.

    They outlive a driver that is killed: what they find is kept, and the next one waits for them (`Folder.running`).
    Threads of one that waits for its turn yield the core to the others (OMP_WAIT_POLICY).
    """

    def __init__(
        self, folder: Folder, resources: Resources, workers: int | None, evict: bool, progress: Progress
    ) -> None:
        submitit = load_submitit()
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ.update(isolated_environment())  # submitit starts one with this process's own, and that one the next
        self._call = Call(folder, resources, evict)
        device_called(resources.device)
        self._gpus = visible_gpus() if resources.device == "cuda" else []
        fitting = len(self._gpus) or max(1, cores() // resources.cores)
        self._workers = workers if workers is not None else fitting
        self._memory_gb = memory_bytes() / 1e9
        # A controller's process number names its files: another run's must not be taken for this one's.
        self._executor = submitit.LocalExecutor(folder=folder.output(f"local-{int(time.time())}-{os.getpid()}"))
        self._limited = resources.hours is not None
        self._folder = folder
        self._left: list[Order] = []
        self._running: list[tuple[Order, Any, str | None]] = []  # an order, its process, and its GPU
        self.found: set[str] = set()

    @property
    def busy(self) -> bool:
        return bool(self._left or self._running)

    def submit(self, orders: Sequence[Order]) -> None:
        self._left += orders

    def ended(self) -> list[tuple[Order, End]]:
        found: list[tuple[Order, End]] = []
        for order, job, gpu in list(self._running):
            if job.done():
                self._running.remove((order, job, gpu))
                found.append((order, how_it_ended(job.paths.stderr, job.paths.result_pickle)))
        self._start()
        return found

    def _start(self) -> None:
        while self._left and len(self._running) < self._workers:
            held = sum(order.memory_gb for order, *_ in self._running)
            if self._running and held + self._left[0].memory_gb > self._memory_gb:
                return
            order = self._left.pop(0)
            self._executor.update_parameters(timeout_min=60 * (order.hours if self._limited else UNLIMITED_HOURS))
            taken = [gpu for *_, gpu in self._running]
            gpu = min(self._gpus, key=taken.count, default=None)
            job = self._executor.submit(self._call, order, gpu=gpu)  # it hides all GPUs from its processes
            self._folder.put_output(order.task, [str(job.paths.stdout), str(job.paths.stderr)])
            self._running.append((order, job, gpu))

    def close(self) -> None:
        for _, job, _ in self._running:
            job.cancel(check=False)
        while any(not job.done() for _, job, _ in self._running):
            time.sleep(0.1)


def load_submitit() -> Any:
    try:
        import submitit
    except ModuleNotFoundError as e:
        raise EnvironmentProblem(
            "sweeps in processes of their own are started by submitit, which is not installed",
            hint=f"{install('sweep')}. Or choose --engine inline.",
        ) from e
    return submitit


def visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES has them: by number, or by their long names."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    return told.split(",") if told else [str(i) for i in range(torch.cuda.device_count())]


def memory_bytes() -> int:
    """Return this machine's memory, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
