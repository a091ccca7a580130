"""What a sweep found, in sentences with their figures; and what its data does not say."""

from __future__ import annotations

import math

import numpy as np

from ..report.words import power
from .figures import DELTA, Axis, at_the_end, training
from .law import LAW, PUBLISHED, Compared, Estimate, Fit, NoFit, published
from .rows import Rows, joined, lines, quantizations, quoted

Fits = dict[str, Fit | NoFit]  # by setting
CONFOUNDED = 0.9  # rank correlation from which tokens and learning rate cannot be told apart


def measured(rows: Rows) -> str:
    """``1,234 results: 12 checkpoints of 3 models, 8 quantisations``"""
    if not len(rows):
        return "No results."
    words = (
        _count(len(rows), "result"),
        _count(rows.distinct("checkpoint"), "checkpoint"),
        _count(rows.distinct("name"), "model"),
        _count(rows.distinct("quantization"), "quantisation"),
    )
    tokens = sorted({int(n) for n in rows["tokens"] if n == n})
    text = f", each on {tokens[0]:,} held-out tokens" if len(tokens) == 1 else ""
    return f"{words[0]}: {words[1]} of {words[2]}, {words[3]}{text}."


def headlines(rows: Rows, fits: Fits, compared: dict[str, Compared | NoFit]) -> list[str]:
    """The first screen: how the cost went, what the law is, whether tokens are its cause."""
    rows = rows.known(DELTA)
    if not len(rows):
        return ["No cost was measured yet."]
    said = [growth(rows)]
    found = [(name, fit) for name, fit in fits.items() if isinstance(fit, Fit) and fit.at_centre.low is not None]
    if found:
        name, best = max(found, key=lambda each: len(each[1].rows))
        said.append(law_sentence(name, best))
        other = compared.get(name)
        if isinstance(other, Compared):
            said.append(_causes(other))
    return [s for s in said if s]


def growth(rows: Rows) -> str:
    """``At “int4 row” the cost of “70m” grew from 0.001 nats at 0.1 B tokens to 0.011 at 20 B.``"""
    axis = training(rows)
    known = rows.known(axis.column)
    told = known if known.distinct(axis.column) > 1 else rows
    name = _telling(told)
    own = told.where(told["quantization"] == name)
    curves = [(line, own.where(own["line"] == line)) for line in lines(own)]
    moved = [(line, part) for line, part in curves if part.distinct(axis.column) > 1]
    if moved:
        ends = moved if len(moved) < 2 else [moved[0], moved[-1]]
        return f"At {quoted(name)} the cost " + ", and ".join(_moved(line, part, axis) for line, part in ends) + "."
    last = at_the_end(rows, axis)
    every = quantizations(last)
    costs = {q: float(np.mean(last.where(last["quantization"] == q)[DELTA])) for q in every}
    model = f"of {quoted(last['line'][0])}" if last.distinct("line") == 1 else "on average over the checkpoints"
    if len(every) == 1:
        return f"Rounding to {quoted(every[0])} costs {_nats(costs[every[0]])} nats a token {model}."
    cheap, dear = min(every, key=lambda q: costs[q]), max(every, key=lambda q: costs[q])
    return (f"Rounding costs from {_nats(costs[cheap])} nats a token ({quoted(cheap)}) to "
            f"{_nats(costs[dear])} ({quoted(dear)}) {model}.")  # fmt: skip


def _telling(rows: Rows) -> str:
    """The quantisation nearest to 4 bits among those of the most rows."""
    names = quantizations(rows)
    sizes = {n: int((rows["quantization"] == n).sum()) for n in names}
    bits = {n: float(rows["bits"][rows["quantization"] == n][0]) for n in names}
    method = {n: rows["method"][rows["quantization"] == n][0] for n in names}
    return min(names, key=lambda n: (method[n] != "gptq", -sizes[n], abs(np.nan_to_num(bits[n], nan=99.0) - 4)))


def _moved(line: str, part: Rows, axis: Axis) -> str:
    x = part[axis.column]
    above = x > 0 if axis.column == "training_tokens" and np.unique(x[x > 0]).size > 1 else np.ones(len(x), dtype=bool)
    first, last = (part.where(x == edge) for edge in (x[above].min(), x[above].max()))
    costs = [float(np.mean(p[DELTA])) for p in (first, last)]
    noise = [float(np.nan_to_num(p["delta_nll_se"]).max()) for p in (first, last)]
    if abs(costs[1] - costs[0]) <= 2 * math.hypot(*noise):
        verb = "did not change by more than noise:"
    else:
        verb = "grew" if costs[1] > costs[0] else "fell"
    ends = [axis.at(float(p[axis.column][0])) for p in (first, last)]
    return f"of {quoted(line)} {verb} from {_nats(costs[0])} nats a token {ends[0]} to {_nats(costs[1])} {ends[1]}"


def law_sentence(name: str, fit: Fit) -> str:
    ours = ", ".join(f"{letter} = {estimate(e)}" for letter, e in fit.constants.items() if letter != "k")
    if not ours:
        return ""
    known = ", ".join(f"{letter} {PUBLISHED[letter]:.3g}" for letter in fit.constants if letter in PUBLISHED
                      and letter != "k")  # fmt: skip
    return f"The law fitted to {quoted(name)} has {ours}; published: {known}."


def _causes(c: Compared) -> str:
    fitted = {name: _share(value) for name, value in c.predicted.items()}
    return (
        f"Of what size and bits leave open, training tokens explain {fitted['tokens']} on held-out {c.held_out}, the "
        f"learning rate {fitted['rate']}, both {fitted['both']}."
    )


def supports(rows: Rows, fits: Fits, compared: dict[str, Compared | NoFit]) -> list[str]:
    """What the data does and does not support, a sentence or two each."""
    if not len(rows.known(DELTA)):
        return ["Nothing yet: no cost was measured."]
    said = []
    for name, fit in fits.items():
        if isinstance(fit, NoFit):
            said.append(f"{quoted(name)}: no fit: {fit.why}.")
            continue
        for factor in LAW:
            if factor.letter in fit.unidentified:
                said.append(f"{quoted(name)}: {factor.letter} is not identified: {fit.unidentified[factor.letter]}; "
                            "k holds its part and cannot be compared.")  # fmt: skip
        said += _against_published(name, fit)
        said.append(
            f"{quoted(name)}: the law misses single costs by a factor of about {np.exp(fit.tau):.2f}, beyond their "
            f"noise, and explains {_share(fit.explained)} of the variance of the logarithms of "
            f"{_count(len(fit.rows), 'row')}. A power of bits is a convenience: see the residuals by bits."
        )
    for name, c in compared.items():
        said += _confounded(name, c) if isinstance(c, Compared) else [
            f"{quoted(name)}: whether tokens or the learning rate are the cause cannot be asked: {c.why}."
        ]  # fmt: skip
    clear = rows.known(DELTA, "delta_nll_low")
    noise = int((clear["delta_nll_low"] <= 0).sum())
    if noise:
        said.append(f"The interval of {noise:,} of {len(clear):,} costs includes zero: alone, these say no more than "
                    "that the cost is small.")  # fmt: skip
    said.append(
        "Checkpoints of one run are not independent of each other; the intervals resample checkpoints as if they were, "
        "and are, if anything, too narrow for other runs."
    )
    texts = rows.distinct("verify")
    if texts > 1:
        said.append(f"The rows were measured on {texts} different held-out texts, whose costs need not be comparable.")
    return said


def _against_published(name: str, fit: Fit) -> list[str]:
    said = []
    for factor in LAW:
        own = fit.constants.get(factor.letter)
        if own is None or own.low is None or own.high is None:
            continue
        there = PUBLISHED[factor.letter]
        word = "inside" if own.low <= there <= own.high else "outside"
        said.append(f"{factor.letter} {estimate(own)}, the published {there:.4g} {word} the interval")
    if not said:
        return [f"{quoted(name)}: {_count(fit.checkpoints, 'checkpoint')}: too few to resample, no intervals."]
    lines = [f"{quoted(name)}: {joined(said)}."]
    rows = fit.rows
    if all(np.isfinite(rows[f.column]).all() for f in LAW):
        ratio = np.median(published(*(rows[f.column] for f in LAW)) / fit.fitted)
        lines.append(f"{quoted(name)}: the published law gives {_times(float(ratio))} the cost that was fitted here, "
                     "at the median of the rows.")  # fmt: skip
    return lines


def _confounded(name: str, c: Compared) -> list[str]:
    r = f"{c.correlation:+.2f}".replace("-", "−")
    lines = [
        f"{quoted(name)}, {c.rows:,} rows with a learning rate: {_causes(c)[0].lower()}{_causes(c)[1:]} "
        "On the rows fitted: "
        + ", ".join(f"{word} {_share(c.fitted[key])}" for key, word in
                    (("tokens", "tokens"), ("rate", "learning rate"), ("both", "both"))) + "."
    ]  # fmt: skip
    close = abs(c.predicted["tokens"] - c.predicted["rate"]) < 0.05
    if abs(c.correlation) >= CONFOUNDED:
        lines.append(f"{quoted(name)}: tokens and learning rate go together in these checkpoints (rank correlation "
                     f"{r}): this data cannot say which of the two is the cause.")  # fmt: skip
    elif close:
        lines.append(
            f"{quoted(name)}: the two explain about as much (their rank correlation is {r}): this data does not decide."
        )
    else:
        tokens = c.predicted["tokens"] > c.predicted["rate"]
        better = "tokens describe" if tokens else "the learning rate describes"
        lines.append(f"{quoted(name)}: {better} the cost better here (the two have a rank correlation of {r}); no "
                     "proof of a cause: within a run the two are not varied apart.")  # fmt: skip
    return lines


# Words.


def _nats(x: float) -> str:
    return power(x).replace("-", "−")


def estimate(e: Estimate) -> str:
    """``0.53 (0.52 to 0.54)``"""
    if e.low is None or e.high is None:
        return f"{e.value:.3g} (no interval)".replace("-", "−")
    width = e.high - e.low
    digits = min(4, max(1, 1 - int(np.floor(np.log10(width))))) if width > 0 else 3
    return f"{e.value:.{digits}f} ({e.low:.{digits}f} to {e.high:.{digits}f})".replace("-", "−")


def _share(x: float) -> str:
    """Return a share of the variance in words; a model that predicts worse than none explains nothing."""
    return f"{100 * x:.1f} %" if x > 0 else "nothing"


def _times(ratio: float) -> str:
    return f"{ratio:.2g} times"


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"
