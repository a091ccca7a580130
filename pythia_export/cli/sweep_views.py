"""What `sweep` prints for people."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.padding import Padding
from rich.text import Text

from .tables import new_table, steps_shortened

if TYPE_CHECKING:
    from ..sweep import records
    from ..sweep.plan import Plan
    from ..sweep.run import Outcome
    from ..sweep.snapshots import LeftOut
    from ..sweep.status import Status

FAILURES_SHOWN = 10


def plan_view(plan: Plan) -> RenderableType:
    rows = new_table("", "Model", ">Checkpoints", ">Jobs", ">Done", ">To fetch", ">Memory", ">Time")
    for row in plan.rows:
        rows.add_row(
            _short(row.name), f"{row.checkpoints:,}", f"{row.jobs:,}", f"{row.done:,}", _bytes(row.fetch_bytes),
            f"{row.memory_gb:.1f} GB", ("" if row.measured else "~ ") + _hours(row.hours),
        )  # fmt: skip
    if len(plan.rows) > 1:
        rows.add_section()
        hours = sum(row.hours * row.checkpoints * (1 - row.done / row.jobs) for row in plan.rows)
        rows.add_row(
            "in all", f"{sum(r.checkpoints for r in plan.rows):,}", f"{plan.jobs:,}", f"{plan.done:,}",
            _bytes(sum(r.fetch_bytes for r in plan.rows)), "", f"~ {_hours(hours)}",
        )  # fmt: skip
    where = f"{plan.cores} cores" + (" and a GPU" if plan.device == "cuda" else "")
    said = (
        f"Memory and time are a task's: one checkpoint with its {len(plan.quantizations)} quantisations, on "
        f"{where}. The sum is what is left, one task after another. ~ is an estimate from operations alone."
    )
    return Group(
        rows, "", Text("Quantisations  " + ", ".join(plan.quantizations)), "", Text(said, style="dim"),
        *_left_out(plan.left_out),
    )  # fmt: skip


def run_view(outcome: Outcome, folder: Path) -> RenderableType:
    took = _hours(outcome.seconds / 3600)
    said = f"{outcome.done:,} of {outcome.jobs:,} jobs done, {outcome.did:,} of them now, in {took}"
    lines: list[RenderableType] = [Text(said)]
    if outcome.failed:
        lines.append(Text(f"{outcome.failed:,} failed: pythia-export sweep status {folder}", style="red"))
    if outcome.done:
        lines.append(Text(f"Report  pythia-export sweep report {folder}"))
    return Group(*lines)


def status_view(status: Status) -> RenderableType:
    rows = new_table("", "Model", ">Jobs", ">Done", ">Running", ">Waiting", ">Failed", "")
    for of in status.models:
        bar = "█" * int(20 * of.done / of.jobs) + "░" * (20 - int(20 * of.done / of.jobs))
        rows.add_row(
            _short(of.name), f"{of.jobs:,}", f"{of.done:,}", f"{of.running:,}", f"{of.waiting:,}", f"{of.failed:,}", bar
        )
    parts: list[RenderableType] = [rows]
    if len(status.models) > 1:
        rows.add_section()
        sums = [sum(getattr(of, x) for of in status.models) for x in ("jobs", "done", "running", "waiting", "failed")]
        rows.add_row("in all", *(f"{n:,}" for n in sums), f"{status.done / status.jobs:.0%}")
    if status.failures:
        parts += ["", Text("Failed", style="red")]
        for failed in status.failures[:FAILURES_SHOWN]:
            parts.append(Text(f"{failed.key}  {failed.title}"))
            parts.append(Padding(Text(f"exit code {failed.exit_code}: {failed.message}", style="dim"), (0, 0, 0, 18)))
        if (more := len(status.failures) - FAILURES_SHOWN) > 0:
            parts.append(Text(f"and {more:,} more: --json lists them"))
        parts.append(Text("`pythia-export sweep logs DIR KEY` shows more of one."))
    return Group(*parts, *_left_out(status.left_out))


def watched(look: Callable[[], Status], seconds: float) -> None:
    """Until nothing runs or waits, or somebody stops it."""
    with Live(auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while True:
            status = look()
            live.update(status_view(status), refresh=True)
            if not any(of.running or of.waiting for of in status.models):
                return
            time.sleep(seconds)


def _left_out(left_out: Iterable[LeftOut | records.LeftOut]) -> list[RenderableType]:
    lines = []
    for entry in left_out:
        lines.append(f"{entry.name} {steps_shortened(tuple(entry.revisions))}{entry.why}")
    if not lines:
        return []
    return [Text("\nLeft out:", style="yellow"), *(Padding(Text(x, style="yellow"), (0, 0, 0, 2)) for x in lines)]


def _short(name: str) -> str:
    """As `models` may say it: the longest names of the suite leave the other columns their 80."""
    return name.removeprefix("pythia-")


def _bytes(n: int) -> str:
    return decimal(n) if n else "nothing"


def _hours(hours: float) -> str:
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:,.0f} d"
