"""The report's plots as inline SVG. Colours come from the page's style sheet, so that they follow dark mode and print.

Each plot is about 340 units wide, a phone's width: text is then legible where the page is narrowest. What a plot shows
also stands in a table beside it; `<title>` says what it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from .words import by_kind, power, superscript

WIDTH = 340
_MINUS = "−"


def depth_panels(linears: Sequence[Mapping[str, Any]]) -> list[tuple[str, Markup]]:
    """For each kind of linear in the blocks, its loss over the layers beside round-to-nearest's; one log scale for all.

    Losses of zero, or so small that their power of ten is no number, have no place on a log scale and are left out.
    """
    blocks = [x for x in linears if x["layer"] is not None]
    losses = [x[k] for x in blocks for k in ("rtn_loss", "loss") if _drawn(x[k])]
    if not losses:
        return []
    ticks = _log_ticks(min(losses), max(losses))
    last = max(x["layer"] for x in blocks)
    return [(name, _depth(name, of_kind, last, ticks)) for name, of_kind in by_kind(blocks).items()]


def residual_panel(layers: Sequence[Mapping[str, Any]]) -> Markup | None:
    """The relative squared error of the residual stream behind each layer, where it was measured."""
    rows = [
        {"layer": x["layer"], "rtn_loss": None, "loss": x["residual_error"], "method": "gptq"}
        for x in layers
        if _drawn(x["residual_error"])
    ]
    if not rows:
        return None
    errors = [row["loss"] for row in rows]
    return _depth("the residual stream", rows, max(x["layer"] for x in layers), _log_ticks(min(errors), max(errors)))


def _drawn(value: float | None) -> bool:
    return value is not None and value > 1e-290


def _depth(name: str, linears: Sequence[Mapping[str, Any]], last: int, ticks: list[float]) -> Markup:
    left, right, top, bottom = 46, WIDTH - 12, 8, 150
    y = _log_scale(ticks[0], ticks[-1], bottom, top)

    def x(layer: int) -> float:
        return (left + right) / 2 if last == 0 else left + 10 + (right - left - 20) * layer / last

    marks = []
    for tick in ticks:
        marks.append(_line(left, y(tick), right, y(tick), "grid"))
        marks.append(_text(left - 6, y(tick) + 4, f"{tick:g}" if tick >= 0.001 else power(tick), "end"))
    for layer in sorted({0, last // 2, last}):
        marks.append(_text(x(layer), bottom + 17, str(layer)))
    marks.append(_text((left + right) / 2, bottom + 32, "layer"))
    radius = 4 if last < 16 else 2.8
    for linear in linears:
        at = x(linear["layer"])
        nearest, loss = (linear[key] if _drawn(linear[key]) else None for key in ("rtn_loss", "loss"))
        if nearest and loss:
            marks.append(_line(at, y(nearest), at, y(loss), "link"))
        if nearest and linear["method"] != "rtn":
            marks.append(_dot(at, y(nearest), radius, "rtn"))
        if loss:
            marks.append(_dot(at, y(loss), radius, "rtn" if linear["method"] == "rtn" else "got"))
    return _svg(bottom + 36, f"Relative output error of {name}, layer by layer", marks)


def ruler(judged: Sequence[tuple[str, float]], others: Sequence[tuple[str, float]], limits: Iterable[float]) -> Markup:
    """Differences on a log scale, a row each, label and value; limits as lines across those that are judged.

    The scale ends at 1e-12; what is below, zero too, is drawn at its left end.
    """
    rows = [*judged, *others]
    limits = sorted(set(limits))
    seen = [v for _, v in rows if v > 0] + limits
    low, high = (
        (max(-12, math.floor(math.log10(min(seen))) - 1), math.floor(math.log10(max(seen))) + 1) if seen else (-8, 0)
    )
    high = max(high, low + 3)  # a decade alone would make noise look like a difference
    left, right, row, top = 112, WIDTH - 14, 24, 20 if limits else 6
    bottom = top + row * len(rows)
    x = _log_scale(10.0**low, 10.0**high, left, right)
    marks = []
    step = max(1, (high - low) // 5)
    for exponent in range(low, high + 1, step):
        marks.append(_line(x(10.0**exponent), top, x(10.0**exponent), bottom, "grid"))
        marks.append(_text(x(10.0**exponent), bottom + 15, _power_of_ten(exponent)))
    for limit in limits:
        marks.append(_line(x(limit), top - 4, x(limit), top + row * len(judged), "limit"))
        marks.append(_text(x(limit), top - 8, "limit", "end" if x(limit) > right - 16 else "middle"))
    for i, (label, value) in enumerate(rows):
        y = top + row * i + row / 2
        at = x(max(value, 10.0**low))
        marks += [
            _text(left - 10, y + 4, label, "end"),
            _line(left, y, at, y, "link"),
            _dot(at, y, 4.5, "got" if i < len(judged) else "other"),
        ]
    return _svg(bottom + 20, "Logit differences on a logarithmic scale", marks)


def interval_plot(value: float, low: float | None, high: float | None, limit: float | None) -> Markup:
    """The perplexity ratio with its interval, on a linear scale that holds 1 (no cost) and the limit too."""
    points = [1.0, value, *(p for p in (low, high, limit) if p is not None)]
    first, last = min(points), max(points)
    span = (last - first) or 0.01
    first, last = first - 0.08 * span, last + 0.08 * span
    left, right, top, bottom = 14, WIDTH - 14, 22, 58

    def x(ratio: float) -> float:
        return left + (right - left) * (ratio - first) / (last - first)

    marks = [_line(left, bottom, right, bottom, "grid")]
    for tick in _ticks(first, last):
        label = "same" if abs(tick - 1) < 1e-12 else f"{100 * (tick - 1):+.6g} %".replace("-", _MINUS)
        marks.append(_line(x(tick), bottom, x(tick), bottom + 4, "grid"))
        marks.append(_text(x(tick), bottom + 18, label))
    marks.append(_line(x(1), top, x(1), bottom, "axis"))
    if limit is not None:
        marks.append(_line(x(limit), top - 4, x(limit), bottom, "limit"))
        marks.append(_text(x(limit), top - 8, "limit", "end" if x(limit) > right - 16 else "middle"))
    y = (top + bottom) / 2
    if low is not None and high is not None:
        marks.append(_line(x(low), y, x(high), y, "interval"))
        marks += [_line(x(end), y - 6, x(end), y + 6, "interval") for end in (low, high)]
    marks.append(_dot(x(value), y, 5, "got"))
    return _svg(bottom + 24, "Perplexity against the original's, with its 95 % interval", marks)


def _svg(height: float, title: str, marks: Iterable[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img"><title>{}</title>{}</svg>').format(
        WIDTH, round(height, 1), title, Markup("").join(marks)
    )


def _line(x1: float, y1: float, x2: float, y2: float, look: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(look, x1, y1, x2, y2)


def _dot(x: float, y: float, radius: float, look: str) -> Markup:
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(look, x, y, radius)


def _text(x: float, y: float, text: str, anchor: str = "middle") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _power_of_ten(exponent: int) -> str:
    return {0: "1", 1: "10"}.get(exponent) or f"10{superscript(exponent)}"


def _log_scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    a, b = math.log10(low), math.log10(high)
    return lambda v: start + (end - start) * (math.log10(v) - a) / (b - a)


def _log_ticks(low: float, high: float) -> list[float]:
    """Two to six powers of ten, or 1-2-5 steps where the range is within about a decade."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first > 2:
        step = -(-(last - first) // 5)
        exponents = range(first, last + step, step)
        return [10.0**e for e in exponents]
    steps = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5)]
    start = max((i for i, s in enumerate(steps) if s <= low), default=0)
    stop = min((i for i, s in enumerate(steps) if s >= high), default=len(steps) - 1)
    return steps[start : stop + 1] if stop > start else steps[start : start + 2]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between, one of them 1: about four."""
    raw = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw)
    return [1 + i * step for i in range(math.ceil((low - 1) / step), math.floor((high - 1) / step) + 1)]
