"""Scores of tokens are those of a log-softmax in float64, also where float32 alone would lose them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pythia_export.evaluate.scores import TokenScores

NORMAL = np.random.default_rng(0).normal


def slowly(logits: np.ndarray, targets: np.ndarray) -> list[float]:
    found = []
    for row, target in zip(logits.astype(np.longdouble), targets, strict=True):
        found.append(float(row[target] - row.max() - np.log(np.exp(row - row.max()).sum())))
    return found


KINDS = {
    "ordinary": lambda rows, classes: NORMAL(0, 3, (rows, classes)),
    "flat": lambda rows, classes: np.zeros((rows, classes)),
    "far from zero": lambda rows, classes: NORMAL(1000, 3, (rows, classes)),
    "wide": lambda rows, classes: NORMAL(0, 300, (rows, classes)),
    "classes that are never said": lambda rows, classes: np.where(
        np.arange(classes) % 128 == 0, -1e4, NORMAL(0, 3, (rows, classes))
    ),
    "beyond exponentials": lambda rows, classes: NORMAL(0, 1e37, (rows, classes)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [1, 96, 97, 4096, 50304, 50432, 50688])
def test_scores_are_those_of_float64(kind, classes):
    logits = KINDS[kind](6, classes).astype(np.float32)
    targets = np.random.default_rng(1).integers(0, classes, 6)
    np.testing.assert_allclose(TokenScores(classes)(logits, targets), slowly(logits, targets), rtol=1e-12, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(classes=st.integers(1, 1500), rows=st.integers(1, 5), spread=st.floats(0, 100), seed=st.integers(0, 99))
def test_any_number_of_classes_will_do(classes, rows, spread, seed):
    rng = np.random.default_rng(seed)
    logits, targets = rng.normal(0, spread, (rows, classes)).astype(np.float32), rng.integers(0, classes, rows)
    np.testing.assert_allclose(TokenScores(classes)(logits, targets), slowly(logits, targets), rtol=1e-12, atol=2e-6)


def test_more_logits_than_are_in_work_at_a_time(monkeypatch):
    logits, targets = NORMAL(0, 3, (11, 96)).astype(np.float32), np.arange(11)
    whole = TokenScores(96)(logits, targets)
    monkeypatch.setattr("pythia_export.evaluate.scores.CHUNK", 200)  # two rows, and one at the end
    np.testing.assert_array_equal(TokenScores(96)(logits, targets), whole)


def test_a_nan_stays_one():
    assert np.isnan(TokenScores(96)(np.full((1, 96), np.nan, np.float32), np.array([3]))).all()
