"""Features over training: the share of a sparse autoencoder's active features that survive so many bits."""

from __future__ import annotations

import numpy as np

from . import plots
from .figures import Axis, Plot, Section, slug, training
from .induction import MOST_FACETS, MOST_LINES, mean_line
from .rows import Rows, lines, quantizations, quoted


def survival(rows: Rows) -> Section:
    """Return a plot for each run, a line for each quantisation; nothing where no autoencoder was given."""
    section, axis = Section("Features over training"), training(rows)
    known = rows.known(axis.column, "feature_survival")
    names = [name for name in lines(known) if known.where(known["line"] == name).distinct(axis.column) > 1]
    for name in names[:MOST_FACETS]:
        section.plots.append(_run(known.where(known["line"] == name), name, axis))
    if section.plots:
        section.sentences.append(
            "Of the features that are active in the original at a token, the share that are active in the quantised "
            "model too. An autoencoder of the last checkpoint explains earlier ones less well: read its unexplained "
            "variance in the table beside it."
        )
    return section


def _run(run: Rows, name: str, axis: Axis) -> Plot:
    shown = quantizations(run)[:MOST_LINES]
    drawn = []
    for shade, quantization in zip(plots.colours(len(shown)), shown, strict=True):
        part = run.where(run["quantization"] == quantization)
        drawn.append(mean_line(quantization, part[axis.column], part["feature_survival"], shade, "-"))
    least = int(run["feature_survival"].argmin())
    where = axis.at(float(run[axis.column][least]))
    caption = f"Fewest survive {quoted(str(run['quantization'][least]))} {where}: {run['feature_survival'][least]:.1%}."
    title, file = f"Features of {quoted(name)} that survive", slug("survival", name)
    svg = plots.curves(
        file, f"{title} against {axis.label}. {caption}", drawn, plots.tokens_scale(run[axis.column]),
        plots.cost_scale(np.concatenate([line.y for line in drawn]), np.array([0.01])), axis.label, "share surviving",
        axis.tick,
    )  # fmt: skip
    return Plot(file, title, svg, caption)
