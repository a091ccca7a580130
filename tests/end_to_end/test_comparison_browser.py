"""The page of `compare` in a real Chromium: on a phone, on a desk, in the dark. Skipped where there is no Chromium."""

from __future__ import annotations

import pytest
from looks import CHROMIUM, DARK, WIDTHS, measured
from records import HOSTILE

from pythia_export.records.comparison import Comparison
from pythia_export.records.record import checked
from pythia_export.report.comparison import render_comparison

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the page is not looked at"),
]


def mean(value, half=None):
    ends = {"low": None, "high": None} if half is None else {"low": value - half, "high": value + half}
    return {"mean": value, "se": None if half is None else half / 2, "dof": None if half is None else 9.0} | ends


def comparison(names, half=0.002, baseline="original"):
    contenders = [
        {"name": name, "treatment": "Imported int4, groups of 128; head kept in float", "made_by": "gptqmodel 5.6.12",
         "bits_per_weight": 4.25, "bytes": 262_144_000, "nll": 2.5 + i / 100, "ppl": 12.2 + i,
         "delta_nll": mean(0.02 * i - 0.001, half), "kld": mean(0.01 * i + 1e-5, half),
         "same_top": {"value": 0.93, "independent_tokens": None} | {k: v for k, v in mean(0).items() if k != "mean"}}
        for i, name in enumerate(names)
    ]  # fmt: skip
    pairs = [
        {"name": b, "less": a, "delta_nll": mean(0.02, half), "kld": mean(0.01, half)}
        for i, b in enumerate(names) for a in names[:i]
    ]  # fmt: skip
    corpus = {"source": "pile-uncopyrighted val", "sha256": "ab" * 32, "tokens": 65536, "windows": 32,
              "sequence_length": 2048, "n_bytes": 240_000}  # fmt: skip
    raw = {"schema": 1, "versions": {"python": "3.12.1", "torch": "2.13.0"}, "machine": "EPYC, 2 cores",
           "created": "2026-01-01T00:00:00Z", "corpus": corpus, "clusters": {"by": "document", "count": 31},
           "tokens": 65504, "baseline": baseline, "baseline_name": "EleutherAI/pythia-410m at main",
           "baseline_nll": 2.5, "baseline_ppl": 12.18, "contenders": contenders, "pairs": pairs}  # fmt: skip
    return checked(Comparison, raw, "comparison")


PAGES = {
    "three": comparison(["410m-gptq", "410m-autoround", "410m-w4a16"]),
    "without intervals": comparison(["one", "two"], half=None),
    "hostile": comparison([HOSTILE + "x" * 120, "b" * 90, "c"]),
    "many": comparison([f"artifact-{i}" for i in range(7)], baseline="first"),
}


@pytest.fixture(scope="module", params=[(), (DARK,)], ids=["light", "dark"])
def found(request, tmp_path_factory):
    pages = [render_comparison(page) for page in PAGES.values()]
    return dict(zip(PAGES, measured(tmp_path_factory.mktemp("pages"), pages, *request.param), strict=True))


@pytest.mark.parametrize("page", PAGES)
def test_nothing_sticks_out_overlaps_or_is_too_faint(found, page):
    sound = {"outside": [], "overlap": [], "faint": [], "small": []}
    assert found[page] == [{"width": width, "scroll": width} | sound for width in WIDTHS]
