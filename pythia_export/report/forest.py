"""Estimates with their intervals, a row each on one scale: the whole text first, then its parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from ..records.parity import Cost, Part
from . import svg

Row = tuple[str, float | None, float | None, float | None]  # label, value, low, high
_LEFT, _RIGHT, _ROW, _TOP = 118, svg.WIDTH - 12, 22, 18


def forest(rows: Sequence[Row], limit: float | None, label: str, tick: Callable[[float], str]) -> Markup | None:
    """Linear from zero, or from below it where an interval goes there; the limit is a line across the first row,
    which alone is held to it. None where no row has a value."""
    seen = [x for _, *values in rows for x in values if x is not None and math.isfinite(x)]
    if not seen:
        return None
    ends = [0.0, *seen, *([] if limit is None else [limit])]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    first, last = low - (0.06 * span if low < 0 else 0), high + 0.06 * span
    bottom = _TOP + _ROW * len(rows)

    def x(value: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (value - first) / (last - first)

    marks = []
    step = svg.round_step((last - first) / 4)
    for i in range(math.ceil(first / step - 1e-9), math.floor(last / step + 1e-9) + 1):
        marks.append(svg.line(x(i * step), _TOP, x(i * step), bottom, "axis" if i == 0 else "grid"))
        at_end = x(i * step) > _RIGHT - 14
        marks.append(svg.text(x(i * step), bottom + 15, tick(i * step), "end" if at_end else "middle"))
    if limit is not None:
        marks.append(svg.line(x(limit), _TOP - 4, x(limit), _TOP + _ROW, "limit"))
        marks.append(svg.text(x(limit), _TOP - 7, "limit", "end" if x(limit) > _RIGHT - 14 else "middle"))
    for i, (name, value, below, above) in enumerate(rows):
        y = _TOP + _ROW * i + _ROW / 2
        marks.append(svg.text(_LEFT - 10, y + 4, _short(name), "end", "name" if i == 0 else ""))
        if below is not None and above is not None:
            marks.append(svg.line(x(below), y, x(above), y, "interval"))
            marks += [svg.line(x(end), y - 4, x(end), y + 4, "interval") for end in (below, above)]
        if value is not None:
            marks.append(svg.dot(x(value), y, 4.5 if i == 0 else 3.5, "got"))
    return svg.svg(bottom + 20, label, marks)


def perplexity_forest(cost: Cost, limit: float | None) -> Markup | None:
    """Change of perplexity in percent."""

    def row(name: str, part: Part) -> Row:
        ratio = part.ppl_ratio
        value, low, high = (None if x is None else 100 * (x - 1) for x in (ratio.value, ratio.low, ratio.high))
        return name, value, low, high

    held = None if limit is None else 100 * (limit - 1)
    return forest(_rows(cost, row), held, "Change of perplexity by part of the text", _percent)


def divergence_forest(cost: Cost, limit: float | None) -> Markup | None:
    """Mean KL divergence, nats a token."""

    def row(name: str, part: Part) -> Row:
        return name, part.kld.mean, part.kld.low, part.kld.high

    return forest(_rows(cost, row), limit, "KL divergence by part of the text", svg.tick_label)


def _rows(cost: Cost, row: Callable[[str, Part], Row]) -> list[Row]:
    return [row("all of it", cost), *(row(part.name, part) for part in cost.subsets)]


def _percent(x: float) -> str:
    return "same" if x == 0 else f"{x:+.6g} %".replace("-", svg.MINUS)


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"
