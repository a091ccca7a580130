"""Intervals, against matrices written out, published quantiles, and simulated text of which the truth is known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pythia_export.proof.metrics import TokenFigures
from pythia_export.proof.statistics import (
    bootstrap,
    clustered_mean,
    clustered_share,
    mean_of_clusters,
    student_t,
    summarise,
    wilson,
)


def cr2_written_out(x, clusters):
    """CR2 and Satterthwaite as the papers have them, for a regression on a constant, with every matrix in full."""
    x, clusters = np.asarray(x, float), np.asarray(clusters)
    T, X = len(x), np.ones((len(x), 1))
    bread = np.linalg.inv(X.T @ X)
    residual_maker = np.eye(T) - X @ bread @ X.T
    e = residual_maker @ x
    meat, columns = 0.0, []
    for g in np.unique(clusters):
        rows = np.flatnonzero(clusters == g)
        values, vectors = np.linalg.eigh(np.eye(len(rows)) - X[rows] @ bread @ X[rows].T)
        A = vectors @ np.diag(values**-0.5) @ vectors.T
        meat += (X[rows].T @ A @ e[rows]).item() ** 2
        columns.append((residual_maker[:, rows] @ A @ X[rows] @ bread)[:, 0])
    G = np.stack(columns, 1)
    B = G.T @ G
    return math.sqrt(meat) * bread.item(), np.trace(B) ** 2 / np.trace(B @ B)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=2, max_size=7), seed=st.integers(0, 999))
def test_clustered_error_is_the_textbooks(sizes, seed):
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(len(sizes)) * 3 + 1, sizes)
    x = rng.normal(size=len(clusters)) + rng.normal(size=len(sizes)).repeat(sizes)
    order = rng.permutation(len(x))  # labels need not come sorted
    se, dof = cr2_written_out(x, clusters)
    got = clustered_mean(x[order], clusters[order])
    assert got.value == pytest.approx(x.mean(), abs=1e-12)
    assert got.se == pytest.approx(se, rel=1e-9)
    half = student_t(dof) * se
    assert (got.low, got.high) == pytest.approx((x.mean() - half, x.mean() + half), abs=1e-6 * half)


def test_one_token_a_document_is_the_plain_standard_error():
    x = np.random.default_rng(0).normal(size=50)
    got = clustered_mean(x, np.arange(50))
    assert got.se == pytest.approx(x.std(ddof=1) / math.sqrt(50))
    assert got.high - got.value == pytest.approx(2.009575 * got.se, rel=1e-5)  # t of 49 degrees of freedom


# Two-sided 95 % (and some 99 %) quantiles as printed in tables of Student's t.
@pytest.mark.parametrize(
    ("dof", "confidence", "quantile"),
    [
        (1, 0.95, 12.7062), (2, 0.95, 4.30265), (3, 0.95, 3.18245), (5, 0.95, 2.57058), (10, 0.95, 2.22814),
        (30, 0.95, 2.04227), (120, 0.95, 1.97993), (1e6, 0.95, 1.95997), (2, 0.99, 9.92484), (10, 0.99, 3.16927),
    ],
)  # fmt: skip
def test_students_quantile(dof, confidence, quantile):
    assert student_t(dof, confidence) == pytest.approx(quantile, rel=1e-5)


def test_students_quantile_falls_between_whole_degrees_of_freedom():
    assert student_t(4) < student_t(3.5) < student_t(3)


@pytest.mark.parametrize("documents", [4, 12, 40])
def test_the_interval_holds_the_truth_where_naive_errors_miss_it(documents):
    """Documents of log-normal length, each with an effect of its own. 95 % is promised; naive errors keep half."""
    rng, trials, truth = np.random.default_rng(documents), 1000, 0.03
    held = naive = drawn = 0
    for trial in range(trials):
        sizes = np.maximum(1, rng.lognormal(3, 1, documents)).astype(int)
        clusters = np.repeat(np.arange(documents), sizes)
        x = truth + rng.normal(size=len(clusters)) + 0.4 * rng.normal(size=documents)[clusters]
        got = clustered_mean(x, clusters)
        held += got.low <= truth <= got.high
        naive += abs(x.mean() - truth) <= 1.96 * x.std(ddof=1) / math.sqrt(len(x))
        if trial < 300:
            low, high = bootstrap(sizes, np.bincount(clusters, x))
            drawn += low <= truth <= high
    assert 0.925 <= held / trials <= 0.98
    assert naive / trials < 0.75
    assert {4: 0.7, 12: 0.84, 40: 0.89}[documents] <= drawn / 300 < 0.97  # too short where documents are few


@pytest.mark.parametrize("p", [0.8, 0.98])
def test_the_shares_interval_holds_the_truth_under_clustering(p):
    rng, trials, held, naive = np.random.default_rng(7), 600, 0, 0
    for _ in range(trials):
        own = rng.beta(20 * p, 20 * (1 - p), 30)  # each document has a share of its own
        clusters = np.repeat(np.arange(30), 60)
        hits = rng.random(1800) < own[clusters]
        got = clustered_share(hits, clusters)
        assert 0 <= got.low <= got.value <= got.high <= 1
        held += got.low <= p <= got.high
        low, high = wilson(hits.mean(), 1800, 1.96)
        naive += low <= p <= high
    assert held / trials >= 0.92
    assert naive / trials < 0.85


def test_wilson_is_newcombes_example():
    """Newcombe 1998, table I, method 3: 81 of 263, and the ends 0 of 20 and 1 of 29."""
    assert wilson(81 / 263, 263, 1.959964) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20, 1.959964) == pytest.approx((0, 0.1611), abs=5e-5)
    assert wilson(1 / 29, 29, 1.959964) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_a_share_of_all_leaves_room_below():
    got = clustered_share(np.ones(100, bool), np.arange(100) // 10)
    assert got.value == got.high == 1 and 0.9 < got.low < 1


def figures(rng, windows=12, documents=4, tokens=9, noise=0.3):
    collected = TokenFigures()
    for w in range(windows):
        p = rng.normal(size=(tokens, 17))
        q = p + noise * rng.normal(size=p.shape)
        collected.add(p, q, rng.integers(0, 17, tokens), cluster=w * documents // windows)
    return collected


def test_summary_holds_each_figure_of_the_schema():
    collected = figures(np.random.default_rng(0))
    cost = summarise(collected, bytes_per_token=3.5).to_json()
    delta = collected.nll_quantized - collected.nll_original
    se, dof = cr2_written_out(delta, collected.clusters)
    half = student_t(dof) * se
    ends = {"mean": delta.mean(), "se": se, "dof": dof, "low": delta.mean() - half, "high": delta.mean() + half}
    assert {key: cost["delta_nll"][key] for key in ends} == pytest.approx(ends)
    ends = (delta.mean(), delta.mean() - half, delta.mean() + half)
    assert tuple(cost["ppl_ratio"][k] for k in ("value", "low", "high")) == pytest.approx(tuple(np.exp(ends)))
    assert cost["ppl_ratio"]["value"] == pytest.approx(cost["ppl_quantized"] / cost["ppl_original"])
    assert cost["ppl_original"] == pytest.approx(math.exp(collected.nll_original.mean()))
    kld = collected.kld
    assert cost["kld"]["mean"] == pytest.approx(kld.mean()) and cost["kld"]["max"] == kld.max()
    assert cost["kld"]["median"] == pytest.approx(np.median(kld))
    for key, share in (("p90", 0.9), ("p99", 0.99), ("p999", 0.999)):
        assert np.mean(kld <= cost["kld"][key]) == pytest.approx(share, abs=0.01)
    moved = np.exp(-collected.nll_quantized) - np.exp(-collected.nll_original)
    assert cost["delta_p"]["mean"] == pytest.approx(moved.mean())
    assert cost["delta_p"]["low"] < cost["delta_p"]["rms"] == pytest.approx(math.sqrt((moved**2).mean()))
    assert cost["same_top"]["value"] == pytest.approx(collected.same_top.mean())
    assert cost["bits_per_byte_quantized"] == pytest.approx(collected.nll_quantized.mean() / math.log(2) / 3.5)
    assert cost["clusters"] == {"by": "document", "count": 4} and cost["tokens"] == 108
    assert json.loads(json.dumps(cost, allow_nan=False)) == cost


def test_the_difference_is_paired():
    """Tokens differ among themselves a hundred times more than the models do; the error is that of the models."""
    rng = np.random.default_rng(3)
    collected = figures(rng, windows=40, documents=40, tokens=25, noise=0.01)
    cost = summarise(collected, 1).to_json()
    unpaired = math.hypot(*(x.std(ddof=1) / math.sqrt(1000) for x in (collected.nll_original, collected.nll_quantized)))
    assert cost["delta_nll"]["se"] < unpaired / 50


def test_text_of_one_document_is_clustered_by_window_and_says_so():
    collected = figures(np.random.default_rng(1), documents=1)
    cost = summarise(collected, 1).to_json()
    delta = collected.nll_quantized - collected.nll_original
    assert cost["clusters"] == {"by": "window", "count": 12}
    assert cost["delta_nll"]["se"] == pytest.approx(clustered_mean(delta, collected.windows).se)


def test_a_single_window_gives_figures_without_intervals():
    cost = summarise(figures(np.random.default_rng(1), windows=1, documents=1), 1).to_json()
    for section in ("ppl_ratio", "delta_nll", "kld", "same_top"):
        assert cost[section]["low"] is None and cost[section]["high"] is None
    assert cost["delta_nll"]["se"] is None and cost["ppl_ratio"]["value"] > 0


def test_unquantised_weights_cost_nothing_exactly():
    cost = summarise(figures(np.random.default_rng(2), noise=0), 1).to_json()
    assert cost["ppl_ratio"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert {cost["delta_nll"][key] for key in ("mean", "se", "low", "high")} == {0.0}
    assert cost["delta_nll"]["bootstrap"]["low"] == cost["delta_nll"]["bootstrap"]["high"] == 0.0
    assert cost["kld"]["high"] == cost["kld"]["max"] == 0 and cost["same_top"]["value"] == 1


def test_a_destroyed_model_gives_no_infinity_to_json():
    collected = TokenFigures()
    for document in range(3):
        p = np.zeros((2, 2))
        collected.add(p, p + [0.0, 2000.0 + document], np.zeros(2, int), cluster=document)
    cost = summarise(collected, 1).to_json()
    assert cost["ppl_quantized"] is None and cost["ppl_ratio"] == {"value": None, "low": None, "high": None}
    assert cost["delta_nll"]["mean"] > 1999
    json.dumps(cost, allow_nan=False)


def test_the_divergences_interval_does_not_reach_below_zero():
    collected = TokenFigures()
    for document, noise in enumerate((0, 0, 0, 5)):
        rng = np.random.default_rng(document)
        p = rng.normal(size=(4, 6))
        collected.add(p, p + noise * rng.normal(size=p.shape), np.zeros(4, int), cluster=document)
    cost = summarise(collected, 1).to_json()
    assert cost["kld"]["low"] == 0 < cost["kld"]["mean"] < cost["kld"]["high"]


def test_nothing_scored_is_an_error():
    with pytest.raises(ValueError, match="no token"):
        summarise(TokenFigures(), 1)
    with pytest.raises(ValueError, match=r"\[3\].*\[2\]"):
        clustered_mean([1, 2, 3], [0, 1])


def test_the_bootstrap_draws_whole_documents():
    """Against a loop that lays the drawn documents' tokens end to end."""
    rng = np.random.default_rng(4)
    documents = [rng.normal(loc=rng.normal(), size=size) for size in (3, 9, 1, 6, 4, 8, 2, 7)]
    low, high = bootstrap([len(d) for d in documents], [d.sum() for d in documents])
    means = [np.concatenate([documents[i] for i in rng.integers(0, 8, 8)]).mean() for _ in range(20_000)]
    width = np.quantile(means, 0.975) - np.quantile(means, 0.025)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.05 * width)
    assert bootstrap([5], [1.0]) is None
    assert bootstrap([3, 4], [1.0, 2.0], relative_to=[2.0, 4.0]) == (0.5, 0.5)  # half of it is gone, whatever is drawn


def test_sums_are_all_that_an_interval_depends_on():
    collected = figures(np.random.default_rng(6))
    cost = summarise(collected, 1).to_json()
    kept = cost["sums"]
    assert sum(kept["tokens"]) == cost["tokens"] and len(kept["tokens"]) == 4
    assert sum(kept["same_top"]) == collected.same_top.sum()
    again = mean_of_clusters(kept["tokens"], np.subtract(kept["nll_quantized"], kept["nll_original"]))
    assert (again.low, again.high) == pytest.approx((cost["delta_nll"]["low"], cost["delta_nll"]["high"]))
    wider = mean_of_clusters(kept["tokens"], kept["kld"], confidence=0.99)
    assert wider.high - wider.value == pytest.approx(student_t(wider.dof, 0.99) * cost["kld"]["se"])


def test_a_part_of_the_text_is_summarised_as_if_it_were_all():
    rng = np.random.default_rng(8)
    whole, part = TokenFigures(), TokenFigures()
    for window in range(12):
        p = rng.normal(size=(9, 17))
        q, targets = p + 0.2 * rng.normal(size=p.shape), rng.integers(0, 17, 9)
        documents = np.array([window] * 5 + [window + 1] * 4)  # the end of one, the start of the next
        whole.add(p, q, targets, documents)
        own = documents % 2 == 1
        part.add(p[own], q[own], targets[own], documents[own])
    odd, even = [1, 3, 5, 7, 9, 11], [0, 2, 4, 6, 8, 10, 12]
    cost = summarise(whole, 3.0, {"odd": (odd, 2.0), "even": (even, 4.0), "none": ([99], 1.0)}).to_json()
    assert [x["name"] for x in cost["subsets"]] == ["odd", "even"]
    alone = summarise(part, 2.0).to_json()
    assert {k: v for k, v in cost["subsets"][0].items() if k != "name"} == {
        k: v for k, v in alone.items() if k not in ("subsets", "sums")
    }
