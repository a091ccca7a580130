"""Progress on a terminal: bars with the time that is left, and notes above them, all on stderr.

On a terminal the outermost bars stay once they are full, as a record of the stages; bars inside them go. Where stderr
is a file or a CI log nothing is drawn in place: each outermost stage writes one line when it ends.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Live
from rich.progress import Task as LiveTask
from rich.table import Column
from rich.text import Text

from ..base.progress import Advance

BYTES = ("B", "bytes")
# Steps can be minutes apart (a layer of 12b); rich forgets those older than this and would then not know the speed.
SPEED_WINDOW_SECONDS = 3600.0


class Bars:
    """A `Progress` for people: ``with Bars(Console(stderr=True)) as progress: ...``."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._depth = 0
        self._live = Live(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            _Count(Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            speed_estimate_period=SPEED_WINDOW_SECONDS,
            redirect_stdout=False,  # stdout is data
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    @contextmanager
    def track(self, title: str, total: int, unit: str = "") -> Iterator[Advance]:
        """A bar; inside another one it is indented, and gone when it ends."""
        nested = self._depth > 0
        task = self._live.add_task(escape("  " * self._depth + title), total=total, unit=unit)
        began, done = time.perf_counter(), 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            self._live.advance(task, n)

        self._depth += 1
        try:
            yield advance
        finally:
            self._depth -= 1
            if nested:
                self._live.remove_task(task)
            else:
                self._live.stop_task(task)
        if not nested and not self._console.is_terminal:
            seconds = time.perf_counter() - began
            self._console.print(
                f"{title}: {count(done, total, unit)} in {seconds:.1f} s", markup=False, highlight=False
            )

    def note(self, message: str) -> None:
        self._console.print(f"note: {message}", markup=False, highlight=False, soft_wrap=True)


class _Count(ProgressColumn):
    """Done, total and unit."""

    def render(self, task: LiveTask) -> Text:
        return Text(count(int(task.completed), int(task.total or 0), task.fields["unit"]), style="progress.download")


def count(done: int, total: int, unit: str) -> str:
    """``count(3, 24, "layers")`` is ``"3/24 layers"``; bytes are scaled."""
    if unit in BYTES:
        return f"{decimal(done)}/{decimal(total)}"
    return f"{done:,}/{total:,} {unit}".rstrip()
