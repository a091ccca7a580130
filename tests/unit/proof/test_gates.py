"""A gate is passed by a bound, not by luck."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError
from records import WRITTEN, judged

from pythia_export.proof.against import compare
from pythia_export.proof.metrics import TokenFigures
from pythia_export.proof.statistics import student_t, summarise, wilson
from pythia_export.recipe import Gates
from pythia_export.records.parity import Parity

RUN = WRITTEN["export"]["runs"][0]
RUNS = [
    RUN | {"name": "level 0", "gated": True, "max_abs": 2e-5, "decode_max_abs": 3e-5},
    RUN | {"name": "as it ships, level 4", "gated": False, "max_abs": 0.3, "decode_max_abs": 0.4},
]
PASSED, FAILED, INCONCLUSIVE = "passed", "failed", "inconclusive"
T = student_t(20)
PARITY = {
    "corpus": {"tokens": 10_000},
    "export": {"runs": RUNS},
    "cost": {
        "tokens": 10_000,
        "delta_nll": {"mean": 0.020, "se": 0.010 / T, "dof": 20},  # 0.010 to 0.030
        "kld": {"mean": 0.010, "se": 0.002 / T, "dof": 20},
        "same_top": {"value": 0.95, "independent_tokens": 2000, "dof": 20},
    },
}
LOW, HIGH = wilson(0.95, 2000, T)


def one(parity=PARITY, **limits):
    (verdict,) = judged(Gates(**limits), parity)
    assert verdict["passed"] is (verdict["outcome"] == PASSED)
    return verdict


@pytest.mark.parametrize(
    ("name", "outcomes"),
    [
        ("export_max_abs", {2e-5: PASSED, 1.9e-5: FAILED}),
        ("decode_max_abs", {3e-5: PASSED, 2.9e-5: FAILED}),
        ("delta_nll", {0.0301: PASSED, 0.025: INCONCLUSIVE, 0.015: INCONCLUSIVE, 0.0099: FAILED}),
        ("ppl_ratio", {math.exp(0.0301): PASSED, math.exp(0.025): INCONCLUSIVE, math.exp(0.0099): FAILED}),
        ("kld_mean", {0.0121: PASSED, 0.011: INCONCLUSIVE, 0.0079: FAILED}),
        ("same_top", {LOW: PASSED, 0.945: INCONCLUSIVE, HIGH + 1e-4: FAILED}),
        ("min_tokens", {10_000: PASSED, 10_001: INCONCLUSIVE}),
    ],
)
def test_the_interval_decides_and_not_the_estimate(name, outcomes):
    assert {limit: one(**{name: limit})["outcome"] for limit in outcomes} == outcomes


def test_a_gate_may_ask_for_more_confidence():
    limit = 0.032
    assert one(delta_nll=limit)["outcome"] == PASSED
    strict = one(delta_nll={"limit": limit, "confidence": 0.999})
    assert strict["outcome"] == INCONCLUSIVE and strict["confidence"] == 0.999
    assert strict["bound"] == pytest.approx(0.020 + 0.010 * student_t(20, 0.999) / T)
    share = one(same_top={"limit": 0.9, "confidence": 0.5})
    assert share["bound"] == pytest.approx(wilson(0.95, 2000, student_t(20, 0.5))[0])


def test_verdicts_carry_limit_value_and_bound_in_the_recipes_order():
    verdicts = judged(Gates(same_top=0.9, ppl_ratio=1.02, export_max_abs=1e-4), PARITY)
    assert [v["name"] for v in verdicts] == ["export_max_abs", "ppl_ratio", "same_top"]
    assert verdicts[0] == {
        "name": "export_max_abs", "limit": 1e-4, "confidence": None, "value": 2e-5, "bound": 2e-5, "outcome": PASSED,
        "passed": True, "more_tokens": None, "run": "level 0",
    }  # fmt: skip
    assert verdicts[1]["value"] == pytest.approx(math.exp(0.02))
    assert verdicts[1]["bound"] == pytest.approx(math.exp(0.03))


def test_the_worst_gated_run_is_the_one_that_counts():
    native = RUN | {"name": "native kernels, level 0", "gated": True, "max_abs": 1e-3, "decode_max_abs": 1e-5}
    parity = {"export": {"runs": [*RUNS, native]}}
    found = one(parity, export_max_abs=1e-4)
    assert found["outcome"] == FAILED and found["value"] == 1e-3 and found["run"] == "native kernels, level 0"
    assert one(parity, decode_max_abs=1e-4)["run"] == "level 0"


def scored(documents: int, seed: int):
    """A section `cost` of text whose truth is known: documents of one length, dNLL about 0.02 nats."""
    rng, figures = np.random.default_rng(seed), TokenFigures()
    for document in range(documents):
        p = np.zeros((50, 2))
        q = p.copy()
        q[:, 0] -= 0.04 + 0.02 * rng.normal()
        figures.add(p, q, np.zeros(50, int), document)
    return {"cost": summarise(figures, 1).to_json()}


def test_so_many_more_tokens_do_decide():
    few = scored(12, 0)
    limit = few["cost"]["delta_nll"]["mean"] + 0.6 * (
        few["cost"]["delta_nll"]["high"] - few["cost"]["delta_nll"]["mean"]
    )
    asked = one(few, delta_nll=limit)
    assert asked["outcome"] == INCONCLUSIVE and asked["more_tokens"] == pytest.approx(600 * (1 / 0.36 - 1), rel=0.05)
    # Text of that length whose estimate is the same: every document as often as it takes.
    cost = few["cost"]["delta_nll"]
    times = 1 + asked["more_tokens"] / 600
    more = {"tokens": round(600 * times), "delta_nll": cost | {"se": cost["se"] / math.sqrt(times)}}
    assert one({"cost": more}, delta_nll=limit)["outcome"] == PASSED


def test_how_many_more_tokens_is_not_said_where_none_would_do():
    assert one(delta_nll=0.020)["more_tokens"] is None  # the estimate itself
    assert one(min_tokens=12_345)["more_tokens"] == 2_345


def test_without_an_interval_no_estimate_decides():
    parity = {"cost": {"tokens": 63, "delta_nll": {"mean": 0.0, "se": None, "dof": None}}}
    found = one(parity, ppl_ratio=1.5)
    assert (found["value"], found["bound"], found["outcome"]) == (1.0, None, INCONCLUSIVE)


@pytest.mark.parametrize(
    "broken",
    [
        {"export": {"runs": [RUN | {"max_abs": float("nan")}, *RUNS]}},
        {"cost": {"same_top": {"value": float("nan")}}},
        {"cost": {"delta_nll": {"mean": float("nan")}}},
        {"cost": {"delta_nll": None}},
    ],
)
def test_what_was_not_measured_and_what_is_no_number_is_no_record_to_judge(broken):
    with pytest.raises(ValidationError):
        one(broken, export_max_abs=1.0)


def test_a_destroyed_model_fails_though_its_ratio_is_beyond_a_float():
    parity = {"cost": {"tokens": 9, "delta_nll": {"mean": 2000.0, "se": 1.0, "dof": 8.0}}}
    found = one(parity, ppl_ratio=1.5)
    assert found["outcome"] == FAILED and found["value"] is None


def test_no_limits_no_gates():
    assert judged(Gates(), PARITY) == []


def test_a_regression_is_judged_whenever_there_is_something_to_compare_with():
    assert judged(Gates(regression=0.01), PARITY) == []
    against = regression(0.0, 1e-4)
    assert one(against)["outcome"] == PASSED and one(against)["limit"] == 1e-3
    assert one(against, regression=1e-5)["outcome"] == INCONCLUSIVE
    assert one(regression(0.1, 1e-3), regression=0.01)["outcome"] == FAILED


def regression(mean: float, se: float) -> dict:
    proof = Parity.model_validate(WRITTEN)
    against = compare(proof.cost, proof.export, proof).to_json()
    return {"against": against | {"tokens": 10_000, "kld": against["kld"] | {"mean": mean, "se": se, "dof": 30.0}}}
