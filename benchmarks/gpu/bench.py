"""What a step is given: the device, sizes, and how to tell what was found."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from journal import Journal, shown

from pythia_export.base.native_library import kernels_path

ROOT = Path(__file__).resolve().parents[2]
EMULATED = ROOT / "build" / "kernels" / "libpythia_cuda_emulated.so"  # kernels/cuda/emulation.h
SCREEN: TextIO = sys.stdout  # of run.py; what libraries print goes to the step's log


@dataclass(frozen=True)
class Bench:
    """`out` is the folder of results; `work`, inside it, holds what one step makes and another reads."""

    step: str
    out: Path
    dry: bool
    journal: Journal

    @property
    def work(self) -> Path:
        folder = self.out / "work"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def device(self) -> str:
        """Where tensors lie whose addresses are given to the kernels: their emulation reads the CPU's memory."""
        return "cpu" if self.dry else "cuda"

    def sized(self, real: Any, dry: Any) -> Any:
        """The size of the real run, or the tiny one of a dry run."""
        return dry if self.dry else real

    def library(self) -> Path:
        """The kernels for a GPU, or their emulation, whether they are built or not."""
        return EMULATED if self.dry else kernels_path("cuda") or ROOT / "build" / "kernels-cuda" / "libpythia_cuda.so"

    def say(self, what: str, value: Any, unit: str = "") -> None:
        """Record a figure or a fact."""
        self._add(what, value, unit)

    def check(self, what: str, holds: bool, value: Any = None, unit: str = "") -> None:
        """Record something that has to hold; where it does not, the step has failed, and goes on."""
        self._add(what, value, unit, holds=bool(holds))

    def target(self, what: str, value: float, wanted: float, unit: str = "", *, at_most: bool = False) -> None:
        """Record a figure beside the one to reach. A dry run's sizes reach nothing, and nothing is wanted of it."""
        if self.dry:
            return self._add(what, value, unit)
        reached = value <= wanted if at_most else value >= wanted
        self._add(what, value, unit, wanted=f"{'≤' if at_most else '≥'} {wanted:g} {unit}".strip(), reached=reached)

    def has(self, what: str, there: bool) -> None:
        """Record whether something that later steps need is there."""
        self.journal.add(self.step, "has", what=what, value=bool(there))

    def _add(self, what: str, value: Any, unit: str, **more: Any) -> None:
        self.journal.add(self.step, "finding", what=what, value=value, unit=unit, **more)
        verdict = "" if more.get("holds", True) else "   WRONG"
        print(f"{self.step:12}  {what}: {shown(value)} {unit}{verdict}".rstrip(), file=SCREEN, flush=True)

    def failed(self) -> list[str]:
        """What did not hold since the step began."""
        rows = self.journal.rows(self.step)
        begun = max((i for i, row in enumerate(rows) if row["kind"] == "begin"), default=-1)
        return [row["what"] for row in rows[begun + 1 :] if row.get("holds") is False]

    def wait(self) -> None:
        """Until the GPU has done what it was asked."""
        if not self.dry:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], times: int = 50) -> float:
        """Seconds of one call of `work`: the median of five runs of so many calls, after a warm-up."""
        times = self.sized(times, 1)
        work()
        found = []
        for _ in range(self.sized(5, 1)):
            self.wait()
            began = time.perf_counter()
            for _ in range(times):
                work()
            self.wait()
            found.append((time.perf_counter() - began) / times)
        return statistics.median(found)

    @contextmanager
    def computing(self) -> Iterator[torch.device]:
        """Within, torch and pythia-export compute on the GPU, or on its emulation."""
        if self.dry:
            from dry import emulated

            with emulated(EMULATED) as device:
                yield device
        else:
            yield torch.device("cuda")
