"""What a run finds: JSON lines, appended and on the disk before the next step goes on, and the table made of them.

Every line has `step`, `kind` and `time` (UTC). The kinds:

- `run`: a call of run.py began; its arguments.
- `has`: something that later steps need is there, or is not (`what`, `value` true or false).
- `finding`: a figure or a fact (`what`, `value`, `unit`). `holds` false means that something is wrong. `wanted` is the
  figure to reach and `reached` says whether it was: a slow kernel is no broken one.
- `end`: a step ended; `status` is one of STATUSES, `why` explains it, `seconds` is the time that it took.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

DONE, FAILED = "done", "failed"
STATUSES = {
    DONE: "ran to its end, and all that it checked holds",
    FAILED: "something that it checked is wrong, or it ended with an error",
    "timed out": "was ended at its time limit",
    "crashed": "ended by a signal",
    "interrupted": "the whole run was ended from outside",
    "no time": "was not begun: too little of the budget was left",
    "not possible": "was not begun: something that it needs is not there",
}
FILE = "results.jsonl"


class Journal:
    """One JSON-lines file, and copies of it in other folders."""

    def __init__(self, folder: Path, *mirrors: Path) -> None:
        self.path = folder / FILE
        self._copies = [mirror / FILE for mirror in mirrors]
        for path in (self.path, *self._copies):
            path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._end_last_line()
            for copy in self._copies:
                copy.write_bytes(self.path.read_bytes())

    def add(self, step: str, kind: str, **row: Any) -> None:
        """Append a line to every file; it is on the disk when this returns."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        line = json.dumps({"step": step, "kind": kind, "time": now} | row, ensure_ascii=False) + "\n"
        for path in (self.path, *self._copies):
            with path.open("ab", buffering=0) as file:
                file.write(line.encode())
                os.fsync(file.fileno())

    def rows(self, step: str | None = None, kind: str | None = None) -> list[dict[str, Any]]:
        """The lines, the oldest first. One that was cut short by the end of a machine is left out."""
        found = []
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if step in (None, row["step"]) and kind in (None, row["kind"]):
                found.append(row)
        return found

    def status(self, step: str) -> str | None:
        """How the step ended when it was last begun; None where it never was."""
        begun = [row["status"] for row in self.rows(step, "end") if row["status"] not in ("no time", "not possible")]
        return begun[-1] if begun else None

    def has(self, what: str) -> bool:
        """Whether something is there, by the newest line that says so."""
        said = [row["value"] for row in self.rows(kind="has") if row["what"] == what]
        return bool(said and said[-1])

    def _end_last_line(self) -> None:
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            with self.path.open("ab") as file:
                file.write(b"\n")


def table(journal: Journal, steps: list[str]) -> str:
    """The newest findings of each step, in Markdown."""
    lines = ["| step | what | found | wanted | |", "|---|---|---|---|---|"]
    for step in steps:
        lines += _lines_of(step, _newest(journal.rows(step)))
    return "\n".join(lines)


def _newest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of the last time that a step was begun, and its end."""
    begun = [i for i, row in enumerate(rows) if row["kind"] == "begin"]
    return rows[begun[-1] :] if begun else rows[-1:]


def _lines_of(step: str, rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        if row["kind"] == "finding":
            verdict = {True: "holds", False: "**WRONG**", None: ""}[row.get("holds")]
            if row.get("reached") is not None:
                verdict = "reached" if row["reached"] else "below"
            found = f"{shown(row.get('value'))} {row.get('unit', '')}".strip()
            yield f"| {step} | {row['what']} | {found} | {row.get('wanted', '')} | {verdict} |"
    end = rows[-1] if rows and rows[-1]["kind"] == "end" else {"status": "not begun"}
    seconds = f"{end['seconds']:.0f} s" if "seconds" in end else ""
    yield f"| {step} | **{end['status']}** {_one_line(end.get('why', ''))} | {seconds} | | |"


def shown(value: Any) -> str:
    """A value as the table and the screen show it."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "" if value is None else _one_line(str(value))


def _one_line(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:240]
