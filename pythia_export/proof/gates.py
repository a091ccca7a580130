"""The recipe's limits against what was measured.

What was measured outright (the largest difference of two computations) is held to the limit itself. What was estimated
from held-out text has an interval at the gate's confidence, and three outcomes:

    passed         the far end clears the limit: a lucky sample is not a proof
    failed         the near end does not: more text would not help
    inconclusive   the limit lies within, or there is no interval at all

An interval narrows with the root of the text. So where it must be d wide and is h, ``tokens ((h / d)^2 - 1)`` more
tokens of such text would decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import get_args

from ..recipe import INSIDE, Gate, Gates
from ..records.parity import Against, Corpus, Exported, GateName, Inside, Mean, Outcome, Run, Scored, Share, Verdict
from .statistics import LARGEST, student_t, t_interval, wilson

REGRESSION = Gate(limit=1e-3)  # of `verify --against`, where the recipe sets none: nats of divergence a token
OUTCOMES: tuple[Outcome, ...] = ("passed", "inconclusive", "failed")  # better ones first
NAMES: tuple[GateName, ...] = get_args(GateName)
AT_LEAST = ("lens_same_top", "feature_survival")  # of those on what is inside


def judge(
    gates: Gates,
    corpus: Corpus,
    exported: Exported,
    cost: Scored,
    against: Against | None = None,
    inside: Inside | None = None,
) -> list[Verdict]:
    """Return a verdict for each gate that the recipe sets, in the recipe's order, from the sections of a proof.

    `regression` is judged only where there is a section `against`, and then always. Those on what is inside need the
    section `inside`; they hold every layer, head or autoencoder, and the one that is worst off has the verdict.
    """
    verdicts = []
    for name in NAMES:
        limit = getattr(gates, name)
        if name == "regression":
            if against is not None:
                verdicts.append(_mean(name, limit or REGRESSION, against.kld, against.tokens))
        elif limit is None:
            continue
        elif name == "export_max_abs" or name == "decode_max_abs":
            verdicts.append(_measured(name, limit, exported))
        elif name == "min_tokens":
            verdicts.append(_enough(limit, corpus.tokens))
        elif name in INSIDE:
            if inside is not None and (name != "feature_survival" or inside.artifact.features):
                verdicts.append(_worst(_each(name, limit, inside)))
        elif name == "same_top":
            verdicts.append(_share(name, limit, cost.same_top, cost.tokens))
        else:
            verdicts.append(_mean(name, limit, cost.kld if name == "kld_mean" else cost.delta_nll, cost.tokens))
    return verdicts


def _measured(name: GateName, limit: float, exported: Exported) -> Verdict:
    """Judge the worst of the runs that are held to limits."""

    def value(run: Run) -> float:
        return run.max_abs if name == "export_max_abs" else run.decode_max_abs

    worst = max((run for run in exported.runs if run.gated), key=value)
    found = value(worst)
    return _verdict(name, limit, None, found, found, "passed" if found <= limit else "failed", run=worst.name)


def _enough(limit: int, tokens: int) -> Verdict:
    enough = tokens >= limit
    more = None if enough else limit - tokens
    return _verdict("min_tokens", limit, None, tokens, tokens, "passed" if enough else "inconclusive", more)


def _mean(name: GateName, gate: Gate, found: Mean, tokens: int) -> Verdict:
    mean, limit, show = found.mean, gate.limit, _exp if name == "ppl_ratio" else float
    at = math.log(limit) if name == "ppl_ratio" else limit  # where the interval is symmetric
    if found.se is None or found.dof is None:
        # Without an interval even an estimate beyond the limit decides nothing.
        return _verdict(name, limit, gate.confidence, show(mean), None, "inconclusive")
    low, high = t_interval(mean, found.se, found.dof, gate.confidence)
    outcome: Outcome = "passed" if high <= at else "inconclusive" if low <= at else "failed"
    more = _more(tokens, high - mean, abs(at - mean)) if outcome == "inconclusive" else None
    return _verdict(name, limit, gate.confidence, show(mean), show(high), outcome, more)


def _each(name: GateName, gate: Gate, inside: Inside) -> Iterable[Verdict]:
    """Yield a verdict for each layer, each head or each autoencoder."""
    tokens, found = inside.tokens, inside.artifact
    for boundary in found.depth:
        place = {"place": "the embedding" if boundary.layer is None else f"layer {boundary.layer}"}
        if name == "residual_error":
            yield _mean(name, gate, boundary.residual_error, tokens).model_copy(update=place)
        elif name == "lens_same_top":
            yield _share(name, gate, boundary.lens_same_top, tokens).model_copy(update=place)
    for head in found.heads:
        place = {"place": f"layer {head.layer}, head {head.head}"}
        if name == "pattern_js":
            yield _mean(name, gate, head.pattern_js, tokens).model_copy(update=place)
        elif name == "induction_lost":  # of random tokens: more text would not help
            yield _mean(name, gate, head.induction_lost, tokens).model_copy(update=place | {"more_tokens": None})

    for one in found.features if name == "feature_survival" else ():
        yield _share(name, gate, one.survived, tokens).model_copy(update={"place": one.name})


def _worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the one that is furthest from passing."""

    def away(verdict: Verdict) -> tuple[int, float]:
        end = verdict.value if verdict.bound is None else verdict.bound
        beyond = math.inf if end is None else end - verdict.limit
        return OUTCOMES.index(verdict.outcome), -beyond if verdict.name in AT_LEAST else beyond

    return max(verdicts, key=away)


def _share(name: GateName, gate: Gate, found: Share, tokens: int) -> Verdict:
    value, trials, limit = found.value, found.independent_tokens, gate.limit
    if trials is None or found.dof is None:
        return _verdict(name, limit, gate.confidence, value, None, "inconclusive")
    low, high = wilson(value, trials, student_t(found.dof, gate.confidence))
    outcome: Outcome = "passed" if low >= limit else "inconclusive" if high >= limit else "failed"
    more = _more(tokens, value - low, abs(value - limit)) if outcome == "inconclusive" else None
    return _verdict(name, limit, gate.confidence, value, low, outcome, more)


def _more(tokens: int, half_width: float, distance: float) -> int | None:
    """Tokens to add, two digits of them; None where the estimate lies on the limit and no number would do."""
    if distance <= 0:
        return None
    wanted = tokens * ((half_width / distance) ** 2 - 1)
    if not math.isfinite(wanted) or wanted > 1e15:
        return None
    digits = 10 ** max(0, math.floor(math.log10(max(wanted, 1))) - 1)
    return int(math.ceil(max(wanted, 1) / digits) * digits)


def _verdict(
    name: GateName,
    limit: float,
    confidence: float | None,
    value: float | None,
    bound: float | None,
    outcome: Outcome,
    more_tokens: int | None = None,
    run: str | None = None,
) -> Verdict:
    return Verdict(
        name=name,
        limit=limit,
        confidence=confidence,
        value=value,
        bound=bound,
        outcome=outcome,
        passed=outcome == "passed",
        more_tokens=more_tokens,
        run=run,
    )


def _exp(x: float) -> float | None:
    return math.exp(x) if x < math.log(LARGEST) else None
