"""The law of a sweep: known constants are found again, what the data cannot tell is said, noise does not bend it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares
from sweep_rows import LAW, sweep

from pythia_export.study.law import PUBLISHED, Compared, Fit, NoFit, compare, fit, published, solve
from pythia_export.study.rows import Rows


def rows(**how) -> Rows:
    return Rows.of(sweep(subsets=(), **how)[0])


@pytest.fixture(scope="module")
def four_sizes() -> Rows:
    return rows(tau=0.1, noise=2e-4)


def test_the_published_law_has_these_units():
    """The paper's own values at 300 B tokens and 4 bits."""
    tokens, bits = np.array([300e9, 300e9]), np.array([4.0, 4.0])
    assert published(tokens, np.array([18_915_328.0, 11_327_027_200.0]), bits) == pytest.approx(
        [0.201, 0.047], abs=6e-4
    )


@pytest.mark.parametrize(("tau", "noise"), [(0.02, 1e-5), (0.1, 2e-4), (0.3, 2e-3)])
def test_known_constants_are_found_again(tau, noise):
    found = fit(rows(tau=tau, noise=noise, seed=2))
    assert isinstance(found, Fit) and not found.unidentified
    for letter, estimate in found.constants.items():
        assert estimate.low < LAW[letter] < estimate.high, letter
    width = {letter: e.high - e.low for letter, e in found.constants.items()}
    assert width["β"] < 0.06 and width["γ"] < 0.8
    assert found.tau == pytest.approx(tau, rel=0.35)


def test_negative_costs_stay_in_and_do_not_bend_it():
    """Of such noise half of the early costs are below zero. A fit to the logarithms of the others is flat."""
    noisy = rows(tau=0.1, noise=2e-2, seed=1, bits=(3, 4))
    found = fit(noisy)
    assert isinstance(found, Fit) and (found.rows["delta_nll"] < 0).sum() >= 10
    assert found.constants["β"].value == pytest.approx(LAW["β"], abs=0.06)
    above = noisy.where((noisy["delta_nll"] > 0) & (noisy["training_tokens"] > 0))
    logs = np.column_stack([np.ones(len(above))] + [np.log(above[c]) for c in
                           ("training_tokens", "non_embedding_parameters", "bits")])  # fmt: skip
    naive = np.linalg.lstsq(logs, np.log(above["delta_nll"]), rcond=None)[0][1]
    assert abs(found.constants["β"].value - LAW["β"]) < 0.3 * abs(naive - LAW["β"])


def test_a_few_broken_checkpoints_do_not_move_it(four_sizes):
    broken = Rows(four_sizes.columns | {"delta_nll": four_sizes["delta_nll"].copy()})
    broken["delta_nll"][50:56] *= 100
    found, as_was = fit(broken), fit(four_sizes)
    assert found.constants["β"].value == pytest.approx(as_was.constants["β"].value, abs=0.02)


def test_the_solver_agrees_with_scipys():
    """Huber's loss of the same residuals, by another's optimiser."""
    given = rows(tau=0.3, noise=1e-3).where(slice(12, None))
    y, se, tau = given["delta_nll"], given["delta_nll_se"], 0.3
    X = np.column_stack([np.ones(len(given)), np.log(given["bits"]), np.log(np.maximum(given["training_tokens"], 1e6))])
    X[:, 1:] -= X[:, 1:].mean(axis=0)

    def residual(theta):
        return (np.arcsinh(tau * y / se) - np.arcsinh(tau * np.exp(X @ theta) / se)) / tau

    start = np.array([-3.0, -4.0, 0.4])
    theirs = least_squares(residual, start, loss="huber", f_scale=1.345, xtol=1e-12, ftol=1e-12).x
    assert solve(X, y, se, tau, start) == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize(
    ("how", "letter", "why"),
    [
        ({"models": ("160m",)}, "α", "same number of parameters"),
        ({"bits": (3,)}, "γ", "same bits"),
        ({"steps": (64000,), "models": ("70m", "160m", "410m", "1b", "1.4b")}, "β", "same training tokens"),
    ],
)
def test_what_does_not_vary_is_not_identified_and_the_rest_is_fitted(how, letter, why):
    found = fit(rows(**how))
    assert isinstance(found, Fit) and set(found.unidentified) == {letter} and why in found.unidentified[letter]
    for other, estimate in found.constants.items():
        assert other == "k" or estimate.value == pytest.approx(LAW[other], rel=0.25), other


def test_what_varies_only_together_is_not_identified(four_sizes):
    tied = four_sizes.where((four_sizes["bits"] == 2) == (four_sizes["size"] == "70m"))
    tied = tied.where(np.isin(tied["size"], ("70m", "160m")) & (tied["bits"] < 4))
    found = fit(tied)
    assert isinstance(found, Fit) and "only together with" in found.unidentified["γ"] and "β" in found.constants


def test_rows_that_it_cannot_use_are_counted(four_sizes):
    given = Rows({name: values.copy() for name, values in four_sizes.columns.items()})
    given["delta_nll_se"][20] = given["delta_nll"][40] = np.nan
    found = fit(given)
    assert sorted(found.left_out.values()) == [1, 1, 12]
    assert found.left_out["training tokens: 0, of which the law knows no logarithm"] == 12
    assert len(found.rows) == len(given) - 14


@pytest.mark.parametrize("how", [{"steps": (64000,), "models": ("70m",), "bits": (4,)}, {"noise": 100.0}])
def test_where_there_is_too_little_it_says_so(how):
    found = fit(rows(**how))
    assert isinstance(found, NoFit) and "too few" in found.why


def test_few_checkpoints_have_no_interval():
    found = fit(rows(models=("70m", "160m"), steps=(8000, 64000)))
    assert isinstance(found, Fit) and found.checkpoints == 4 and found.constants["β"].low is None


def test_the_same_rows_give_the_same_figures(four_sizes):
    assert fit(four_sizes).constants == fit(four_sizes).constants


@pytest.mark.parametrize(("by", "better", "worse"), [("training_tokens", "tokens", "rate"),
                                                     ("learning_rate", "rate", "tokens")])  # fmt: skip
def test_what_the_cost_was_made_from_predicts_it_best(by, better, worse):
    found = compare(rows(by=by, law=PUBLISHED | {"β": 0.5}))
    assert isinstance(found, Compared)
    assert found.predicted[better] > 0.9 > found.predicted[worse] and found.fitted[better] > found.fitted[worse]
    assert found.fitted["both"] >= found.fitted[better] - 0.01


def test_while_the_rate_only_falls_tokens_and_rate_go_together():
    found = compare(rows(steps=(2000, 8000, 32000, 64000, 100000, 143000), models=("160m",)))
    assert isinstance(found, Compared) and found.correlation < -0.99


def test_without_learning_rates_there_is_nothing_to_compare(four_sizes):
    unknown = Rows(four_sizes.columns | {"learning_rate": np.full(len(four_sizes), np.nan)})
    assert isinstance(compare(unknown), NoFit)
