"""Plots of the third question: what differs from layer to layer, and a grid of heads for each figure of theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from ..records.parity import Depth, Head, Inside
from . import svg
from .depth import curves
from .findings import Part
from .heads import HeadMaps, head_map


@dataclass(frozen=True)
class InsidePlots:
    """Each with its caption."""

    depth: list[tuple[str, Markup]]
    heads: list[tuple[str, HeadMaps]]


def inside_plots(inside: Inside | None) -> InsidePlots | None:
    if inside is None:
        return None
    return InsidePlots(
        [
            _by_layer(inside, "Residual stream behind each layer, relative error", lambda x: x.residual_error.mean),
            _by_layer(
                inside,
                "Tokens with another likeliest successor by the logit lens, share",
                lambda x: 1 - x.lens_same_top.value,
            ),
        ],
        [
            found
            for found in (
                _by_head(inside, "attention pattern", "Jensen-Shannon divergence", _pattern),
                _by_head(inside, "original", "Induction score", _induction),
                _by_head(inside, "lost or gained", "Induction score", _lost),
            )
            if found is not None
        ],
    )


def _by_layer(inside: Inside, title: str, figure: Callable[[Depth], float]) -> tuple[str, Markup]:
    sides = [("got", inside.artifact), *([("rtn", inside.rtn)] if inside.rtn is not None else [])]
    series = [(look, {x.layer: figure(x) for x in side.depth if x.layer is not None}) for look, side in reversed(sides)]
    last = max(x.layer for x in inside.artifact.depth if x.layer is not None)
    return title, curves(f"{title}, layer by layer", series, last)


def _by_head(inside: Inside, name: str, label: str, figure: Callable[[Head], float]) -> tuple[str, HeadMaps] | None:
    parts = [Part(head.layer, head.head, "", figure(head)) for head in inside.artifact.heads]
    found = head_map(name, label, parts, _short)
    return None if found is None else (f"{label}: {name}", found)


def _short(x: float) -> str:
    """Two digits, which a narrow cell has room for."""
    return svg.tick_label(float(f"{x:.2g}"))


def _pattern(head: Head) -> float:
    return head.pattern_js.mean


def _induction(head: Head) -> float:
    return head.induction_original


def _lost(head: Head) -> float:
    return abs(head.induction_lost.mean)
