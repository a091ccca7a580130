"""Errors over the depth of the model: of each kind of linear, and of the residual stream that they add up to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from ..records.quantization import LayerRecord, LinearRecord
from . import svg
from .words import by_kind

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, svg.WIDTH - 12, 8, 150


def depth_panels(linears: Sequence[LinearRecord]) -> list[tuple[str, Markup]]:
    """For each kind of linear in the blocks, its loss over the layers beside round-to-nearest's; one log scale for all.

    Losses of zero, or so small that their power of ten is no number, have no place on a log scale and are left out.
    """
    blocks = [x for x in linears if x.layer is not None]
    losses = [loss for x in blocks for loss in (x.rtn_loss, x.loss) if loss is not None and _on_log_scale(loss)]
    if not losses:
        return []
    ticks = svg.log_ticks(min(losses), max(losses))
    last = max(x.layer or 0 for x in blocks)
    return [(name, _losses(name, of_kind, last, ticks)) for name, of_kind in by_kind(blocks).items()]


def residual_panel(layers: Sequence[LayerRecord]) -> Markup | None:
    """Plot the relative squared error of the residual stream behind each layer, where it was measured."""
    errors = {x.layer: x.residual_error for x in layers if x.residual_error is not None}
    if not errors:
        return None
    last = max(x.layer for x in layers)
    return curves("Relative squared error of the residual stream, layer by layer", [("got", errors)], last)


def curves(label: str, series: Sequence[tuple[str, Mapping[int, float]]], last: int) -> Markup:
    """Plot figures by layer, each series (a look, and its figures) with dots that are linked.

    The scale is logarithmic where the figures span more than a decade, else linear from zero.
    """
    every = [value for _, found in series for value in found.values()]
    most, above = max(every), [value for value in every if _on_log_scale(value)]
    logarithmic = bool(above) and most > 10 * min(above)
    if logarithmic:
        ticks = svg.log_ticks(min(above), most)
        y = svg.log_scale(ticks[0], ticks[-1], _BOTTOM, _TOP)
    else:
        step = svg.round_step(most / 4) if above else 1.0
        ticks = [step * i for i in range(next(n for n in range(1, 6) if step * n >= most * (1 - 1e-9)) + 1)]
        y = _linear_scale(ticks[-1])
    marks = _axes(ticks, y, last)
    for look, found in series:
        shown = {layer: value for layer, value in found.items() if not logarithmic or _on_log_scale(value)}
        points = [(_x(layer, last), y(value)) for layer, value in sorted(shown.items())]
        marks += [svg.line(*start, *end, "link") for start, end in zip(points, points[1:], strict=False)]
        marks += [svg.dot(*point, _radius(last), look) for point in points]
    return svg.svg(_BOTTOM + 36, label, marks)


def _losses(name: str, linears: Sequence[LinearRecord], last: int, ticks: list[float]) -> Markup:
    y = svg.log_scale(ticks[0], ticks[-1], _BOTTOM, _TOP)
    marks, radius = _axes(ticks, y, last), _radius(last)
    for linear in linears:
        at = _x(linear.layer or 0, last)
        nearest, loss = (x if _on_log_scale(x) else None for x in (linear.rtn_loss, linear.loss))
        if nearest and loss:
            marks.append(svg.line(at, y(nearest), at, y(loss), "link"))
        if nearest and linear.method != "rtn":
            marks.append(svg.dot(at, y(nearest), radius, "rtn"))
        if loss:
            marks.append(svg.dot(at, y(loss), radius, "rtn" if linear.method == "rtn" else "got"))
    return svg.svg(_BOTTOM + 36, f"Relative output error of {name}, layer by layer", marks)


def _axes(ticks: Sequence[float], y: Callable[[float], float], last: int) -> list[Markup]:
    marks = []
    for tick in ticks:
        marks.append(svg.line(_LEFT, y(tick), _RIGHT, y(tick), "grid"))
        marks.append(svg.text(_LEFT - 6, y(tick) + 4, svg.tick_label(tick), "end"))
    for layer in sorted({0, last // 2, last}):
        marks.append(svg.text(_x(layer, last), _BOTTOM + 17, str(layer)))
    return [*marks, svg.text((_LEFT + _RIGHT) / 2, _BOTTOM + 32, "layer")]


def _x(layer: int, last: int) -> float:
    return (_LEFT + _RIGHT) / 2 if last == 0 else _LEFT + 10 + (_RIGHT - _LEFT - 20) * layer / last


def _radius(last: int) -> float:
    return 4 if last < 16 else 2.8


def _linear_scale(highest: float) -> Callable[[float], float]:
    return lambda v: _BOTTOM + (_TOP - _BOTTOM) * v / highest


def _on_log_scale(value: float | None) -> bool:
    return value is not None and value > 1e-290
