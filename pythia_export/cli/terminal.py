"""A terminal, or a file in its place, as rich draws on it. Apart, so that `--help` need not import rich."""

from __future__ import annotations

import os
import sys

from rich.console import Console


class Terminal(Console):
    def on_broken_pipe(self) -> None:
        raise  # rich would exit with 1, and what the exit code says is the command's to decide


def stdout() -> Console:
    # A pipe or a CI log has no width: rich would take 80 columns and cut the tables' last one.
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    width = None if on_terminal or "COLUMNS" in os.environ else 120
    return Terminal(markup=False, highlight=False, emoji=False, width=width)


def stderr() -> Console:
    return Terminal(stderr=True, emoji=False)
