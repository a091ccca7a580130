"""Which plots a report has, and one sentence of each about what it shows. What cannot be drawn is said instead."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
from markupsafe import Markup
from scipy.stats import t as student

from ..report.svg import tick_label
from ..report.words import power
from . import plots
from .law import Fit, rank_correlation
from .plots import DASHES, Line, Scale
from .rows import Rows, amount, lines, quantizations, quoted

MOST_FACETS, MOST_LINES, MOST_SUBSETS, MOST_COLUMNS, MOST_DOTS = 12, 16, 8, 160, 900
DELTA, KL = "delta_nll", "kld"
NAMES = {DELTA: "dNLL, nats a token", KL: "KL, nats a token"}


@dataclass(frozen=True)
class Plot:
    """slug: of its file, plots/SLUG.svg."""

    slug: str
    title: str
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Table:
    """A cell is a figure or a name, and what stands small below it."""

    heads: tuple[str, ...]
    rows: list[list[tuple[str, str]]]


@dataclass
class Section:
    """sentences: before the plots and the table, or in their place."""

    heading: str
    sentences: list[str] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    table: Table | None = None


@dataclass(frozen=True)
class Axis:
    """What stands for training: tokens, or steps where no tokens are known."""

    column: str
    label: str
    tick: Callable[[float], str]

    def at(self, x: float) -> str:
        """``at 300 B tokens``, ``at step 4000``"""
        return f"at {amount(x)} tokens" if self.column == "training_tokens" else f"at step {x:,.0f}"


def training(rows: Rows) -> Axis:
    if np.isfinite(rows["training_tokens"]).any() or not np.isfinite(rows["step"]).any():
        return Axis("training_tokens", "training tokens", amount)
    return Axis("step", "training step; tokens are not known", lambda x: f"{x:,.0f}")


@dataclass(frozen=True)
class Style:
    """The colour of each line by its size, and a dash that tells lines of one size apart."""

    colour: dict[str, str]
    dash: dict[str, Any]

    @classmethod
    def of(cls, rows: Rows) -> Style:
        names = lines(rows)
        sizes = {name: rows["size"][rows["line"] == name][0] for name in names}
        order = list(dict.fromkeys(sizes.values()))
        shades = plots.colours(len(order))
        seen: dict[Any, int] = {}
        dash = {}
        for name in names:
            dash[name] = DASHES[seen.get(sizes[name], 0) % len(DASHES)]
            seen[sizes[name]] = seen.get(sizes[name], 0) + 1
        return cls({name: shades[order.index(sizes[name])] for name in names}, dash)


def drawn(rows: Rows, column: str, metric: str, label: str, colour: str, dash: Any = "-") -> Line:
    """A line of means; its band is the t interval of the runs' mean where there are three or more, the runs' range
    where there are two, and the row's own interval, clustered by document, of a single one."""
    x, of, counts = np.unique(rows[column], return_inverse=True, return_counts=True)
    values = rows[metric]
    mean = np.bincount(of, values) / counts
    low, high = np.full(len(x), np.nan), np.full(len(x), np.nan)
    one = counts[of] == 1
    low[of[one]], high[of[one]] = rows[f"{metric}_low"][one], rows[f"{metric}_high"][one]
    if (counts > 1).any():
        least, most = np.full(len(x), np.inf), np.full(len(x), -np.inf)
        np.minimum.at(least, of, values)
        np.maximum.at(most, of, values)
        low[counts == 2], high[counts == 2] = least[counts == 2], most[counts == 2]
        many = counts > 2
        square = np.bincount(of, (values - mean[of]) ** 2)[many] / (counts[many] - 1)
        half = student.ppf(0.975, counts[many] - 1) * np.sqrt(square / counts[many])
        low[many], high[many] = mean[many] - half, mean[many] + half
    return Line(label, x, mean, low, high, colour, dash)


def bands(rows: Rows, column: str) -> str:
    """How the bands of `drawn` were made."""
    known = rows.known(column)
    keys = [*zip(known["line"].tolist(), known["quantization"].tolist(), known[column].tolist(), strict=True)]
    counts = {keys.count(key) for key in keys} if len(keys) < 64 else set(_counts(keys).values())
    said = []
    if 1 in counts:
        said.append("the 95 % interval of the row, clustered as the text is (one run)")
    if 2 in counts:
        said.append("the range (two runs)")
    if any(n > 2 for n in counts):
        said.append("the 95 % t interval of the mean over runs (three or more seeds)")
    return f"A band is {', or '.join(said)}." if said else ""


def _counts(keys: list[Any]) -> dict[Any, int]:
    found: dict[Any, int] = {}
    for key in keys:
        found[key] = found.get(key, 0) + 1
    return found


def over_training(rows: Rows, metric: str) -> Section:
    """A facet a quantisation, a line a size."""
    axis = training(rows)
    section = Section({DELTA: "Cost over training", KL: "KL divergence over training"}[metric])
    known = rows.known(axis.column, metric)
    if known.distinct(axis.column) < 2:
        section.sentences.append(_no_curve(rows, axis))
        return section
    if lost := len(rows) - len(known):
        section.sentences.append(f"{lost:,} of {len(rows):,} rows have no {axis.label.partition(';')[0]} or no figure, "
                                 "and are not here.")  # fmt: skip
    section.sentences.append(bands(known, axis.column))
    if metric == DELTA and (known[DELTA] <= 0).any():
        section.sentences.append("Where costs reach zero or less, which noise makes of small ones, the axis is linear "
                                 "in its shaded part and logarithmic beyond.")  # fmt: skip
    style = Style.of(rows)
    scale = plots.tokens_scale(known[axis.column])
    for name, facet in _facets(known, section):
        every = [drawn(part, axis.column, metric, label, style.colour[label], style.dash[label])
                 for label, part in _lines(facet)]  # fmt: skip
        title = f"{NAMES[metric].partition(',')[0]} at {quoted(name)}"
        caption = _from_to(every, axis, metric)
        svg = plots.curves(
            slug(metric, "tokens", name), f"{title} against {axis.label}. {caption}", every, scale,
            plots.cost_scale(facet[metric], facet[f"{metric}_se"]), axis.label, NAMES[metric], axis.tick,
        )  # fmt: skip
        section.plots.append(Plot(slug(metric, "tokens", name), title, svg, caption))
    return section


def over_rate(rows: Rows) -> Section:
    """Cost against the learning rate, joined in the order of training; and the rate against tokens."""
    axis, section = training(rows), Section("Cost against the learning rate")
    known = rows.known(axis.column, "learning_rate", DELTA)
    if known.distinct("learning_rate") < 2:
        section.sentences.append(
            "No learning rate is known: training.json beside a checkpoint of one's own may say it."
            if not np.isfinite(rows["learning_rate"]).any()
            else "Every row has the same learning rate: no curve against it."
        )
        return section
    section.sentences.append("The same costs, joined in the order of training, against the learning rate of their "
                             "step: what decays while tokens grow may be the cause as well as they.")  # fmt: skip
    style = Style.of(rows)
    schedule = [drawn(part, axis.column, "learning_rate", label, style.colour[label], style.dash[label])
                for label, part in _lines(_with_interval(known, "learning_rate"))]  # fmt: skip
    if known.distinct(axis.column) > 1:
        title = "Learning rate at each step"
        caption = _turn(known, axis)
        svg = plots.curves(
            "learning-rate", f"{title}. {caption}", schedule, plots.tokens_scale(known[axis.column]),
            plots.cost_scale(known["learning_rate"], np.array([known["learning_rate"].max() / 100])), axis.label,
            "learning rate", axis.tick,
        )  # fmt: skip
        section.plots.append(Plot("learning-rate", title, svg, caption))
    scale = plots.tokens_scale(known["learning_rate"])
    for name, facet in _facets(known, section):
        every = []
        for label, part in _lines(facet):
            path = drawn(part, axis.column, DELTA, label, style.colour[label], style.dash[label])
            rate = drawn(_with_interval(part, "learning_rate"), axis.column, "learning_rate", label, "#000")
            every.append(Line(label, rate.y, path.y, path.low * np.nan, path.high * np.nan, path.colour, path.dash))
        title, caption = f"dNLL at {quoted(name)}", _against_rate(facet)
        svg = plots.curves(
            slug(DELTA, "rate", name), f"{title} against the learning rate. {caption}", every, scale,
            plots.cost_scale(facet[DELTA], facet["delta_nll_se"]), "learning rate", NAMES[DELTA], tick_label,
        )  # fmt: skip
        section.plots.append(Plot(slug(DELTA, "rate", name), title, svg, caption))
    return section


def by_size(rows: Rows) -> Section:
    """At the last step of each run: a facet a setting, a line a number of bits."""
    axis, section = training(rows), Section("Cost against parameters")
    last = at_the_end(rows.known("non_embedding_parameters", "bits", DELTA), axis)
    if last.distinct("non_embedding_parameters") < 2:
        section.sentences.append("Only one size: no curve against parameters.")
        return section
    section.sentences.append(_where_it_ends(last, axis))
    scale = plots.tokens_scale(last["non_embedding_parameters"])
    for name, facet in _settings(last, section):
        bits = sorted({float(b) for b in facet["bits"]})
        shades = plots.colours(len(bits))
        every = [
            drawn(facet.where(facet["bits"] == b), "non_embedding_parameters", DELTA, f"int{b:.0f}", shades[i],
                  DASHES[i % len(DASHES)])
            for i, b in enumerate(bits)
        ]  # fmt: skip
        title = f"dNLL by size, {quoted(name)}"
        caption = _and(f"{quoted(line.label)}: {_cost(line.y[0])} at {amount(line.x[0])} parameters, "
                       f"{_cost(line.y[-1])} at {amount(line.x[-1])}"
                       for line in _ends(every) if len(line.x) > 1)  # fmt: skip
        svg = plots.curves(
            slug(DELTA, "parameters", name), f"{title}. {caption}", every, scale,
            plots.cost_scale(facet[DELTA], facet["delta_nll_se"]), "parameters without embedding and head",
            NAMES[DELTA],
        )  # fmt: skip
        section.plots.append(Plot(slug(DELTA, "parameters", name), title, svg, caption))
    return section


def by_bits(rows: Rows) -> Section:
    """At the last step of each run: a facet a setting, a line a size."""
    axis, section = training(rows), Section("Cost against bits")
    last = at_the_end(rows.where(rows["method"] != "none").known("bits", DELTA), axis)
    if last.distinct("bits") < 2:
        section.sentences.append("Only one number of bits: no curve against bits.")
        return section
    section.sentences.append(_where_it_ends(last, axis))
    style = Style.of(rows)
    every_bits = sorted({float(b) for b in last["bits"]})
    for name, facet in _settings(last, section):
        every = [drawn(part, "bits", DELTA, label, style.colour[label], style.dash[label])
                 for label, part in _lines(facet)]  # fmt: skip
        title = f"dNLL by bits, {quoted(name)}"
        caption = _and(f"{quoted(line.label)}: {_cost(line.y[0])} at {line.x[0]:.0f} bits, {_cost(line.y[-1])} at "
                       f"{line.x[-1]:.0f}" for line in _ends(every) if len(line.x) > 1)  # fmt: skip
        svg = plots.curves(
            slug(DELTA, "bits", name), f"{title}. {caption}", every,
            Scale(every_bits[0] / 1.06, every_bits[-1] * 1.06),
            plots.cost_scale(facet[DELTA], facet["delta_nll_se"]), "bits of the rounded linears", NAMES[DELTA],
            lambda b: f"{b:.0f}", every_bits,
        )  # fmt: skip
        section.plots.append(Plot(slug(DELTA, "bits", name), title, svg, caption))
    return section


def maps(rows: Rows) -> Section:
    """Sizes by steps, a map a quantisation."""
    axis, section = training(rows), Section("Every checkpoint")
    known = rows.known(axis.column, DELTA)
    names = lines(known)
    if known.distinct(axis.column) < 2 or len(names) < 2:
        section.sentences.append("Sizes by steps make a map where there are two or more of both.")
        return section
    section.sentences.append("dNLL in nats a token, a row a size, a column a step; each map has a scale of its own. "
                             "Hatched: not measured. Zero and below take the darkest colour.")  # fmt: skip
    columns = np.unique(known[axis.column])
    if len(columns) > MOST_COLUMNS:
        places = np.linspace(0, len(columns) - 1, MOST_COLUMNS).round().astype(int)
        section.sentences.append(f"{MOST_COLUMNS} of {len(columns):,} steps are shown.")
        columns = columns[places]
    for name, facet in _facets(known, section):
        own = [n for n in lines(facet)][: 2 * MOST_LINES]
        values = np.full((len(own), len(columns)), np.nan)
        for at_row, line in enumerate(own):
            means = drawn(facet.where(facet["line"] == line), axis.column, DELTA, line, "#000")
            at = np.searchsorted(columns, means.x)
            there = (at < len(columns)) & (columns[np.minimum(at, len(columns) - 1)] == means.x)
            values[at_row, at[there]] = means.y[there]
        if not np.isfinite(values).any():
            continue
        i, j = (int(n) for n in np.unravel_index(np.nanargmax(values), values.shape))
        title = f"dNLL at {quoted(name)}"
        caption = f"Highest: {quoted(own[i])} {axis.at(columns[j])}, {_cost(values[i, j])}."
        svg = plots.heat(slug(DELTA, "map", name), f"{title}: sizes by steps. {caption}", values, own,
                         columns.tolist(), "nats", axis.label, axis.tick)  # fmt: skip
        section.plots.append(Plot(slug(DELTA, "map", name), title, svg, caption))
    return section


def residuals(name: str, found: Fit) -> list[Plot]:
    """Log of measured over fitted, against what was fitted and against training."""
    rows, made = found.rows, []
    choice = np.arange(len(rows))
    if len(rows) > MOST_DOTS:
        choice = np.sort(np.random.default_rng(0).choice(len(rows), MOST_DOTS, replace=False))
    note = f" {MOST_DOTS} of {len(rows):,} rows, drawn at random, are shown." if len(choice) < len(rows) else ""
    bits = sorted({float(b) for b in rows["bits"]})
    shades = plots.colours(len(bits))
    for x, xlabel, kind, tick in (
        (found.fitted, "cost that the law gives, nats a token", "fitted", tick_label),
        (rows["training_tokens"], "training tokens", "tokens", amount),
    ):
        if not np.isfinite(x).all() or np.ptp(np.log(np.maximum(x, 1e-300))) < 1e-6:
            continue
        groups = []
        for i, b in enumerate(bits):
            own = choice[rows["bits"][choice] == b]
            groups.append((f"int{b:.0f}", x[own], found.residuals[own], shades[i]))
        title = f"Residuals against {'the fitted cost' if kind == 'fitted' else 'training tokens'}, {quoted(name)}"
        by = [f"int{b:.0f} {np.median(found.residuals[rows['bits'] == b]):+.2f}".replace("-", "−") for b in bits]
        caption = f"Median by bits: {', '.join(by)}; 0 is the law, +0.69 twice its cost.{note}"
        svg = plots.dots(slug("residuals", kind, name), f"{title}. {caption}", groups, plots.tokens_scale(x), xlabel,
                         "log of measured over fitted", tick)  # fmt: skip
        made.append(Plot(slug("residuals", kind, name), title, svg, caption))
    return made


def by_subset(rows: Rows, subsets: pa.Table) -> Section:
    """Plot the cost by part of the text at a common quantisation: a facet per model, a line per part."""
    axis, section = training(rows), Section("By part of the text over training")
    if not len(subsets):
        section.sentences.append("The held-out text names no parts.")
        return section
    known = rows.known(axis.column, DELTA)
    if known.distinct(axis.column) < 2:
        section.sentences.append(_no_curve(rows, axis))
        return section
    chosen, facet = _most_told(known)
    mine = subsets.filter(compute.is_in(subsets["key"], value_set=pa.array(facet["key"].tolist(), pa.string())))
    if not len(mine):
        section.sentences.append("No part of the text was measured at more than one step.")
        return section
    parts = Rows.of(mine.select(["key", "subset", "tokens", DELTA, "delta_nll_se", "delta_nll_low", "delta_nll_high"]))
    order = np.argsort(facet["key"])
    at = order[np.searchsorted(facet["key"][order], parts["key"])]
    for column in (axis.column, "line", "size", "name", "non_embedding_parameters", "quantization"):
        parts.columns[column] = facet[column][at]
    parts = parts.known(DELTA)
    if not len(parts):
        section.sentences.append("No part of the text was measured at more than one step.")
        return section
    totals = {str(name): float(part["tokens"].sum()) for name, part in parts.each("subset")}
    names = sorted(sorted(totals, key=lambda n: -totals[n])[:MOST_SUBSETS])
    shades = plots.colours(len(names))
    section.sentences.append(
        f"At {quoted(chosen)}, the other quantisations being in subsets.parquet. Does text that a model memorised pay "
        "earlier than other text? The raw material: cost by source of the text."
        + (f" {len(names)} of {len(totals)} parts are drawn, of most tokens." if len(totals) > len(names) else "")
    )
    models = [m for m in lines(parts) if parts.where(parts["line"] == m).distinct(axis.column) > 1]
    section.sentences += _only(models, MOST_FACETS, "models")
    scale = plots.tokens_scale(parts[axis.column])
    for model in models[:MOST_FACETS]:
        own = parts.where(parts["line"] == model)
        every = [
            drawn(own.where(own["subset"] == n), axis.column, DELTA, n, shades[i], DASHES[i % len(DASHES)])
            for i, n in enumerate(names)
            if (own["subset"] == n).any()
        ]
        if not every:
            continue
        ends = sorted(((line.y[-1], line.label) for line in every), reverse=True)
        title = f"dNLL of {quoted(model)} at {quoted(chosen)}, by part"
        caption = f"At the last step {quoted(ends[0][1])} costs most, {_cost(ends[0][0])}" + (
            f", and {quoted(ends[-1][1])} least, {_cost(ends[-1][0])}." if len(ends) > 1 else "."
        )
        shown = own.where(np.isin(own["subset"], names))
        svg = plots.curves(
            slug("parts", model, chosen), f"{title}. {caption}", every, scale,
            plots.cost_scale(shown[DELTA], shown["delta_nll_se"]), axis.label, NAMES[DELTA], axis.tick,
        )  # fmt: skip
        section.plots.append(Plot(slug("parts", model, chosen), title, svg, caption))
    return section


# What the plots share.


def at_the_end(rows: Rows, axis: Axis) -> Rows:
    """The rows of each run's last step; where steps are not known, all of them."""
    steps = np.nan_to_num(rows[axis.column], nan=-1.0)
    last: dict[str, float] = {}
    for name, step in zip(rows["name"].tolist(), steps.tolist(), strict=True):
        last[name] = max(last.get(name, step), step)
    return rows.where(steps == np.array([last[name] for name in rows["name"].tolist()], dtype=np.float64))


def _where_it_ends(last: Rows, axis: Axis) -> str:
    ends = sorted({x for x in last[axis.column].tolist() if x == x})
    if not ends:
        return "At every checkpoint; their steps are not known."
    if len(ends) == 1:
        return f"At the last step measured, {axis.at(ends[0])}."
    return (
        f"At the last step measured of each model; they differ, from {axis.at(ends[0])[3:]} to {axis.at(ends[-1])[3:]}."
    )


def _no_curve(rows: Rows, axis: Axis) -> str:
    steps = rows.distinct(axis.column)
    if steps == 0:
        return "The training steps are not known: no curve over training."
    return "Only one training step: no curve over training."


def _facets(rows: Rows, section: Section) -> list[tuple[str, Rows]]:
    """A quantisation each; of many, the first."""
    names = quantizations(rows)
    section.sentences += _only(names, MOST_FACETS, "quantisations")
    if len(lines(rows)) > MOST_LINES:
        section.sentences.append(f"{MOST_LINES} of {len(lines(rows))} lines are drawn, evenly by size.")
    return [(name, rows.where(rows["quantization"] == name)) for name in names[:MOST_FACETS]]


def _settings(rows: Rows, section: Section) -> list[tuple[str, Rows]]:
    names = list(dict.fromkeys(rows["setting"].tolist()))
    section.sentences += _only(names, MOST_FACETS, "settings")
    return [(name, rows.where(rows["setting"] == name)) for name in names[:MOST_FACETS]]


def _only(names: Sequence[str], most: int, what: str) -> list[str]:
    if len(names) <= most:
        return []
    return [f"{most} of {len(names)} {what} are drawn; all are in results.csv."]


def _lines(rows: Rows) -> list[tuple[str, Rows]]:
    names = lines(rows)
    if len(names) > MOST_LINES:
        names = [names[i] for i in np.linspace(0, len(names) - 1, MOST_LINES).round().astype(int)]
    return [(name, rows.where(rows["line"] == name)) for name in names]


def _with_interval(rows: Rows, metric: str) -> Rows:
    """Give a figure that is known exactly an interval of nothing."""
    nothing = np.full(len(rows), np.nan)
    return Rows(rows.columns | {f"{metric}_low": nothing, f"{metric}_high": nothing})


def _most_told(rows: Rows) -> tuple[str, Rows]:
    """The quantisation of the most rows; of several the one with the fewest bits."""
    names = quantizations(rows)
    facets = {name: rows.where(rows["quantization"] == name) for name in names}
    name = max(names, key=lambda n: (len(facets[n]), -np.nan_to_num(facets[n]["bits"][0], nan=99.0), -names.index(n)))
    return name, facets[name]


def _ends(every: Sequence[Line]) -> list[Line]:
    """The first and the last line."""
    return list(every) if len(every) < 2 else [every[0], every[-1]]


def _from_to(every: Sequence[Line], axis: Axis, metric: str) -> str:
    moved = [line for line in every if len(line.x) > 1]
    if not moved:
        return "No line has two steps."
    return _and(f"{quoted(line.label)}: {_cost(line.y[0])} {axis.at(line.x[0])}, "
                f"{_cost(line.y[-1])} {axis.at(line.x[-1])}"
                for line in _ends(moved))  # fmt: skip


def _turn(rows: Rows, axis: Axis) -> str:
    """Say, for the line with the most steps, where its learning rate is highest and where it ends."""
    name, part = max(rows.each("line"), key=lambda found: len(found[1]))
    x, rate = part[axis.column], part["learning_rate"]
    top, end = int(rate.argmax()), int(x.argmax())
    return f"{quoted(name)}: highest {axis.at(x[top])}, {power(rate[top])}; {power(rate[end])} {axis.at(x[end])}."


def _against_rate(rows: Rows) -> str:
    """While it falls: in the warm-up it grows with the tokens."""
    found = []
    for _, part in rows.each("line"):
        x, rate = part[training(rows).column], part["learning_rate"]
        falling = part.where(x >= x[int(rate.argmax())])
        found.append(rank_correlation(falling["learning_rate"], falling[DELTA]))
    found = [r for r in found if r == r]
    if not found:
        return "No line has three steps at which the learning rate falls."
    low, high = (f"{r:+.2f}".replace("-", "−") for r in (min(found), max(found)))
    said = low if low == high else f"{low} to {high} by line"
    return f"While the learning rate falls, its rank correlation with the cost is {said}."


def _cost(x: float) -> str:
    return power(float(x)).replace("-", "−")


def _and(parts: Any) -> str:
    found = list(parts)
    return "; ".join(found) + "." if found else ""


def slug(*words: str) -> str:
    """For a file's name and an id; what it changes beyond recognition gets a piece of its hash: two stay two."""
    text = "-".join(words)
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    kept = re.fullmatch(r"[a-z0-9 ._-]*", text) and len(plain) <= 60
    return plain if kept else f"{plain[:50]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
