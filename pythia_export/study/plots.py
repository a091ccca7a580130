"""Marks and scales of a sweep's plots: matplotlib's SVG, the same bytes for the same data, legible at a phone's width.

A plot is 340 units wide, as those of the parity report. Its text stays text, in the page's font. Lines are labelled
where they end; colours go with size, from dark to light (plasma); lines of one size differ in their dash. A plot's file
is drawn for a white ground; on the page (`themed`) its colours are the page's, and a line's is a lighter one by night.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from ..report.svg import log_ticks, tick_label
from .rows import Floats, amount

WIDTH, HEIGHT, TEXT = 340, 250, 10.5
INK, SOFT, GRID, WASH, EDGE = "#1c2126", "#59626d", "#e2e1da", "#f2f1ec", "#b9bbb8"
PAGE_COLOURS = {
    INK: "var(--ink)", SOFT: "var(--soft)", GRID: "var(--line)", WASH: "var(--wash)", EDGE: "var(--strong)",
    "#ffffff": "var(--card)", "#000000": "var(--ink)",
}  # fmt: skip
DAY, NIGHT = (0.0, 0.62), (0.45, 1.0)  # parts of the colour map with a contrast of 3 to white, and to the dark ground
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.6)), (0, (1, 1.4)), (0, (6, 1.5, 1, 1.5)), (0, (8, 2)), (0, (2, 2)))
BIN = 4.0  # units: of a line's points that lie closer the lowest and the highest are drawn
MOST_LABELS = 12
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class Line:
    """Points in the order in which they are joined; low and high are NaN where there is no interval."""

    label: str
    x: Floats
    y: Floats
    low: Floats
    high: Floats
    colour: str
    dash: Any = "-"


@dataclass(frozen=True)
class Scale:
    """log from low to high, or, where values are not above zero, linear within ±linear and logarithmic beyond it.
    An infinite `linear` is linear throughout: for shares."""

    low: float
    high: float
    linear: float | None = None


def colours(n: int) -> list[str]:
    """Return n colours from dark to light, all of a contrast of 3 to white at least."""
    return [_shade(DAY[0] + (DAY[1] - DAY[0]) * i / max(1, n - 1)) for i in range(n)]


def by_night(colour: str) -> str:
    """Return what stands for a colour of `colours` on a dark ground, in the same order from dark to light."""
    places = np.linspace(*DAY, 512)
    known = np.array([matplotlib.colors.to_rgb(_shade(place)) for place in places])
    nearest = places[np.abs(known - matplotlib.colors.to_rgb(colour)).sum(1).argmin()]
    return _shade(NIGHT[0] + (NIGHT[1] - NIGHT[0]) * (nearest - DAY[0]) / (DAY[1] - DAY[0]))


def _shade(place: float) -> str:
    return str(matplotlib.colors.to_hex(matplotlib.colormaps["plasma"](place)))


def themed(svg: Markup) -> Markup:
    """Return a plot whose colours are the page's: those of its ink and ground, and a variable for each line's."""

    def colour(found: re.Match[str]) -> str:
        own = found[0].lower()
        return PAGE_COLOURS.get(own) or f"var(--line-{own[1:]}, {own})"

    svg = Markup(re.sub(r' fill="(#[0-9a-f]{6})"', r' style="fill: \1"', str(svg)))  # the ground of hatches
    return Markup(re.sub(r'style="[^"]*"', lambda m: re.sub(r"#[0-9a-fA-F]{6}\b", colour, m[0]), str(svg)))


def line_colours(svgs: Iterable[Markup]) -> dict[str, str]:
    """Return the colour by night of each variable that `themed` leaves in these plots."""
    found = {name for svg in svgs for name in re.findall(r"var\((--line-[0-9a-f]{6})", str(svg))}
    return {name: by_night(f"#{name.removeprefix('--line-')}") for name in sorted(found)}


def cost_scale(values: Floats, noise: Floats) -> Scale:
    """For costs of which some may be zero or below: the linear part is as wide as the noise is."""
    values, noise = values[np.isfinite(values)], noise[np.isfinite(noise) & (noise > 0)]
    if not len(values):
        return Scale(0.1, 1.0)
    largest = float(np.abs(values).max()) or 1.0
    if (values > 0).all():
        low, high = float(values.min()), float(values.max())
        room = max((high / low) ** 0.06, 1.15)
        return Scale(low / room, high * room)
    typical = float(np.median(noise)) if len(noise) else largest / 100
    linear = 10.0 ** math.ceil(math.log10(min(max(typical, largest * 1e-6), largest)))
    top = max(largest, linear)
    low = float(values.min())
    return Scale(-1.25 * max(-low, 0.25 * linear), 1.25 * top, linear)


def tokens_scale(values: Floats) -> Scale:
    """Step 0 has no logarithm: it stands left of the first."""
    values = values[np.isfinite(values)]
    above = values[values > 0]
    if not len(above):
        return Scale(-1.0, 1.0, 1.0)
    low, high = float(above.min()), float(above.max())
    room = max((high / low) ** 0.03, 1.1)
    return Scale(-0.15 * low, high * room, low) if (values <= 0).any() else Scale(low / room, high * room)


def curves(
    slug: str, alt: str, lines: Sequence[Line], x: Scale, y: Scale, xlabel: str, ylabel: str,
    xtick: Callable[[float], str] = amount, xticks: Sequence[float] | None = None,
) -> Markup:  # fmt: skip
    """One line a label, each with its band; ordered as given from dark to light."""
    lines = [replace(line, label=_cut(line.label)) for line in lines]
    right = 18 + min(116.0, 6.6 * max((len(line.label) for line in lines), default=0))
    with _axes(slug, alt, right) as (axes, out):
        _frame(axes, x, y, xlabel, ylabel, xtick, xticks)
        dots = sum(map(_points, lines)) <= 160
        for line in map(lambda each: _thin(axes, each), lines):
            band = np.isfinite(line.low) & np.isfinite(line.high)
            if band.sum() > 1:
                axes.fill_between(line.x[band], line.low[band], line.high[band], color=line.colour, alpha=0.14, lw=0)
            elif band.any():
                axes.vlines(line.x[band], line.low[band], line.high[band], color=line.colour, lw=1)
            axes.plot(
                line.x, line.y, color=line.colour, ls=line.dash, lw=1.5, marker="o" if dots else None, ms=3.2, mew=0
            )
        _label_ends(axes, lines)
    return out.svg


def heat(slug: str, alt: str, values: Floats, rows: Sequence[str], columns: Sequence[float], label: str, xlabel: str,
         xtick: Callable[[float], str] = amount) -> Markup:  # fmt: skip
    """values [rows, columns], NaN where nothing was measured: hatched; zero or below takes the lowest colour."""
    above = values[np.isfinite(values) & (values > 0)]
    low, high = (float(np.quantile(above, 0.01)), float(above.max())) if len(above) else (0.1, 1.0)
    low = max(min(low, high / 1.5), high * 1e-6)
    rows = [_cut(row) for row in rows]
    left = 14 + min(116.0, 6.6 * max(map(len, rows)))
    height = min(420, max(110, 74 + 19 * len(rows)))
    with _axes(slug, alt, 62, left=left, height=height) as (axes, out):
        axes.set_facecolor("#fff")
        axes.fill_between([-0.5, len(columns) - 0.5], -0.5, len(rows) - 0.5, facecolor="#fff", edgecolor=EDGE,
                          hatch="////", lw=0, zorder=0)  # fmt: skip
        shown = np.ma.masked_invalid(np.where(values <= 0, low, values))
        image = axes.imshow(
            shown, norm=LogNorm(low, high, clip=True), cmap="viridis", aspect="auto", interpolation="none"
        )
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(-0.5, len(rows) - 0.5)
        axes.set_yticks(range(len(rows)), rows)
        places = np.unique(np.linspace(0, len(columns) - 1, min(3, len(columns))).round().astype(int))
        axes.set_xticks(places, [xtick(columns[i]) for i in places])
        axes.set_xlabel(xlabel)
        axes.tick_params(length=0, pad=4)
        for spine in axes.spines.values():
            spine.set_visible(False)
        beside = axes.get_position()
        bar = axes.figure.add_axes((beside.x1 + 10 / WIDTH, beside.y0, 9 / WIDTH, beside.height))
        axes.figure.colorbar(image, cax=bar)
        bar.yaxis.set_minor_locator(NullLocator())
        ticks = [t for t in log_ticks(low, high) if low <= t <= high] or [low, high]
        bar.yaxis.set_major_locator(FixedLocator(ticks))
        bar.yaxis.set_major_formatter(FixedFormatter([tick_label(float(f"{t:.2g}")) for t in ticks]))
        bar.tick_params(length=2, pad=2)
        bar.set_title(label, fontsize=TEXT, color=SOFT, pad=5, loc="center")
        for spine in bar.spines.values():
            spine.set_visible(False)
    return out.svg


def dots(slug: str, alt: str, groups: Sequence[tuple[str, Floats, Floats, str]], x: Scale, xlabel: str, ylabel: str,
         xtick: Callable[[float], str] = amount) -> Markup:  # fmt: skip
    """Label, x, y and colour of each cloud, about a line at zero; y is linear."""
    every = np.concatenate([y for _, _, y, _ in groups])
    edge = 1.1 * (float(np.abs(every).max()) or 1.0)
    right = 18 + min(116.0, 6.6 * max(len(_cut(label)) for label, *_ in groups))
    with _axes(slug, alt, right) as (axes, out):
        _frame(axes, x, None, xlabel, ylabel, xtick, None)
        axes.set_ylim(-edge, edge)
        step = next(s for s in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 50.0) if edge / s < 4 or s == 50.0)
        ticks = [step * i for i in range(-4, 5) if abs(step * i) <= edge]
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.yaxis.set_major_formatter(FixedFormatter([f"{t:g}".replace("-", "−") for t in ticks]))
        axes.axhline(0, color=SOFT, lw=0.8)
        for _, xs, ys, colour in groups:
            size = 9 if len(every) > 150 else 22
            axes.scatter(xs, ys, s=size, color=colour, alpha=0.6, lw=0, rasterized=len(xs) > 400)
        for i, (label, _, _, colour) in enumerate(groups):
            _label(axes, 0.93 - 0.075 * i, _cut(label), colour, "-")
    # Clouds of many dots are a picture, in which no style sheet changes a colour: by night it is turned about.
    return Markup(str(out.svg).replace("<image ", '<image class="cloud" '))


# Drawing.


@dataclass
class _Out:
    svg: Markup = Markup("")


@contextmanager
def _axes(slug: str, alt: str, right: float, left: float = 50, height: float = HEIGHT) -> Iterator[tuple[Axes, _Out]]:
    out = _Out()
    look: Any = {
        "svg.fonttype": "none", "svg.hashsalt": slug, "text.parse_math": False,
        "font.family": "DejaVu Sans", "font.size": TEXT,
        "axes.edgecolor": EDGE, "axes.labelcolor": SOFT, "xtick.color": SOFT, "ytick.color": SOFT,
        "text.color": INK, "axes.linewidth": 0.8, "hatch.linewidth": 0.5, "path.simplify": True, "savefig.dpi": 144,
    }  # fmt: skip
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, facecolor="none")
        FigureCanvasSVG(figure)
        axes = figure.add_axes(
            (left / WIDTH, 40 / height, (WIDTH - left - right) / WIDTH, (height - 40 - 22) / height), facecolor="none"
        )
        yield axes, out
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        out.svg = _plain(text.getvalue(), slug, alt)


def _frame(
    axes: Axes, x: Scale, y: Scale | None, xlabel: str, ylabel: str, xtick: Callable[[float], str],
    xticks: Sequence[float] | None,
) -> None:  # fmt: skip
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(True, color=GRID, lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=4)
    axes.set_xlabel(xlabel, labelpad=3)
    axes.text(-0.0, 1.045, ylabel, transform=axes.transAxes, color=SOFT, fontsize=TEXT, ha="left", va="bottom")
    places = list(xticks) if xticks is not None else _ticks(x, 5)
    _scale(axes, "x", x, places, xtick)
    if y is not None:
        _scale(axes, "y", y, _ticks(y, 7), tick_label)
        if y.linear is not None and math.isfinite(y.linear):
            axes.axhspan(max(-y.linear, y.low), y.linear, color=WASH, lw=0, zorder=0)
            axes.axhline(0, color=SOFT, lw=0.8, zorder=1)


def _scale(axes: Axes, which: str, scale: Scale, ticks: Sequence[float], show: Callable[[float], str]) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    setter = axes.set_xscale if which == "x" else axes.set_yscale
    if scale.linear is None:
        setter("log")
    elif math.isinf(scale.linear):
        setter("linear")
    else:
        setter("symlog", linthresh=scale.linear, linscale=0.6)
    (axes.set_xlim if which == "x" else axes.set_ylim)(scale.low, scale.high)
    axis.set_minor_locator(NullLocator())
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(FixedFormatter([show(t).replace("-", "−") for t in ticks]))


def _ticks(scale: Scale, most: int) -> list[float]:
    if scale.linear is not None and math.isinf(scale.linear):
        return [
            float(t) for t in MaxNLocator(most - 2).tick_values(scale.low, scale.high) if scale.low <= t <= scale.high
        ]
    tens = _tens(scale.low if scale.linear is None else scale.linear, scale.high)
    if scale.linear is None:
        if len(tens) < 3:
            tens = [t for t in log_ticks(scale.low, scale.high) if scale.low <= t <= scale.high]
        return tens[:: -(-len(tens) // most)] if tens else [math.sqrt(scale.low * scale.high)]
    tens = tens[:: max(1, -(-len(tens) // (most - 2)))]
    below = [-t for t in tens if -t >= scale.low]
    return [*below[:1], 0.0, *tens]


def _tens(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    return [10.0**e for e in range(first, last + 1)]


def _points(line: Line) -> int:
    return len(line.x)


def _thin(axes: Axes, line: Line) -> Line:
    """The lowest and the highest of the points that share `BIN` units of width; the first and the last."""
    if len(line.x) <= WIDTH / BIN or not np.isfinite(line.y).all():
        return line
    at = axes.transData.transform(np.column_stack([line.x, line.y]))[:, 0]
    bins = np.floor(at / BIN).astype(int)
    keep = {0, len(line.x) - 1}
    start = 0
    for stop in [*np.flatnonzero(np.diff(bins)) + 1, len(bins)]:
        part = line.y[start:stop]
        keep |= {start + int(part.argmin()), start + int(part.argmax())}
        start = stop
    kept = sorted(keep)
    return replace(line, x=line.x[kept], y=line.y[kept], low=line.low[kept], high=line.high[kept])


def _label_ends(axes: Axes, lines: Sequence[Line]) -> None:
    """Each label beside its line's last point, moved apart where they would touch."""
    shown = [line for line in lines if len(line.x)]
    if len(shown) > MOST_LABELS:
        step = (len(shown) - 1) / (MOST_LABELS - 1)
        shown = [shown[round(i * step)] for i in range(MOST_LABELS)]
    ends = np.array([axes.transData.transform((line.x[-1], line.y[-1]))[1] for line in shown])
    _, bottom = axes.transAxes.transform((0, 0))
    _, top = axes.transAxes.transform((0, 1))
    order = np.argsort(np.nan_to_num(ends, nan=bottom), kind="stable")
    places = _apart(np.clip(np.nan_to_num(ends[order], nan=bottom), bottom, top), 12.5, bottom - 4, top + 4)
    for i, place in zip(order, places, strict=True):
        _label(axes, (place - bottom) / (top - bottom), shown[i].label, shown[i].colour, shown[i].dash)


def _label(axes: Axes, height: float, label: str, colour: str, dash: Any) -> None:
    """At the right edge; a piece of its line stands before it."""
    width = axes.transAxes.transform((1, 0))[0] - axes.transAxes.transform((0, 0))[0]
    axes.plot([1 + 3 / width, 1 + 12 / width], [height, height], transform=axes.transAxes, color=colour, ls=dash,
              lw=2, clip_on=False)  # fmt: skip
    axes.text(1 + 15 / width, height, label, transform=axes.transAxes, va="center", ha="left", fontsize=TEXT, color=INK)


def _apart(places: Floats, gap: float, low: float, high: float) -> Floats:
    """Ascending places, at least `gap` between neighbours, as near to where they were as that allows."""
    if len(places) > 1:
        gap = min(gap, (high - low) / (len(places) - 1))
    found = places.copy()
    for i in range(1, len(found)):
        found[i] = max(found[i], found[i - 1] + gap)
    found += min(0.0, high - found[-1]) if len(found) else 0.0
    for i in range(len(found) - 2, -1, -1):
        found[i] = min(found[i], max(places[i], low + i * gap), found[i + 1] - gap)
    return np.asarray(np.maximum(found, low + gap * np.arange(len(found))))


def _cut(label: str) -> str:
    plain = printable(label)
    return plain if len(plain) <= 18 else plain[:17] + "…"


def printable(words: str) -> str:
    """XML knows no control characters."""
    return "".join(c if c.isprintable() else " " for c in words)


def _plain(svg: str, slug: str, alt: str) -> Markup:
    """For a page among others: ids of its own, no style for everything, the page's font, short numbers, a label."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S)
    svg = re.sub(r'( id="| xlink:href="#|url\(#)', lambda m: f"{m[1]}{slug}-", svg)
    svg = re.sub(r' d="([^"]*)"', lambda m: ' d="' + re.sub(r"(\.\d\d)\d+", r"\1", m[1]) + '"', svg)
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {} role="img" '
        'aria-label="{}" style="stroke-linejoin:round;stroke-linecap:butt;font-family:{}">'
    ).format(Markup(view[0]), printable(alt), Markup(FONT))
    return head + Markup(svg[svg.index(">") + 1 :].strip())
