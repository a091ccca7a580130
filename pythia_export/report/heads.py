"""Heat maps of the fused QKV's error: a row a layer, a column a head, a panel each for queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ..records.quantization import LinearRecord
from . import svg
from .findings import Part, parts
from .words import percent

_NAMES = {"q": "queries (q)", "k": "keys (k)", "v": "values (v)"}
_WIDTH, _LEFT, _TOP = 320, 36, 22  # three beside each other on a page
_TALLEST = 20  # a cell of few layers
_DECADES = 4  # of the scale at most: one silent head must not take the colour from all others
_FAINTEST = 0.06  # a cell at the scale's low end can still be told from one that is missing
_STRIPS = 40


@dataclass(frozen=True)
class HeadMaps:
    panels: list[Markup]
    legend: Markup


def head_maps(linears: Sequence[LinearRecord]) -> HeadMaps | None:
    """One logarithmic scale for all three; None where no errors of heads were recorded."""
    found = list(parts(linears))
    above = [part.error for part in found if part.error > 0]
    if not above:
        return None
    most = max(above)
    least = max(min(above), most * 10.0**-_DECADES)
    if least == most:
        least = most / 10
    shade = _shade(least, most)
    rows, columns = max(x.layer for x in linears if x.layer is not None) + 1, max(p.head for p in found) + 1
    panels = [
        _panel(name, of_kind, rows, columns, shade)
        for of, name in _NAMES.items()
        if (of_kind := [part for part in found if part.of == of])
    ]
    return HeadMaps(panels, _legend(least, most, shade, clipped=min(part.error for part in found) < least))


def head_map(title: str, label: str, found: Sequence[Part], show: Callable[[float], str]) -> HeadMaps | None:
    """Plot one figure of each head on a scale of its own; None where it is zero everywhere."""
    above = [part.error for part in found if part.error > 0]
    if not above:
        return None
    most = max(above)
    least = min(most / 10, max(min(above), most * 10.0**-_DECADES))
    shade = _shade(least, most)
    rows, columns = max(p.layer for p in found) + 1, max(p.head for p in found) + 1
    clipped = min(part.error for part in found) < least
    return HeadMaps(
        [_panel(title, found, rows, columns, shade, show, label)], _legend(least, most, shade, clipped, show)
    )


def _shade(low: float, high: float) -> Callable[[float], float]:
    """Opacity of the one colour, whichever paper is below it."""
    scale = svg.log_scale(low, high, _FAINTEST, 1.0)
    return lambda error: scale(min(max(error, low), high))


def _panel(
    name: str,
    found: Sequence[Part],
    rows: int,
    columns: int,
    shade: Callable[[float], float],
    show: Callable[[float], str] = percent,
    figure: str = "Relative output error",
) -> Markup:
    width = (_WIDTH - _LEFT - 4) / columns
    height = min(width, _TALLEST)
    gap = 0.08 * height
    numbers = {part: show(part.error).removesuffix(" %") for part in found}
    written = max(map(len, numbers.values())) * 6.2 + 6 < width  # in the cells too, where there is room
    marks = [svg.text(_LEFT, 12, name, "start", "name")]
    for part in found:
        x, y, opacity = _LEFT + width * part.head, _TOP + height * part.layer, shade(part.error)
        marks.append(_cell(x, y, width - gap, height - gap, opacity, f"{part.place}: {show(part.error)}"))
        if written:
            marks.append(svg.text(x + (width - gap) / 2, y + height / 2 + 3, numbers[part], look=_ink(opacity)))
    for layer in _few(rows, height):
        marks.append(svg.text(_LEFT - 6, _TOP + height * (layer + 0.5) + 3, str(layer), "end"))
    bottom = _TOP + height * rows
    for head in _few(columns, width):
        marks.append(svg.text(_LEFT + width * (head + 0.5), bottom + 12, str(head)))
    marks.append(svg.text(_LEFT + width * columns / 2, bottom + 26, "head"))
    marks.append(svg.text(_LEFT - 6, 12, "layer", "end"))
    worst = max(found, key=lambda part: part.error)
    label = f"{figure} of {name}, layer by head; largest {worst.place}, {show(worst.error)}"
    return svg.svg(bottom + 30, label, marks, _WIDTH)


def _few(count: int, size: float) -> Iterable[int]:
    """All places where there is room for their numbers, else the ends and the middle."""
    return range(count) if size >= 16 else sorted({0, (count - 1) // 2, count - 1})


def _cell(x: float, y: float, width: float, height: float, opacity: float, hint: str) -> Markup:
    return Markup(
        '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill-opacity="{:.2f}"><title>{}</title></rect>'
    ).format(x, y, width, height, opacity, hint)


def _ink(opacity: float) -> str:
    """The style sheet's name for black or white on such a cell, whichever is further from it.

    On white paper black is, up to an opacity of 0.85; on dark paper, where the colour is light, from 0.6 on.
    """
    return "under" if opacity < 0.6 else "mid" if opacity < 0.85 else "over"


def _legend(
    low: float,
    high: float,
    shade: Callable[[float], float],
    clipped: bool,
    show: Callable[[float], str] = percent,
) -> Markup:
    left, right = 30, svg.WIDTH - 30
    x, wide = svg.log_scale(low, high, left, right), (right - left) / _STRIPS
    marks = []
    for i in range(_STRIPS):
        error = low * (high / low) ** ((i + 0.5) / _STRIPS)
        marks.append(
            Markup('<rect x="{:.1f}" y="2" width="{:.1f}" height="10" fill-opacity="{:.2f}"/>').format(
                left + wide * i, wide, shade(error)
            )
        )
    between = [tick for tick in svg.log_ticks(low, high) if left + 45 < x(tick) < right - 45]
    for error in (low, *between, high):
        marks.append(svg.line(x(error), 12, x(error), 16, "axis"))
        marks.append(svg.text(x(error), 28, f"{'≤ ' if clipped and error == low else ''}{show(error)}"))
    return svg.svg(32, f"Colours from {show(low)}, faint, to {show(high)}, strong; logarithmic", marks)
