"""The page and the plots of a sweep: of any part of a table, the same bytes again, legible in a browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from looks import CHROMIUM, DARK, WIDTHS, measured
from sweep_rows import sweep, table

from pythia_export.study import plots
from pythia_export.study.figures import drawn
from pythia_export.study.page import render, write
from pythia_export.study.rows import Rows, amount, line
from pythia_export.sweep.records import LeftOut
from pythia_export.sweep.table import COLUMNS, SUBSET_COLUMNS

NOTHING = {"title": "A sweep", "left_out": [], "failed": 0, "outstanding": 0}
MODELS = ("70m", "160m", "160m-deduped", "160m-seed1", "160m-seed2", "160m-seed3", "1b")


@pytest.fixture(scope="module")
def many() -> tuple[pa.Table, pa.Table]:
    return sweep(models=MODELS, steps=(0, 1, 64, 2000, 32000, 143000), bits=(2, 4), methods=("gptq", "rtn"))


@pytest.fixture(scope="module")
def few() -> tuple[pa.Table, pa.Table]:
    return sweep(models=("70m", "160m"), steps=(2000, 32000, 143000), bits=(3,))


@pytest.fixture(scope="module")
def page(many) -> tuple[str, dict[str, str]]:
    return render(*many, title="Pythia <small>", failed=2, outstanding=1,
                  left_out=[LeftOut(name="pythia-410m-seed3", revisions=["step1"] * 40, why="wrong")])  # fmt: skip


def own(**changed) -> pa.Table:
    """A run of one's own with two checkpoints, of whose training nothing is known."""
    found = sweep(models=("70m",), steps=(2000, 8000), bits=(2, 3, 4), subsets=())[0].to_pylist()
    for row in found:
        row |= {
            "name": "mine",
            "size": "mine",
            "family": "own",
            "training_tokens": None,
            "learning_rate": None,
        } | changed
    return table(found, COLUMNS)


def text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<(style|svg).*?</\1>|<[^>]*>", " ", html, flags=re.S))


def test_the_first_screen_says_what_was_measured_and_how_the_cost_went(page):
    said = text(page[0])
    assert "168 results: 42 checkpoints of 7 models, 4 quantisations, each on 32,704 held-out tokens" in said
    assert "2 jobs failed, 1 are outstanding" in said
    assert re.search(
        r"At “int4 row” the cost of “70m” grew from .* nats a token at 2.1 M tokens to 0.\d+ at 300 B", said
    )
    assert re.search(r"training tokens explain 9\d\.\d\s% on held-out checkpoints", said)


def test_the_fit_stands_beside_the_published_constants(page):
    said = text(page[0])
    for constant in ("0.017", "0.5251", "0.2261", "5.4967", "arXiv 2411.17691", "arXiv 2510.06213"):
        assert constant in said
    assert "row rtn" in said and "left out: training tokens: 0" in said


def test_what_was_left_out_is_told(page):
    said = text(page[0])
    assert "pythia-410m-seed3" in said and "(40 revisions)" in said and "wrong" in said


def test_the_same_tables_give_the_same_bytes(few, tmp_path):
    first, second = (write(*few, tmp_path / name, **NOTHING) for name in "ab")
    assert [p.name for p in first] == [p.name for p in second] and len(first) > 8
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


def test_plots_of_an_earlier_report_do_not_stay(few, tmp_path):
    write(*few, tmp_path, **NOTHING)
    written = write(few[0].slice(0, 1), few[1].slice(0, 0), tmp_path, **NOTHING)
    assert set(tmp_path.rglob("*.*")) == set(written)


class Checker(HTMLParser):
    def __init__(self):
        super().__init__()
        self.ids, self.asked, self.images, self.unlabelled = [], [], 0, 0

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        links = [given.get(k, "") for k in ("src", "href", "xlink:href")]
        self.asked += [link for link in links if link and not link.startswith(("#", "data:"))]
        if tag == "svg":
            self.images += 1
            self.unlabelled += not (given.get("role") == "img" and given.get("aria-label"))


def test_the_page_is_whole_by_itself_and_every_plot_is_described(page):
    found = Checker()
    found.feed(page[0])
    assert not found.asked and not found.unlabelled and found.images == len(page[1]) > 20
    assert len(found.ids) == len(set(found.ids))
    assert "Pythia &lt;small&gt;" in page[0] and "<script" not in page[0]


def test_plots_are_svg_by_themselves_with_text_as_text(page):
    for svg in page[1].values():
        root = ElementTree.fromstring(svg)
        words = " ".join(root.itertext())
        assert "nats" in words or "learning rate" in words or "fitted" in words


def test_plots_follow_the_page_by_night_and_every_line_is_legible_on_both_grounds(page):
    """The lightest of viridis has a contrast of 1.6 to white, and its first one of 1.1 to a dark card."""
    drawn_in = "".join(re.findall(r"<svg xmlns.*?</svg>", page[0], re.S))
    fixed = re.sub(r"var\(--line[^)]*\)", "", drawn_in)
    assert "var(--ink)" in fixed and "var(--card)" in fixed and not re.search(r"#[0-9a-f]{6}\b", fixed)
    lines = set(re.findall(r"var\((--line-[0-9a-f]{6})", drawn_in))
    night = dict(re.findall(r"(--line-[0-9a-f]{6}): (#[0-9a-f]{6});", page[0]))
    assert lines and lines == night.keys()
    for n in range(1, 12):
        for colour in plots.colours(n):
            assert contrast(colour, "#ffffff") >= 3 and contrast(plots.by_night(colour), "#181c22") >= 3
    assert not any("var(" in svg for svg in page[1].values()), "a file of its own has no style sheet"


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours by WCAG 2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return sum(share * x for share, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_sections_without_content_are_left_out(few):
    whole, none = render(*few, **NOTHING)[0], render(table([], COLUMNS), table([], SUBSET_COLUMNS), **NOTHING)[0]
    assert 'id="left-out"' not in whole and "#left-out" not in whole and 'id="extremes"' in whole
    for section in ("fit", "extremes", "left-out"):
        assert f'id="{section}"' not in none and f"#{section}" not in none


def test_nothing_of_a_plot_depends_on_when_or_by_what_it_was_drawn(page):
    assert not any(re.search(r"<metadata|<style|dc:date|matplotlib v", svg) for svg in page[1].values())


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (sweep(steps=(143000,)), "Only one training step: no curve over training."),
        (sweep(models=("160m",)), "Only one size: no curve against parameters."),
        (sweep(bits=(4,)), "Only one number of bits: no curve against bits."),
        (sweep(models=("160m",), steps=(8000, 64000)), "too few to resample, no intervals"),
        ((own(), table([], SUBSET_COLUMNS)), "No learning rate is known"),
        ((own(step=None), table([], SUBSET_COLUMNS)), "The training steps are not known: no curve over training."),
        ((own(delta_nll=None), table([], SUBSET_COLUMNS)), "No cost was measured yet."),
        ((table([], COLUMNS), table([], SUBSET_COLUMNS)), "No results."),
    ],
    ids=range(8),
)
def test_what_cannot_be_drawn_is_said(given, sentence):
    assert sentence in text(render(*given, **NOTHING)[0])


def test_where_no_tokens_are_known_steps_stand_for_them():
    html, drawings = render(own(), table([], SUBSET_COLUMNS), **NOTHING)
    assert "training step; tokens are not known" in drawings["delta-nll-tokens-int2-row"]
    assert re.search(r"of “mine” (grew|did not) .* at step 2,000 to .* at step 8,000", text(html))


def test_tokens_and_rate_that_go_together_are_said_to():
    said = text(render(*sweep(steps=(2000, 8000, 32000, 64000, 100000, 143000), models=("160m",)), **NOTHING)[0])
    assert "this data cannot say which of the two is the cause" in said


NULLS = ("training_tokens", "learning_rate", "step", "seed", "delta_nll", "delta_nll_se", "delta_nll_low", "kld",
         "bits", "non_embedding_parameters")  # fmt: skip


@settings(
    max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_any_part_of_a_table_makes_a_page(many, data):
    n = len(many[0])
    chosen = sorted(data.draw(st.sets(st.integers(0, n - 1), max_size=14)))
    found = many[0].take(pa.array(chosen, pa.int64())).to_pylist()
    nulls = data.draw(st.sets(st.sampled_from(NULLS), max_size=3))
    for i, row in enumerate(found):
        row |= {name: None for name in nulls if i % 2 or data.draw(st.booleans())}
        row["delta_nll"] = data.draw(st.sampled_from([row["delta_nll"], row["delta_nll"], 0.0, -1e-9, 40.0]))
        row["name"] = data.draw(st.sampled_from([row["name"], "a$b_{x", "<b>&\x01" + "y" * 60]))
    html, drawings = render(table(found, COLUMNS), many[1], **NOTHING)
    assert "nan" not in text(html).lower()
    for svg in drawings.values():
        ElementTree.fromstring(svg)


def test_a_line_is_the_mean_of_its_runs_and_its_band_is_what_the_page_says():
    assert line("pythia-160m-seed3") == line("pythia-160m-seed7") == "160m seeds"
    assert line("pythia-160m-deduped") == "160m deduped" and line("pythia-160m-data-seed1") == "160m data seeds"
    costs = [1.0, 2.0, 3.0, 5.0, 7.0, 11.0]
    columns = {"x": [1, 2, 2, 3, 3, 3], "delta_nll": costs, "delta_nll_low": [0.5] * 6, "delta_nll_high": [1.5] * 6}
    found = drawn(Rows({k: np.array(v, dtype=float) for k, v in columns.items()}), "x", "delta_nll", "a", "#000")
    assert found.y.tolist() == pytest.approx([1.0, 2.5, 23 / 3])
    assert found.low[:2].tolist() == [0.5, 2.0] and found.high[:2].tolist() == [1.5, 3.0]
    half = 4.302653 * np.std([5, 7, 11], ddof=1) / np.sqrt(3)
    assert found.high[2] - found.y[2] == pytest.approx(half, rel=1e-5)


def test_costs_below_zero_stay_on_the_axis():
    scale = plots.cost_scale(np.array([-3e-4, 1e-4, 0.2]), np.array([2e-4]))
    assert scale.linear is not None and scale.low < -3e-4 and scale.high > 0.2
    assert plots.cost_scale(np.array([1e-4, 0.2]), np.array([2e-4])).linear is None
    assert plots.tokens_scale(np.array([0.0, 2e6, 3e11])).low < 0


def test_labels_keep_apart_and_within():
    placed = plots._apart(np.array([10.0, 10.5, 11.0, 90.0, 90.1]), 12, 0, 100)
    assert (np.diff(placed) >= 11.99).all() and placed[0] >= -0.01 and placed[-1] <= 100.01


@pytest.mark.parametrize(("x", "words"), [(0, "0"), (2097152, "2.1 M"), (300e9, "300 B"), (999_999_999, "1 B")])
def test_amounts_in_words(x, words):
    assert amount(x) == words


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the page is not looked at")
@pytest.mark.parametrize("look", [(), (DARK,)], ids=["light", "dark"])
def test_in_a_browser_nothing_sticks_out_overlaps_or_is_too_faint(page, tmp_path, look):
    sound = {"outside": [], "overlap": [], "faint": [], "small": []}
    assert measured(tmp_path, [page[0]], *look) == [[{"width": w, "scroll": w} | sound for w in WIDTHS]]


def test_features_over_training_by_bits():
    results, subsets = sweep(models=("70m",), steps=(64, 2000, 143000), bits=(2, 4), subsets=())
    assert "Features over training" not in render(results, subsets, **NOTHING)[0]
    rows = results.to_pylist()
    for row in rows:
        row["feature_survival"] = {64: 0.9, 2000: 0.8, 143000: 0.7}[row["step"]] - (0.1 if row["bits"] == 2 else 0)
    page, files = render(table(rows, COLUMNS), subsets, **NOTHING)
    assert "Features over training" in text(page)
    assert "Fewest survive “int2 row” at 300 B tokens: 60.0%." in text(page)
    (plot,) = (svg for name, svg in files.items() if "survival" in name)
    assert all(label in plot for label in ("int2 row", "int4 row"))


def test_induction_over_training_by_bits():
    """A line of the original and one a quantisation; without the figures there is no such section."""
    results, subsets = sweep(models=("70m",), steps=(64, 2000, 143000), bits=(2, 4), subsets=())
    assert "Induction over training" not in render(results, subsets, **NOTHING)[0]
    rows = results.to_pylist()
    for row in rows:
        learnt = {64: 0.01, 2000: 0.3, 143000: 0.6}[row["step"]]
        row |= {"induction_original": learnt, "induction": learnt * (0.5 if row["bits"] == 2 else 0.99)}
    page, files = render(table(rows, COLUMNS), subsets, **NOTHING)
    assert "Induction over training" in text(page)
    assert "The original reaches 0.60 at 300 B tokens; “int2 row” at 300 B tokens loses most, 0.30." in text(page)
    (plot,) = (svg for name, svg in files.items() if "induction" in name)
    assert all(label in plot for label in ("original", "int2 row", "int4 row"))
