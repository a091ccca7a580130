"""A gate is passed by a bound, not by luck."""

from __future__ import annotations

import pytest

from pythia_export.parity.gates import judge
from pythia_export.recipe import Gates

PARITY = {
    "export": {"max_abs": 2e-5, "decode_max_abs": 3e-5, "shipped": {"max_abs": 0.3, "decode_max_abs": 0.4}},
    "cost": {
        "ppl_ratio": {"value": 1.02, "low": 1.01, "high": 1.03},
        "kld": {"mean": 0.010, "low": 0.008, "high": 0.012},
        "same_top": {"value": 0.95, "low": 0.94, "high": 0.96},
    },
}


def passed(parity=PARITY, **limits) -> bool:
    (verdict,) = judge(Gates(**limits), parity)
    assert verdict["passed"] in (True, False)
    return verdict["passed"]


@pytest.mark.parametrize(
    ("name", "enough", "too_strict"),
    [
        ("export_max_abs", 2e-5, 1.9e-5),
        ("decode_max_abs", 3e-5, 2.9e-5),
        ("ppl_ratio", 1.03, 1.025),  # the estimate clears 1.025, its upper bound does not
        ("kld_mean", 0.012, 0.011),
        ("same_top", 0.94, 0.945),  # and here the lower one
    ],
)
def test_the_bound_decides_and_may_touch_the_limit(name, enough, too_strict):
    assert passed(**{name: enough})
    assert not passed(**{name: too_strict})


def test_verdicts_carry_limit_value_and_bound_in_the_recipes_order():
    verdicts = judge(Gates(same_top=0.9, ppl_ratio=1.02, export_max_abs=1e-4), PARITY)
    assert verdicts == [
        {"name": "export_max_abs", "limit": 1e-4, "value": 2e-5, "bound": 2e-5, "passed": True},
        {"name": "ppl_ratio", "limit": 1.02, "value": 1.02, "bound": 1.03, "passed": False},
        {"name": "same_top", "limit": 0.9, "value": 0.95, "bound": 0.94, "passed": True},
    ]


def test_the_export_gates_judge_level_zero_not_what_ships():
    assert passed(export_max_abs=1e-4) and passed(decode_max_abs=1e-4)


def test_without_a_bound_no_estimate_passes():
    parity = PARITY | {"cost": {"ppl_ratio": {"value": 1.0, "low": None, "high": None}}}
    assert judge(Gates(ppl_ratio=1.5), parity) == [
        {"name": "ppl_ratio", "limit": 1.5, "value": 1.0, "bound": None, "passed": False}
    ]


@pytest.mark.parametrize("cost", [None, {}])
def test_what_was_not_measured_does_not_pass(cost):
    assert not passed(PARITY | {"cost": cost}, kld_mean=1.0)
    assert not passed(PARITY | {"cost": cost}, same_top=0.01)


def test_a_nan_does_not_pass():
    nan = float("nan")
    assert not passed({"export": {"max_abs": nan, "decode_max_abs": nan}}, export_max_abs=1.0)
    assert not passed({"cost": {"same_top": {"value": nan, "low": nan}}}, same_top=0.1)


def test_no_limits_no_gates():
    assert judge(Gates(), PARITY) == []


def test_native_kernels_are_held_to_the_same_limit():
    export = {"max_abs": 2e-5, "decode_max_abs": 3e-5, "native": {"max_abs": 1e-3, "decode_max_abs": 1e-5}}
    assert not passed({"export": export}, export_max_abs=1e-4)
    assert passed({"export": export}, decode_max_abs=1e-4)
    assert judge(Gates(export_max_abs=1e-4), {"export": export})[0]["value"] == 1e-3
