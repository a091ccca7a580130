"""Scores of tokens are those of a log-softmax in float64, also where float32 alone would lose them."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from pythia_export.evaluate.scores import append_scores, combine

NORMAL = np.random.default_rng(0).normal


@cache
def session(classes: int) -> onnxruntime.InferenceSession:
    """A graph that has nothing but logits, which come in, and their scores."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None, classes])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, None, classes])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["logits"])], "scores", [x], [y])
    append_scores(graph, classes)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def scores(logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of logits [K, V] and targets [K]: what the session gives."""
    names = ["score.tops", "score.of_log_softmax", "score.came"]
    found = session(logits.shape[1]).run(names, {"x": logits[None], "score.targets": targets[None, :, None]})
    scored, likeliest = combine(*(part.reshape(1, len(logits), -1) for part in found))
    return scored[0, :, 0], likeliest[0, :, 0]


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
    np.testing.assert_allclose(scores(logits, targets)[0], slowly(logits, targets), rtol=1e-12, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(classes=st.integers(1, 1500), rows=st.integers(1, 5), spread=st.floats(0, 100), seed=st.integers(0, 99))
def test_any_number_of_classes_will_do(classes, rows, spread, seed):
    rng = np.random.default_rng(seed)
    logits, targets = rng.normal(0, spread, (rows, classes)).astype(np.float32), rng.integers(0, classes, rows)
    np.testing.assert_allclose(scores(logits, targets)[0], slowly(logits, targets), rtol=1e-12, atol=2e-6)


def test_the_likeliest_is_told_and_all_of_equal_ones_are():
    logits = np.array([[1, 5, 2], [1, 5, 2], [4, 4, 1], [4, 4, 1], [np.nan, 1, 2]], np.float32)
    assert scores(logits, np.array([1, 2, 0, 1, 0]))[1].tolist() == [True, False, True, True, False]


def test_a_nan_stays_one():
    assert np.isnan(scores(np.full((1, 96), np.nan, np.float32), np.array([3]))[0]).all()
