"""Marks and scales of the report's plots, as inline SVG.

Colours come from the page's style sheet, so that plots follow dark mode and print. A plot is about 340 units wide, a
phone's width: text is then legible where the page is narrowest. It is an image with a label that says what it shows;
its figures also stand in a table or a sentence beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from markupsafe import Markup

from .words import superscript

WIDTH = 340
MINUS = "−"


def svg(height: float, label: str, marks: Iterable[Markup], width: float = WIDTH) -> Markup:
    return Markup('<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>').format(
        width, round(height, 1), label, Markup("").join(marks)
    )


def line(x1: float, y1: float, x2: float, y2: float, look: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(look, x1, y1, x2, y2)


def dot(x: float, y: float, radius: float, look: str) -> Markup:
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(look, x, y, radius)


def text(x: float, y: float, content: str, anchor: str = "middle", look: str = "") -> Markup:
    styled = Markup(' class="{}"').format(look) if look else ""
    return Markup('<text{} x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(styled, x, y, anchor, content)


def power_of_ten(exponent: int) -> str:
    return {0: "1", 1: "10"}.get(exponent) or f"10{superscript(exponent)}"


def log_scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    a, b = math.log10(low), math.log10(high)
    return lambda v: start + (end - start) * (math.log10(v) - a) / (b - a)


def log_ticks(low: float, high: float) -> list[float]:
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


def round_step(least: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    unit = 10.0 ** math.floor(math.log10(least))
    return next(m * unit for m in (1, 2, 5, 10) if m * unit >= least)


def tick_label(value: float) -> str:
    """``0.02``, ``5·10⁻⁴``: it has the room left of a plot and no more."""
    if value == 0 or 0.001 <= value < 1e5:
        return f"{value:.6g}"
    digits, _, exponent = f"{value:.0e}".partition("e")
    tens = power_of_ten(int(exponent))
    return tens if digits == "1" else f"{digits}·{tens}"
