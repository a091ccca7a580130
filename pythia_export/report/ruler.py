"""The proof's figures on a scale, beside the limits that they are held to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from . import svg


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
    left, right, row, top = 112, svg.WIDTH - 14, 24, 20 if limits else 6
    bottom = top + row * len(rows)
    x = svg.log_scale(10.0**low, 10.0**high, left, right)
    marks = []
    step = max(1, (high - low) // 5)
    for exponent in range(low, high + 1, step):
        marks.append(svg.line(x(10.0**exponent), top, x(10.0**exponent), bottom, "grid"))
        marks.append(svg.text(x(10.0**exponent), bottom + 15, svg.power_of_ten(exponent)))
    for limit in limits:
        marks.append(svg.line(x(limit), top - 4, x(limit), top + row * len(judged), "limit"))
        marks.append(svg.text(x(limit), top - 8, "limit", "end" if x(limit) > right - 16 else "middle"))
    for i, (label, value) in enumerate(rows):
        y = top + row * i + row / 2
        at = x(max(value, 10.0**low))
        marks += [
            svg.text(left - 10, y + 4, label, "end"),
            svg.line(left, y, at, y, "link"),
            svg.dot(at, y, 4.5, "got" if i < len(judged) else "other"),
        ]
    return svg.svg(bottom + 20, "Logit differences on a logarithmic scale", marks)


def interval_plot(value: float, low: float | None, high: float | None, limit: float | None) -> Markup:
    """The perplexity ratio with its interval, on a linear scale that holds 1 (no cost) and the limit too."""
    points = [1.0, value, *(p for p in (low, high, limit) if p is not None)]
    first, last = min(points), max(points)
    span = (last - first) or 0.01
    first, last = first - 0.08 * span, last + 0.08 * span
    left, right, top, bottom = 14, svg.WIDTH - 14, 22, 58

    def x(ratio: float) -> float:
        return left + (right - left) * (ratio - first) / (last - first)

    marks = [svg.line(left, bottom, right, bottom, "grid")]
    for tick in _ticks(first, last):
        label = "same" if abs(tick - 1) < 1e-12 else f"{100 * (tick - 1):+.6g} %".replace("-", svg.MINUS)
        marks.append(svg.line(x(tick), bottom, x(tick), bottom + 4, "grid"))
        marks.append(svg.text(x(tick), bottom + 18, label))
    marks.append(svg.line(x(1), top, x(1), bottom, "axis"))
    if limit is not None:
        marks.append(svg.line(x(limit), top - 4, x(limit), bottom, "limit"))
        marks.append(svg.text(x(limit), top - 8, "limit", "end" if x(limit) > right - 16 else "middle"))
    y = (top + bottom) / 2
    if low is not None and high is not None:
        marks.append(svg.line(x(low), y, x(high), y, "interval"))
        marks += [svg.line(x(end), y - 6, x(end), y + 6, "interval") for end in (low, high)]
    marks.append(svg.dot(x(value), y, 5, "got"))
    return svg.svg(bottom + 24, "Perplexity against the original's, with its 95 % interval", marks)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between, one of them 1: about four."""
    step = svg.round_step((high - low) / 5)
    return [1 + i * step for i in range(math.ceil((low - 1) / step), math.floor((high - 1) / step) + 1)]
