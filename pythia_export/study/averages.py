"""Means of checkpoints beside the last checkpoint of their run: what rounding costs each, and what that leaves."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from ..report import words
from .figures import Section, Table
from .rows import quoted

MOST_ROWS = 24
HEADS = (
    ("delta_nll", "dNLL, nats"),
    ("nll_original", "Loss before, nats"),
    ("nll_quantized", "Loss after, nats"),
    ("kld", "KL, nats"),
)


def averages(pairs: pa.Table) -> Section:
    """Return what the pairs say, and a table of them; an empty section where the sweep has no mean."""
    section = Section("Means of checkpoints")
    rows = pairs.to_pylist()
    if not rows:
        return section
    known = [row for row in rows if row["last_revision"] is not None]
    if known:
        section.sentences.append(
            "Weights averaged over checkpoints, beside the last checkpoint of the same run. Each figure is the mean’s "
            "less the last one’s, in nats a token on the same text: below zero the mean is better. Small, the 95 % "
            "interval of the difference, paired by document."
        )
        section.sentences += [_told(known, bits) for bits in dict.fromkeys(row["quantization"] for row in known)]
        section.table = Table(
            ("Mean", "Quantisation", *(head for _, head in HEADS)), [_cells(row) for row in known[:MOST_ROWS]]
        )
    if len(known) > MOST_ROWS:
        section.sentences.append(f"{len(known) - MOST_ROWS:,} more are in means.parquet.")
    alone = dict.fromkeys(f"{quoted(row['revision'])} of {quoted(row['name'])}" for row in rows if row not in known)
    section.sentences += [f"The sweep has no single checkpoint to set beside {mean}." for mean in alone]
    return section


def _told(rows: list[dict[str, Any]], quantization: str) -> str:
    own = [row for row in rows if row["quantization"] == quantization]
    cost, after, before = (_clear(own, name) for name in ("delta_nll", "nll_quantized", "nll_original"))
    means = f"{len(own)} mean{'' if len(own) == 1 else 's'}"
    return (
        f"At {quoted(quantization)}, clear of noise: rounding costs less for {cost[0]} of {means}, and more for "
        f"{cost[1]}; once rounded, {after[0]} predict better than the last checkpoint and {after[1]} worse; before, "
        f"{before[0]} better and {before[1]} worse."
    )


def _clear(rows: list[dict[str, Any]], name: str) -> tuple[int, int]:
    """Return how many are below zero and how many above, with all of their interval."""
    known = [row for row in rows if row[f"{name}_low"] is not None]
    return sum(row[f"{name}_high"] < 0 for row in known), sum(row[f"{name}_low"] > 0 for row in known)


def _cells(row: dict[str, Any]) -> list[tuple[str, str]]:
    cells = [(f"{row['revision']}", f"of {row['name']}, beside {row['last_revision']}"), (row["quantization"], "")]
    for name, _ in HEADS:
        ends = words.interval(row[f"{name}_low"], row[f"{name}_high"], _signed)
        cells.append((_signed(row[name]), ends))
    return cells


def _signed(x: float | None) -> str:
    return "" if x is None else f"{x:+.4f}".replace("-", "−")
