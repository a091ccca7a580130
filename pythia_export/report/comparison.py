"""What `compare` found, for people: sentences, the figures of a table to common digits, and the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..base.version import __version__
from ..records.comparison import Comparison, Contender, Pair
from ..records.parity import Mean
from . import svg, words
from .forest import forest

MOST_DIGITS = 6
MOST_LETTERS = 15  # of a name beside a plot, wide ones too


def headline(found: Comparison) -> str:
    """Say which artifact is closest to the baseline, and whether the text can tell the next one from it."""
    ranked = sorted(found.contenders, key=lambda x: x.kld.mean)
    beside = "the original" if found.baseline == "original" else found.baseline_name
    best = f"{ranked[0].name} is closest to {beside}: {words.power(ranked[0].kld.mean)} nats of KL divergence per token"
    if len(ranked) == 1:
        return f"{best}."
    pair = next(x for x in found.pairs if {x.name, x.less} == {ranked[0].name, ranked[1].name})
    if pair.kld.low is None or pair.kld.high is None:
        return f"{best}; the text allows no interval."
    if pair.kld.low <= 0 <= pair.kld.high:
        return f"{best}; the text cannot tell {ranked[1].name} from it."
    return f"{best}, and {ranked[1].name}, the next, is farther by more than chance."


def aligned(means: Sequence[Mean], sign: bool) -> list[tuple[str, str]]:
    """Return each value and its 95 % interval, all to the digits that the narrowest interval deserves."""
    widths = [x.high - x.low for x in means if x.low is not None and x.high is not None and x.high > x.low]
    digits = min(MOST_DIGITS, max(1, 1 - math.floor(math.log10(min(widths))))) if widths else 4
    form = f"{'+' if sign else ''}.{digits}f"

    def text(x: float) -> str:
        return format(x, form).replace("-", svg.MINUS)

    return [
        (text(x.mean), words.NO_INTERVAL if x.low is None or x.high is None else f"{text(x.low)} to {text(x.high)}")
        for x in means
    ]


def render_comparison(found: Comparison) -> str:
    """Return one HTML page that needs nothing else, neither the network nor a script."""
    rows, corpus = found.contenders, found.corpus
    delta, kld = (
        aligned([getattr(x, name) for x in rows], sign) for name, sign in (("delta_nll", True), ("kld", False))
    )
    apart = [aligned([getattr(x, name) for x in found.pairs], True) for name in ("delta_nll", "kld")]
    return _templates().get_template("comparison.html.j2").render(
        words=words,
        found=found,
        headline=headline(found),
        beside="original" if found.baseline == "original" else "first artifact",
        rows=list(zip(rows, delta, kld, strict=True)),
        pairs=list(zip(found.pairs, *apart, strict=True)),
        plots=[
            ("Loss above the baseline’s, nats a token", _plot(rows, "delta_nll", "Rise of the loss")),
            ("KL divergence from the baseline, nats a token", _plot(rows, "kld", "KL divergence")),
        ],
        facts={
            "Text": f"{corpus.source}: {corpus.windows:,} windows of {corpus.sequence_length:,} tokens",
            "its SHA-256": corpus.sha256,
            "Measured": f"{found.created}, {found.machine}",
            "Versions": ", ".join(f"{package} {version}" for package, version in found.versions.items()),
        },
        program=f"pythia-export {__version__}",
    )  # fmt: skip


def pair_name(pair: Pair) -> str:
    return f"{pair.name} {svg.MINUS} {pair.less}"


def _plot(rows: Sequence[Contender], name: str, label: str) -> Markup | None:
    means = [
        (x.name if len(x.name) <= MOST_LETTERS else f"{x.name[: MOST_LETTERS - 1]}…", getattr(x, name)) for x in rows
    ]
    return forest([(one, x.mean, x.low, x.high) for one, x in means], None, label, svg.tick_label)


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
