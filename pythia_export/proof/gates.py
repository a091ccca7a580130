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
from collections.abc import Mapping
from typing import Any

from ..recipe import Gate, Gates
from .statistics import LARGEST, student_t, t_interval, wilson

PASSED, FAILED, INCONCLUSIVE = "passed", "failed", "inconclusive"
REGRESSION = Gate(limit=1e-3)  # of `verify --against`, where the recipe sets none: nats of divergence a token
_EXPORT = {"export_max_abs": "max_abs", "decode_max_abs": "decode_max_abs"}
Json = Mapping[str, Any]
Verdict = dict[str, Any]


def judge(gates: Gates, parity: Json) -> list[Verdict]:
    """One dict a gate that the recipe sets, in the recipe's order; `parity` has `corpus`, `export` and `cost`.

    `name`, `limit`; `confidence`, None where the figure was measured outright; `value`; `bound`, what was held to the
    limit: the value itself, or the far end of its interval, None where there is none; `outcome`; `passed`;
    `more_tokens` that would decide what is inconclusive, None where that is unknown; `run`, the name of the run of
    question A that gave the figure. `regression` is judged only where there is a section `against`, and then always.
    """
    verdicts = []
    for name in Gates.model_fields:
        limit = getattr(gates, name)
        if name == "regression" and parity.get("against"):
            verdicts.append(_estimated(name, limit or REGRESSION, parity))
        elif limit is None or name == "regression":
            continue
        elif name in _EXPORT:
            verdicts.append(_measured(name, limit, parity))
        elif name == "min_tokens":
            verdicts.append(_enough(limit, parity))
        else:
            verdicts.append(_estimated(name, limit, parity))
    return verdicts


def _measured(name: str, limit: float, parity: Json) -> Verdict:
    """The worst of the runs that are held to limits."""
    runs = [run for run in (parity.get("export") or {}).get("runs", ()) if run["gated"]]
    key, worst = _EXPORT[name], None
    for run in runs:
        if worst is None or math.isnan(run[key]) or run[key] > worst[key]:
            worst = run
    if worst is None:
        return _verdict(name, limit, None, None, None, INCONCLUSIVE)
    value = worst[key]
    return _verdict(name, limit, None, value, value, PASSED if value <= limit else FAILED, run=worst["name"])


def _enough(limit: int, parity: Json) -> Verdict:
    tokens = (parity.get("corpus") or {}).get("tokens", 0)
    outcome, more = (PASSED, None) if tokens >= limit else (INCONCLUSIVE, limit - tokens)
    return _verdict("min_tokens", limit, None, tokens, tokens, outcome, more)


def _estimated(name: str, gate: Gate, parity: Json) -> Verdict:
    cost = parity.get("cost") or {}
    if name == "same_top":
        return _share(gate, cost.get("same_top") or {}, cost.get("tokens", 0))
    measured = (parity.get("against") or {}) if name == "regression" else cost
    section = measured.get("kld" if name in ("kld_mean", "regression") else "delta_nll") or {}
    tokens = measured.get("tokens", 0)
    mean, se, dof, limit = section.get("mean"), section.get("se"), section.get("dof"), gate.limit
    show = _exp if name == "ppl_ratio" else float
    at = math.log(limit) if name == "ppl_ratio" else limit  # where the interval is symmetric
    if mean is None or se is None or dof is None:
        # Without an interval even an estimate beyond the limit decides nothing.
        return _verdict(name, limit, gate.confidence, None if mean is None else show(mean), None, INCONCLUSIVE)
    low, high = t_interval(mean, se, dof, gate.confidence)
    outcome = PASSED if high <= at else INCONCLUSIVE if low <= at else FAILED
    more = _more(tokens, high - mean, abs(at - mean)) if outcome == INCONCLUSIVE else None
    return _verdict(name, limit, gate.confidence, show(mean), show(high), outcome, more)


def _share(gate: Gate, section: Json, tokens: int) -> Verdict:
    value, trials, dof = section.get("value"), section.get("independent_tokens"), section.get("dof")
    if value is None or trials is None or dof is None:
        return _verdict("same_top", gate.limit, gate.confidence, value, None, INCONCLUSIVE)
    low, high = wilson(value, trials, student_t(dof, gate.confidence))
    outcome = PASSED if low >= gate.limit else INCONCLUSIVE if high >= gate.limit else FAILED
    more = _more(tokens, value - low, abs(value - gate.limit)) if outcome == INCONCLUSIVE else None
    return _verdict("same_top", gate.limit, gate.confidence, value, low, outcome, more)


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
    name: str,
    limit: float,
    confidence: float | None,
    value: float | None,
    bound: float | None,
    outcome: str,
    more_tokens: int | None = None,
    run: str | None = None,
) -> Verdict:
    return {
        "name": name,
        "limit": limit,
        "confidence": confidence,
        "value": value,
        "bound": bound,
        "outcome": outcome,
        "passed": outcome == PASSED,
        "more_tokens": more_tokens,
        "run": run,
    }


def _exp(x: float) -> float | None:
    return math.exp(x) if x < math.log(LARGEST) else None
