"""Steps, each in a process of its own that is ended at its limit, within one budget of time."""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path

import bench as screens
from bench import Bench
from journal import DONE, FAILED, Journal
from plan import FORKS, GPU, Step

GRACE = 5  # seconds between asking a process to end and killing it; a kernel that hangs may hold it even then
RESERVE = 3  # seconds of the budget for the table


class Runner:
    """`probe` is the step that finds out whether the GPU still answers, after one that did not end by itself.
    `preloaded` are modules that the processes of steps begin with."""

    def __init__(self, journal: Journal, budget: float, dry: bool, probe: Step, preloaded: Sequence[str]) -> None:
        self._journal, self._dry, self._probe, self._preloaded = journal, dry, probe, list(preloaded)
        self._has_looked = False
        self._end = time.monotonic() + budget - RESERVE

    def run(self, steps: Sequence[Step], named: Sequence[str]) -> None:
        """The first step, which looks at what is there, comes in any case. Then come those that are named; where none
        is, those that were never begun, and after them those that did not end well."""
        first, *others = steps
        self._do(first)
        self._has_looked = True
        wanted = [step for step in others if step.name in named or not named]
        if not named:
            fresh = [step for step in wanted if self._journal.status(step.name) in (None, "interrupted")]
            again = [step for step in wanted if step not in fresh and self._journal.status(step.name) != DONE]
            wanted = fresh + again
        for step in wanted:
            self._do(step)

    def _do(self, step: Step) -> None:
        missing = [need for need in step.needs if not self._journal.has(need)]
        left = self._end - time.monotonic()
        if missing:
            return self._ended(step, "not possible", f"there is not: {'; '.join(missing)}")
        if left < step.least:
            return self._ended(step, "no time", f"{left:.0f} s are left, it takes {step.least:.0f} or more")
        limit = left if self._dry else step.limit  # a CPU that is busy with other work is no fault
        status = self._in_process(step, min(limit, left))
        if status in ("timed out", "crashed") and self._journal.has(GPU) and step != self._probe:
            self._journal.add(step.name, "has", what=GPU, value=False)  # until the probe says that it is
            self._do(self._probe)

    def _in_process(self, step: Step, limit: float) -> str:
        print(f"\n{step.name}: {step.settles} (at most {limit:.0f} s)", flush=True)
        self._journal.add(step.name, "begin", settles=step.settles, limit=round(limit))
        process, began = self._process(step), time.monotonic()
        process.start()
        try:
            process.join(limit)
        except KeyboardInterrupt:
            _kill(process)
            self._ended(step, "interrupted", "", time.monotonic() - began)
            raise
        seconds = time.monotonic() - began
        errors = [row["error"] for row in self._journal.rows(step.name, "error")]
        if process.exitcode is None:
            stuck = "" if _kill(process) else "; its process cannot be killed"
            status, why = "timed out", f"after {limit:.0f} s{stuck}"
        elif process.exitcode == 0:
            status, why = DONE, ""
        elif process.exitcode < 0:
            status, why = "crashed", signal.Signals(-process.exitcode).name
        else:
            status, why = FAILED, errors[-1] if errors else f"exit code {process.exitcode}"
        self._ended(step, status, why, seconds)
        if status != DONE:
            print(_last_lines(self._log(step)), flush=True)
        return status

    def _process(self, step: Step) -> BaseProcess:
        forks = self._has_looked and self._journal.has(FORKS)
        context = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            context.set_forkserver_preload(self._preloaded)
        copies = [path.parent for path in self._journal._copies]
        arguments = (step, self._journal.path.parent, copies, self._dry, self._log(step))
        return context.Process(target=run_step, args=arguments, name=step.name)

    def _log(self, step: Step) -> Path:
        return self._journal.path.parent / f"{step.name}.log"

    def _ended(self, step: Step, status: str, why: str, seconds: float | None = None) -> None:
        took = {} if seconds is None else {"seconds": round(seconds, 1)}
        self._journal.add(step.name, "end", status=status, why=why, **took)
        print(f"{step.name}: {status} {why}" + (f" ({seconds:.0f} s)" if seconds is not None else ""), flush=True)


def run_step(step: Step, out: Path, mirrors: list[Path], dry: bool, log: Path) -> None:
    """In the step's own process, at the head of a group of its own: what it starts ends with it."""
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    screens.SCREEN = os.fdopen(os.dup(1), "w", buffering=1)
    with log.open("wb", buffering=0) as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    faulthandler.enable()
    faulthandler.register(signal.SIGTERM, chain=True)  # where it was at its time limit
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the runner's
    bench = Bench(step.name, out, dry, Journal(out, *mirrors))
    try:
        if dry:
            import_module("dry")  # before the first gradient: then torch counts its devices
        step.function()(bench)
    except BaseException as e:
        traceback.print_exc()
        bench.journal.add(step.name, "error", error=f"{type(e).__name__}: {' '.join(str(e).split())[:600]}")
        sys.exit(1)
    print(f"{time.process_time():.1f} s of this process on processors")
    wrong = bench.failed()
    if wrong:
        bench.journal.add(step.name, "error", error=f"does not hold: {'; '.join(wrong)}")
    sys.exit(bool(wrong))


def _kill(process: BaseProcess) -> bool:
    """End a process and all that it started; False where it cannot be ended."""
    assert process.pid is not None
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        process.join(GRACE)
        if process.exitcode is not None:
            break
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it started and left
    return process.exitcode is not None


def _last_lines(log: Path, count: int = 12) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(f"    {line}" for line in lines[-count:])
