"""Induction over training: the best head's score of the original, and of what was quantised to so many bits."""

from __future__ import annotations

import math

import numpy as np

from . import plots
from .figures import Axis, Plot, Section, slug, training
from .plots import DASHES, Line
from .rows import Floats, Rows, lines, quantizations, quoted

MOST_FACETS, MOST_LINES = 12, 8


def induction(rows: Rows) -> Section:
    """Return a plot for each run, a line for each quantisation; nothing where the sweep did not look inside."""
    section, axis = Section("Induction over training"), training(rows)
    known = rows.known(axis.column, "induction", "induction_original")
    names = [name for name in lines(known) if known.where(known["line"] == name).distinct(axis.column) > 1]
    for name in names[:MOST_FACETS]:
        section.plots.append(_run(known.where(known["line"] == name), name, axis))
    if section.plots:
        section.sentences.append(
            "The largest induction score of a head: attention from a repeated random token to the one that followed it "
            "the first time. Models learn this suddenly, and in-context learning with it."
        )
    return section


def _run(run: Rows, name: str, axis: Axis) -> Plot:
    shown = quantizations(run)[:MOST_LINES]
    shades = plots.colours(len(shown) + 1)
    drawn = [mean_line("original", run[axis.column], run["induction_original"], shades[0], DASHES[1])]
    worst, most = "", 0.0
    for shade, quantization in zip(shades[1:], shown, strict=True):
        part = run.where(run["quantization"] == quantization)
        drawn.append(mean_line(quantization, part[axis.column], part["induction"], shade, "-"))
        lost = part["induction_original"] - part["induction"]
        if lost.max() > most:
            where = axis.at(float(part[axis.column][lost.argmax()]))
            worst, most = f"{quoted(quantization)} {where}", float(lost.max())
    best = int(run["induction_original"].argmax())
    caption = f"The original reaches {run['induction_original'][best]:.2f} {axis.at(float(run[axis.column][best]))}"
    caption += f"; {worst} loses most, {most:.2f}." if worst else "; no quantisation loses any of its score."
    title = f"Induction score of {quoted(name)}"
    file = slug("induction", name)
    scores = np.concatenate([line.y for line in drawn])  # from 0 to 1: a share, of which a logarithm hides what is lost
    svg = plots.curves(
        file, f"{title} against {axis.label}. {caption}", drawn, plots.tokens_scale(run[axis.column]),
        plots.Scale(min(0.0, float(scores.min())), 1.1 * float(scores.max()), math.inf), axis.label, "induction score",
        axis.tick,
    )  # fmt: skip
    return Plot(file, title, svg, caption)


def mean_line(label: str, x: Floats, y: Floats, colour: str, dash: object) -> Line:
    """Return a line through the mean at each x: seeds of one size share it."""
    at, of, counts = np.unique(x, return_inverse=True, return_counts=True)
    nowhere = np.full(len(at), np.nan)
    return Line(label, at, np.bincount(of, y) / counts, nowhere, nowhere, colour, dash)
