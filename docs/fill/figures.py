"""Figures that were measured: copied from the page where their command stands, or printed from a committed proof."""

from __future__ import annotations

import io
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def copied(page: str, name: str) -> str:
    """Return what stands between `<!-- begin: NAME -->` and `<!-- end: NAME -->` of another page."""
    text = (ROOT / page).read_text()
    found = re.search(rf"<!-- begin: {name} -->\n(.*?)<!-- end: {name} -->", text, re.DOTALL)
    if found is None:
        raise LookupError(f"{page} has no place called {name}")
    return found[1]


def verdict(folder: str) -> str:
    """Return what `run` prints of the records in a committed folder, as the terminal shows it."""
    from rich.console import Console

    from pythia_export.base.strict_json import read_json
    from pythia_export.records.parity import Parity
    from pythia_export.records.quantization import Quantization
    from pythia_export.records.record import checked
    from pythia_export.report import text

    where = ROOT / folder
    parity = checked(Parity, read_json(where / "parity.json"), folder)
    quantization = checked(Quantization, read_json(where / "quantization.json"), folder)
    terminal = Console(file=io.StringIO(), width=100, markup=False, highlight=False, emoji=False)
    terminal.print(text.verdict(parity, quantization))
    lines = terminal.file.getvalue().rstrip().splitlines()
    return "```text\n" + "\n".join(line.rstrip() for line in lines) + "\n```"


def rows(page: str, name: str, *wanted: str) -> str:
    """Return some rows of another page's table, by their first cells with commas between: `RTN, plain GPTQ, all`."""
    head, ruler, *lines = copied(page, name).strip().splitlines()
    by_label = {line.split("|")[1].strip(): line for line in lines}
    return "\n".join([head, ruler, *(by_label[label.strip()] for label in " ".join(wanted).split(","))])
