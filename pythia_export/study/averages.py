"""Means of checkpoints beside the last checkpoint of their run: what rounding costs each, and what that leaves."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..model.mean import is_mean
from .figures import DELTA, Section
from .rows import Rows, quantizations, quoted

MOST_SENTENCES = 24


def averages(rows: Rows) -> Section:
    """Return a sentence for each mean and quantisation; an empty section where the sweep has no mean."""
    section = Section("Means of checkpoints")
    rows = rows.where(rows["method"] != "none").known(DELTA)
    means = rows.where(np.array([is_mean(name) for name in rows["revision"].tolist()], dtype=bool))
    said: list[str] = []
    for quantization in quantizations(means) if len(means) else ():
        own = means.where(means["quantization"] == quantization)
        for i in range(len(own)):
            said.append(_beside(_one(own, i), _last(rows, own["name"][i], quantization)))
    section.sentences += said[:MOST_SENTENCES]
    if len(said) > MOST_SENTENCES:
        section.sentences.append(f"{len(said) - MOST_SENTENCES:,} more are in results.parquet.")
    return section


def _last(rows: Rows, name: Any, quantization: str) -> dict[str, Any] | None:
    """The row of a run's last step, as far as the sweep has one."""
    own = rows.where((rows["name"] == name) & (rows["quantization"] == quantization)).known("step")
    return _one(own, int(np.argmax(own["step"]))) if len(own) else None


def _one(rows: Rows, i: int) -> dict[str, Any]:
    return {name: values[i] for name, values in rows.columns.items()}


def _beside(mean: dict[str, Any], last: dict[str, Any] | None) -> str:
    what = f"{quoted(mean['revision'])} of {quoted(mean['name'])} at {quoted(mean['quantization'])}"
    cost = f"Rounding {what} costs {_cost(mean)}"
    if last is None:
        return f"{cost}. The sweep has no single checkpoint of this run to set beside it."
    apart = mean[f"{DELTA}_high"] < last[f"{DELTA}_low"] or mean[f"{DELTA}_low"] > last[f"{DELTA}_high"]
    verdict = (
        f"{'less' if mean[DELTA] < last[DELTA] else 'more'} by {abs(1 - mean[DELTA] / last[DELTA]):.0%}"
        if apart and last[DELTA] > 0
        else "the intervals overlap, so this text does not tell them apart"
    )
    return (
        f"{cost}; {quoted(last['revision'])} {_cost(last)}: {verdict}. "
        f"Rounded, it has {mean['nll_quantized']:.4f} nats a token, {quoted(last['revision'])} "
        f"{last['nll_quantized']:.4f}; before, {mean['nll_original']:.4f} and {last['nll_original']:.4f}."
    )


def _cost(row: dict[str, Any]) -> str:
    return f"{row[DELTA]:.4f} nats ({row[f'{DELTA}_low']:.4f} to {row[f'{DELTA}_high']:.4f})"
