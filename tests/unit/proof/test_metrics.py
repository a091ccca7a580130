"""Figures from logits, against sums that a person would write, in exact arithmetic where that is feasible."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pythia_export.base.errors import NumericsError
from pythia_export.model import likelihood
from pythia_export.model.likelihood import log_probabilities, log_softmax
from pythia_export.proof.metrics import ExportDifference, TokenFigures, bits_per_byte, token_figures

logits = arrays(np.float32, (3, 7), elements=st.floats(-60, 60, width=32))


def exact_log_softmax(row: np.ndarray) -> list[Decimal]:
    getcontext().prec = 60
    values = [Decimal(float(x)) for x in row]
    total = sum(v.exp() for v in values)
    return [v - total.ln() for v in values]


@settings(max_examples=30)
@given(p=logits, q=logits)
def test_every_figure_is_the_exact_one(p, q):
    target = np.array([0, 6, 3])
    nll_p, nll_q, kld, same = token_figures(p, q, target)
    for t in range(3):
        a, b = exact_log_softmax(p[t]), exact_log_softmax(q[t])
        assert nll_p[t] == pytest.approx(float(-a[target[t]]), rel=1e-12, abs=1e-12)
        assert nll_q[t] == pytest.approx(float(-b[target[t]]), rel=1e-12, abs=1e-12)
        assert kld[t] == pytest.approx(float(sum(x.exp() * (x - y) for x, y in zip(a, b, strict=True))), abs=1e-12)
        assert same[t] == (max(range(7), key=lambda i: p[t, i]) == max(range(7), key=lambda i: q[t, i]))


@given(p=logits, q=logits)
def test_divergence_is_never_negative_and_zero_for_equals(p, q):
    targets = np.zeros(3, np.int64)
    assert (token_figures(p, q, targets)[2] >= 0).all()
    nll_p, nll_q, kld, same = token_figures(p, p.copy(), targets)
    assert (kld == 0).all() and (nll_p == nll_q).all() and same.all()


@given(p=logits, q=logits, shift=st.integers(-1000, 1000))
def test_a_constant_added_to_all_logits_of_a_token_changes_nothing(p, q, shift):
    targets = np.array([1, 2, 3])
    # float64, in which the sum with an integer keeps the order of the logits
    a, b = token_figures(p, q, targets), token_figures(p.astype(float) + shift, q, targets)
    for x, y in zip(a[:3], b[:3], strict=True):
        np.testing.assert_allclose(x, y, atol=1e-11)


def test_the_differences_of_nearly_equal_models_are_not_lost_in_float32():
    """A change of 1e-6 nats under logits in the hundreds: float32 cannot tell it from nothing."""
    p = np.array([[300.0, 290.0]])
    nll_p, nll_q, kld, _ = token_figures(p, p + [[0.0, 1e-3]], np.array([0]))
    a = math.exp(-10)
    assert nll_q[0] - nll_p[0] == pytest.approx(math.log1p(a * math.exp(1e-3)) - math.log1p(a), rel=1e-6)
    assert 0 < kld[0] < 1e-10


def test_chunks_do_not_change_a_figure(monkeypatch):
    rng = np.random.default_rng(0)
    p, q = (rng.normal(size=(23, 11)).astype(np.float32) for _ in range(2))
    targets = rng.integers(0, 11, 23)
    whole = token_figures(p, q, targets)
    monkeypatch.setattr(likelihood, "CHUNK_LOGITS", 50)  # 4 rows at a time, 3 in the last chunk
    for a, b in zip(whole, token_figures(p, q, targets), strict=True):
        np.testing.assert_array_equal(a, b)


def test_windows_keep_their_order_documents_and_lengths():
    rng = np.random.default_rng(1)
    figures, expected = TokenFigures(), []
    for document, length in ((4, 3), (4, 2), (9, 1)):
        p, q, t = rng.normal(size=(length, 5)), rng.normal(size=(length, 5)), rng.integers(0, 5, length)
        figures.add(p, q, t, cluster=document)
        expected.append(token_figures(p, q, t))
    np.testing.assert_array_equal(figures.nll_original, np.concatenate([e[0] for e in expected]))
    np.testing.assert_array_equal(figures.nll_quantized, np.concatenate([e[1] for e in expected]))
    np.testing.assert_array_equal(figures.kld, np.concatenate([e[2] for e in expected]))
    np.testing.assert_array_equal(figures.same_top, np.concatenate([e[3] for e in expected]))
    assert figures.clusters.tolist() == [4, 4, 4, 4, 4, 9]
    assert figures.windows.tolist() == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_refused_on_either_side(value):
    good, bad = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)
    bad[1, 2] = value
    with pytest.raises(NumericsError, match="original.*entry 2"):
        token_figures(bad, good, np.zeros(2, int))
    with pytest.raises(NumericsError, match="quantised"):
        token_figures(good, bad, np.zeros(2, int))
    with pytest.raises(NumericsError, match="got"):
        ExportDifference().add(bad, good)
    with pytest.raises(NumericsError, match="expected"):
        ExportDifference().add(good, bad)


def test_shapes_that_do_not_fit_are_refused():
    p = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"\[2, 3\].*\[2, 4\]"):
        token_figures(p, np.zeros((2, 4)), np.zeros(2, int))
    with pytest.raises(ValueError, match="targets"):
        token_figures(p, p, np.zeros(3, int))
    with pytest.raises(ValueError, match="vocabulary"):
        token_figures(p[0], p[0], np.zeros(2, int))


@settings(max_examples=40)
@given(scale=st.floats(1e-9, 1e6), seed=st.integers(0, 99), blocks=st.integers(1, 4))
def test_export_difference_against_all_differences_at_once(scale, seed, blocks):
    rng = np.random.default_rng(seed)
    difference, every, same = ExportDifference(), [], []
    for _ in range(blocks):
        a = rng.normal(size=(13, 101)).astype(np.float32)
        b = (a + scale * rng.standard_t(3, size=a.shape)).astype(np.float32)
        difference.add(b, a)
        every.append(np.abs(b.astype(np.float64) - a.astype(np.float64)).ravel())
        same.append(a.argmax(1) == b.argmax(1))
    every = np.concatenate(every)
    result = difference.result()
    assert result["max_abs"] == pytest.approx(every.max(), rel=1e-6)
    exact = np.sort(every)[math.ceil(0.999 * len(every)) - 1]
    assert exact * (1 - 1e-6) <= result["p999_abs"] <= exact * 1.01
    assert result["same_top"] == np.concatenate(same).mean()


def test_one_wild_logit_shows_in_the_largest_difference_not_in_the_percentile():
    a = np.zeros((10, 500), np.float32)
    b = a.copy()
    b[3, 7] = 1923.0
    difference = ExportDifference()
    difference.add(b, a)
    assert difference.result() == {"max_abs": 1923.0, "p999_abs": pytest.approx(0, abs=1e-40), "same_top": 0.9}


def test_equal_logits_differ_by_nothing_and_no_logits_are_an_error():
    difference = ExportDifference()
    with pytest.raises(ValueError, match="no block"):
        difference.result()
    difference.add(np.ones((2, 3), np.float32), np.ones((2, 3), np.float32))
    assert difference.result() == {"max_abs": 0.0, "p999_abs": 0.0, "same_top": 1.0}


def test_a_token_has_one_log_probability_whoever_asks(monkeypatch):
    """`score`, `bench` and a proof: the same bits, whatever rows are in work at a time."""
    rng = np.random.default_rng(0)
    p, came = rng.normal(0, 8, (11, 13)).astype(np.float32), rng.integers(0, 13, 11)
    for chunk in (1, 40, 10**6):
        monkeypatch.setattr(likelihood, "CHUNK_LOGITS", chunk)
        found = log_probabilities(p, came)
        assert found.tobytes() == log_softmax(p)[np.arange(11), came].tobytes()
        assert (-found).tobytes() == token_figures(p, p[::-1], came)[0].tobytes()


def test_log_softmax_sums_to_one_far_from_zero():
    np.testing.assert_allclose(np.exp(log_softmax(np.full((1, 4), 1e4))), 0.25)


def test_bits_per_byte_of_a_uniform_byte_model_is_eight():
    assert bits_per_byte(math.log(256), bytes_per_token=1) == pytest.approx(8)
    assert bits_per_byte(math.log(256), bytes_per_token=4) == pytest.approx(2)
