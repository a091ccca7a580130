"""What people read of a proof: the page, the model card, the terminal. Figures must be right, hostile names inert."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from models import InMemory, export_model, hugging_face, on_disk, small_config
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.pre_tokenizers import ByteLevel

from pythia_export.neox import LINEARS
from pythia_export.parity import SCHEMA
from pythia_export.parity.gates import judge
from pythia_export.recipe import Export, Gates, Quantize, load_recipe, parse_recipe
from pythia_export.report import findings, words
from pythia_export.report.card import model_card
from pythia_export.report.depth import depth_panels, residual_panel
from pythia_export.report.heads import head_maps
from pythia_export.report.html import render_report
from pythia_export.report.ruler import interval_plot, ruler
from pythia_export.report.text import verdict

HOSTILE = '</title><script>alert("1")</script>|`[x](http://evil.example)\n# <img src=x onerror=alert(1)>'
GATES = Gates(export_max_abs=1e-4, decode_max_abs=1e-4, ppl_ratio=1.05, kld_mean=0.05, same_top=0.9)


def linear(name, layer, rtn, loss, method="gptq", **others):
    recovered = 1 - loss / rtn if rtn else None
    return {
        "name": name, "layer": layer, "shape": [384, 128], "method": method, "bits": 4, "group_size": 32,
        "symmetric": True, "rtn_loss": rtn, "loss": loss, "recovered": recovered,
        "damp": 0.01 if method == "gptq" else None, "tokens": 32768, "seconds": 0.25,
    } | others  # fmt: skip


def records(layers=3, method="gptq", model="demo", gates=GATES, shipped=True):
    """Manifest, quantization and parity of an artifact of so many layers, as the pipeline hands them over."""
    linears = []
    for layer in range(layers if method != "none" else 0):
        for i, kind in enumerate(LINEARS):
            rtn = 0.004 * (1 + i) * (1 + layer / 10)
            linears.append(
                linear(f"gpt_neox.layers.{layer}.{kind}", layer, rtn, rtn * (0.5 if method == "gptq" else 1), method)
            )
    if linears:
        linears.append(linear("embed_out", None, 3e-5, 2.7e-5, method, bits=8, group_size=128, shape=[4096, 128]))
    quantization = {"schema": 1, "method": method, "bits_per_weight": 4.625, "seconds": 9.0, "linears": linears}
    level_0 = {
        "name": "level 0", "gated": True, "accuracy_level": 0,
        "speed": "function", "why": "native kernels were not wanted",
        "max_abs": 1.91e-5, "p999_abs": 5.2e-6, "same_top": 0.99999, "decode_max_abs": 2.3e-5,
        "batch_max_abs": 1.1e-5, "padding_max_abs": 2.3e-5,
        "splits": [{"at": 0, "max_abs": 1.2e-5}, {"at": 170, "max_abs": 1.3e-5}],
    }  # fmt: skip
    level_4 = {
        "name": "as it ships, level 4", "gated": False, "accuracy_level": 4,
        "speed": "native", "why": "libpythia_kernels.so",
        "max_abs": 0.31, "p999_abs": 0.08, "same_top": 0.981, "decode_max_abs": 0.29,
        "batch_max_abs": 0.1, "padding_max_abs": 0.29,
        "splits": [{"at": 0, "max_abs": 0.2}, {"at": 170, "max_abs": 0.21}],
    }  # fmt: skip
    parity = {
        "schema": SCHEMA, "created": "2025-01-02T03:04:05Z", "against": None,
        "source": {"name": model, "revision": "step3000", "commit": "c0ffee" * 6},
        "versions": {"onnx": "1.23.2"}, "machine": "a machine",
        "corpus": {
            "source": "held-out modules", "sha256": "ab" * 32, "tokens": 65536, "windows": 128,
            "sequence_length": 512, "n_bytes": 222822,
        },
        "export": {"tokens": 4096, "runs": [level_0, level_4] if shipped else [level_0], "first_divergence": None},
        "cost": {
            "tokens": 65408, "clusters": {"by": "document", "count": 31},
            "nll_original": 1.7, "nll_quantized": 1.72, "ppl_original": 5.474, "ppl_quantized": 5.585,
            "ppl_ratio": {"value": 1.0202, "low": 1.0181, "high": 1.0223},
            "delta_nll": {"mean": 0.02, "se": 0.001, "dof": 30, "low": 0.018, "high": 0.022},
            "kld": {
                "mean": 0.021, "se": 0.001, "dof": 30, "low": 0.019, "high": 0.023,
                "bootstrap": {"low": 0.019, "high": 0.023, "replicates": 2000, "seed": 0},
                "median": 0.008, "p90": 0.06, "p99": 0.2, "p999": 0.8, "max": 3.1,
            },
            "delta_p": {"mean": -0.001, "rms": 0.031, "low": 0.03, "high": 0.032},
            "subsets": [], "rounding": None, "suspects": None,
            "same_top": {"value": 0.951, "low": 0.948, "high": 0.954, "dof": 30, "independent_tokens": 22_000},
            "bits_per_byte_original": 0.7213, "bits_per_byte_quantized": 0.7298,
        },
        "seconds": 31.0,
    }  # fmt: skip
    parity["gates"] = judge(gates, parity)
    parity["passed"] = all(gate["passed"] for gate in parity["gates"])
    recipe = load_recipe("demo").model_dump(mode="json")
    recipe["model"]["id"] = model
    manifest = {
        "versions": {"onnx": "1.23.2"},
        "source": {"name": model, "revision": "step3000", "commit": "c0ffee" * 6},
        "recipe": recipe,
        "calibration": {"source": "other modules", "sha256": "cd" * 32, "windows": 64, "sequence_length": 512},
        "layout": {"kv_cache": "shared", "kv_dtype": "float32"},
    }
    return manifest, quantization, parity


class Page(HTMLParser):
    """Checks nesting; collects tags, attributes and text."""

    VOID = {"meta", "link", "img", "br", "hr", "input", "circle", "line", "path"}

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


VARIANTS = {
    "gptq": {},
    "one layer": {"layers": 1},
    "36 layers": {"layers": 36, "model": "EleutherAI/pythia-2.8b"},
    "rtn": {"method": "rtn"},
    "none": {"method": "none"},
    "no gates": {"gates": Gates()},
    "level 0": {"shipped": False},
}


def printed(parity, quantization, width=100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(verdict(parity, quantization))
    return console.export_text()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_page_is_one_file_without_script_or_resource(variant):
    page = render_report(*records(**VARIANTS[variant]))
    parsed = Page(page)
    for tag, attributes in parsed.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base")
        assert not {k for k in attributes if k.startswith("on")} and not {"src", "srcset", "href"} & attributes.keys()
    assert "@import" not in page and "url(" not in page and "://" not in page
    for figure in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(figure)  # well-formed by itself


def test_the_page_answers_in_order_verdict_questions_gates_linears_provenance():
    text = Page(render_report(*records())).text
    order = ["Passed", *words.QUESTIONS, "Gates", "Where the error is", "Every linear", "Where it comes from"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "all 5 gates" in text and "c0ffee" * 6 in text and "ab" * 32 in text and "cd" * 32 in text


def test_each_linear_shows_both_losses_and_the_recovered_share():
    manifest, quantization, parity = records(layers=2)
    quantization["linears"][1] |= {"rtn_loss": 0.0123, "loss": 0.0246, "recovered": -1.0}
    text = Page(render_report(manifest, quantization, parity)).text
    for x in quantization["linears"]:
        row = f"{words.kind(x['name'])} {' × '.join(map(str, x['shape']))} {words.scheme(x)} "
        row += f"{words.power(x['rtn_loss'])} {words.power(x['loss'])} {100 * x['recovered']:.0f} %"
        assert row in text
    assert "-100 %" in text


def test_a_failed_gate_is_said_first_and_by_name():
    records_ = records(gates=Gates(ppl_ratio=1.01, export_max_abs=1e-5))
    page, card, terminal = render_report(*records_), model_card(*records_), printed(records_[2], records_[1])
    assert Page(page).text.index("2 of 2 gates: Export, in one pass, Perplexity") < 300
    assert "✗ failed" in page and "✓ passed" not in page
    assert "differs from torch on the same weights by up to 1.9 × 10⁻⁵" in card
    assert "FAILED  2 of 2 gates" in terminal and "passed" not in terminal


def test_without_gates_nothing_is_said_to_have_passed():
    manifest, quantization, parity = records(gates=Gates())
    for text in (
        Page(render_report(manifest, quantization, parity)).text,
        model_card(manifest, quantization, parity),
        printed(parity, quantization),
    ):
        assert "measured" in text.lower() and "passed" not in text.lower()


@pytest.mark.parametrize(
    "change",
    [
        {"cost.clusters": "absent", "cost.tokens": "absent", "versions": "absent", "machine": "absent"},
        {"cost.ppl_ratio": {"value": 1.02, "low": None, "high": None}},
        {"cost.ppl_ratio": {"value": None, "low": None, "high": None}, "cost.ppl_quantized": None},
        {"cost.delta_nll": {"mean": 0.0, "se": None, "low": None, "high": None}},
        {"cost.kld": {"mean": 0.0, "se": 0, "low": 0, "high": 0, "median": 0, "p90": 0, "p99": 0, "p999": 0, "max": 0}},
        {"cost.same_top": {"value": 1.0, "low": None, "high": None}},
        {"export.max_abs": 0.0, "export.p999_abs": 0.0, "export.decode_max_abs": 0.0},
    ],
)
def test_what_is_missing_or_zero_leaves_every_rendering_whole(change):
    manifest, quantization, parity = records()
    for path, value in change.items():
        *sections, name = path.split(".")
        section = parity
        for key in sections:
            section = section[key]
        if value == "absent":
            del section[name]
        else:
            section[name] = value
    parity["gates"] = judge(GATES, parity)
    page = render_report(manifest, quantization, parity)
    Page(page)
    for text in (
        page,
        model_card(manifest, quantization, parity),
        printed(parity, quantization),
        printed(parity, None),
    ):
        figures = re.sub(r"<style>.*?</style>|^```python$.*?^```$", "", text, flags=re.S | re.M)
        assert not re.search(r"\b(None|nan|inf)\b", figures)


def test_every_section_of_the_proof_is_on_the_page():
    manifest, quantization, parity = records()
    cost = parity["cost"]
    part = {key: cost[key] for key in cost if key not in ("subsets", "rounding", "suspects")}
    cost["subsets"] = [part | {"name": HOSTILE, "tokens": 1234}, part | {"name": "PubMed Central"}]
    estimate = {"mean": 0.0251, "se": 0.001, "dof": 30, "low": 0.023, "high": 0.027}
    shares = {"value": 0.672, "low": 0.655, "high": 0.695}
    both = {"rtn": estimate, "artifact": estimate, "saved": estimate, "recovered": shares}
    cost["rounding"] = {"delta_nll": both | {"recovered": None}, "kld": both}
    weights = {"name": "gpt_neox.layers.1.attention.dense", "layer": 1, "error": 0.3, "rtn_error": 0.04, "ratio": 7.5}
    cost["suspects"] = {"limit": 2.0, "first": weights, "worst": [weights]}
    parity["against"] = {
        "created": "2025-01-01T00:00:00Z", "machine": "another machine", "tokens": 65408, "delta_nll": estimate,
        "kld": estimate, "same_top": estimate, "export": {"max_abs": 1.9e-5, "other_max_abs": 1.7e-5},
    }  # fmt: skip
    page = Page(render_report(manifest, quantization, parity))
    for said in (
        "Where to look first", "7.5 times that of round-to-nearest", "another machine", "+0.02510",
        "+0.02300 to +0.02700", "Beside round to nearest", "67.20 %", "By part of the text", "PubMed Central", "1,234",
        "cut at 170 tokens", "99.9 % within 0.800", "3.10 %",
    ):  # fmt: skip
        assert said in page.text, said
    assert "script" not in {tag for tag, _ in page.tags}


def test_losses_that_were_not_measured_are_said_to_be_missing():
    manifest, quantization, parity = records(method="rtn")
    for x in quantization["linears"]:
        x |= {"rtn_loss": None, "loss": None, "recovered": None}
    text = Page(render_report(manifest, quantization, parity)).text
    assert "they need calibration text" in text and text.count("attention.dense") == 3


@pytest.mark.parametrize(
    "place", ["name", "revision", "commit", "corpus", "calibration", "linear", "recipe", "version"]
)
def test_hostile_names_stay_text(place):
    manifest, quantization, parity = records()
    match place:
        case "corpus":
            parity["corpus"]["source"] = HOSTILE
        case "calibration":
            manifest["calibration"]["source"] = HOSTILE
        case "linear":
            quantization["linears"][0] |= {"name": HOSTILE, "expected_cost": 1.0}
            quantization["allocation"] = {"asked": 5, "reached": 5, "raised": [HOSTILE]}
        case "recipe":
            manifest["recipe"]["model"]["id"] = HOSTILE
        case "version":
            parity["versions"]["onnx"] = HOSTILE
        case _:
            manifest["source"][place] = HOSTILE
    clean = {tag for tag, _ in Page(render_report(*records())).tags}
    assert {tag for tag, _ in Page(render_report(manifest, quantization, parity)).tags} == clean
    prose = re.sub(
        r"^(`{3,}).*?^\1$", "", model_card(manifest, quantization, parity).split("\n---\n", 1)[1], flags=re.S | re.M
    )
    prose = re.sub(r"`[^`\n]*`", "", prose)
    assert not re.search(r"(?<!\\)<|(?<!\\)\[x\]", prose) and "\n# \\<" not in prose
    rows = [line for line in prose.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", a)) > 2 for a in rows)


def test_dots_stand_where_the_losses_are():
    """RTN above GPTQ by the same distance for the same ratio, and inside the picture."""
    linears = [linear(f"gpt_neox.layers.{i}.mlp.dense_h_to_4h", i, 0.01 * 3**i, 0.001 * 3**i) for i in range(3)]
    ((name, plot),) = depth_panels(linears)
    assert name == "mlp.dense_h_to_4h"
    root = ElementTree.fromstring(plot)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    dots = {look: [c for c in root if c.attrib.get("class") == look] for look in ("rtn", "got")}
    heights = {look: np.array([float(c.attrib["cy"]) for c in found]) for look, found in dots.items()}
    gaps = heights["got"] - heights["rtn"]
    assert len(gaps) == 3 and (gaps > 10).all() and np.ptp(gaps) < 0.3
    assert (np.diff(heights["rtn"]) < 0).all()  # growing losses climb
    for c in root.iter():
        if c.tag == "circle":
            assert 0 < float(c.attrib["cx"]) < width and 0 < float(c.attrib["cy"]) < height


@settings(max_examples=60)
@given(
    value=st.floats(0.5, 3), below=st.floats(0, 0.3), above=st.floats(0, 2), limit=st.none() | st.floats(1.0001, 4),
    losses=st.lists(st.tuples(st.floats(1e-12, 10), st.floats(0, 10)), min_size=1, max_size=5),
    differences=st.lists(st.floats(0, 1e4), min_size=1, max_size=4),
)  # fmt: skip
def test_no_figure_breaks_a_plot(value, below, above, limit, losses, differences):
    linears = [linear(f"gpt_neox.layers.{i}.mlp.x", i, rtn, loss) for i, (rtn, loss) in enumerate(losses)]
    plots = [plot for _, plot in depth_panels(linears)]
    plots.append(residual_panel([{"layer": i, "residual_error": loss} for i, (_, loss) in enumerate(losses)]))
    maps = head_maps([row | {"heads": [[row["rtn_loss"], row["loss"], 1.0]]} for row in linears])
    plots += [*maps.panels, maps.legend]
    plots.append(interval_plot(value, value - below, value + above, limit))
    plots.append(ruler([("a", d) for d in differences], [("b", 1.0)], [] if limit is None else [limit / 1e4]))
    for plot in plots:
        root = ElementTree.fromstring(plot)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for mark in root.iter():
            for key, most in (
                ("cx", width),
                ("x", width),
                ("x1", width),
                ("x2", width),
                ("cy", height),
                ("y", height),
                ("y1", height),
                ("y2", height),
            ):
                if key in mark.attrib:
                    assert -0.1 <= float(mark.attrib[key]) <= most + 0.1, (mark.tag, mark.attrib)


def test_recovered_is_of_the_summed_error_not_the_mean_of_shares():
    linears = [linear("a", 0, 1.0, 0.1), linear("b", 1, 0.01, 0.01)]
    assert words.recovered(linears) == pytest.approx(1 - 0.11 / 1.01)
    assert words.recovered([linear("a", 0, 0.0, 0.0)]) is None


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        ((1.0170, 1.0151, 1.0189), "raises perplexity: +1.70 % (95 % interval +1.51 to +1.89 %)"),
        ((0.98, 0.97, 0.99), "lowers perplexity: -2.0 % (95 % interval -3.0 to -1.0 %)"),
        ((1.0002, 0.9999, 1.0005), "could be told from none: +0.020 % (95 % interval -0.010 to +0.050 %)"),
        ((1.02, None, None), "changes perplexity by +2.00 %; the text allows no interval"),
    ],
)
def test_the_cost_in_words(ratio, said):
    _, _, parity = records()
    parity["cost"]["ppl_ratio"] = dict(zip(("value", "low", "high"), ratio, strict=True))
    assert said in words.cost_sentence(parity)


@pytest.mark.parametrize(
    ("x", "said"),
    [(0, "0"), (1.91e-5, "1.9 × 10⁻⁵"), (1e-4, "10⁻⁴"), (0.02, "0.0200"), (0.31, "0.310"), (1923, "1.9 × 10³")],
)
def test_powers(x, said):
    assert words.power(x) == said


def test_a_share_is_not_rounded_up_to_all():
    assert [words.share(x) for x in (1.0, 0.999999, 0.99995, 0.5)] == ["100 %", "> 99.99 %", "> 99.99 %", "50.00 %"]


def test_treatment_names_what_most_linears_got_and_what_differs():
    _, quantization, _ = records()
    assert words.treatment(quantization) == "GPTQ int4, groups of 32; head int8, groups of 128"
    quantization["linears"][0]["bits"] = 8
    assert words.treatment(quantization) == "GPTQ int4, groups of 32 (with exceptions); head int8, groups of 128"
    assert words.treatment(quantization | {"linears": quantization["linears"][1:-1]}).endswith("head kept in float")
    assert words.treatment(records(method="none")[1]) == "Not quantised"
    row = linear("x", 0, 1, 1, group_size=-1, symmetric=False)
    assert words.scheme(row) == "int4, a scale a row, asymmetric"


# --- the model card


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", card, re.S | re.M)


def test_the_hub_reads_the_cards_metadata():
    data = ModelCard(model_card(*records(model="EleutherAI/pythia-160m"))).data.to_dict()
    assert data["base_model"] == "EleutherAI/pythia-160m" and data["base_model_relation"] == "quantized"
    assert data["license"] == "apache-2.0" and data["library_name"] == "onnx"
    assert data["pipeline_tag"] == "text-generation" and {"onnx", "pythia", "gptq", "int4"} <= set(data["tags"])


def test_a_card_names_no_base_model_that_the_hub_lacks_and_no_licence_that_is_not_known():
    data = ModelCard(model_card(*records(model="demo"))).data.to_dict()
    assert "base_model" not in data and data["license"] == "apache-2.0"
    manifest, quantization, parity = records()
    manifest["recipe"]["model"] = {"id": None, "path": "/models/mine", "revision": "main"}
    manifest["source"]["name"] = "/models/mine"
    card = model_card(manifest, quantization, parity)
    assert not {"base_model", "license"} & ModelCard(card).data.to_dict().keys()
    assert "# mine, GPTQ" in card and "licence is that of the source" in card


def test_the_cards_recipe_gives_the_recipe_again():
    manifest, quantization, parity = records()
    recipe = copy.deepcopy(manifest["recipe"])
    recipe["quantize"]["override"] = [
        {"pattern": 'gpt_neox.layers.0.*"\\é\x7f', "method": None, "bits": 8, "group_size": -1, "symmetric": None},
        {"pattern": "*.dense", "method": "rtn", "bits": None, "group_size": None, "symmetric": False},
    ]
    (block,) = blocks(model_card(manifest | {"recipe": recipe}, quantization, parity), "toml")
    assert parse_recipe(tomllib.loads(block)) == parse_recipe(recipe)


def test_the_card_shows_parity_origin_and_limits():
    card = model_card(*records(model="EleutherAI/pythia-160m"))
    for part in (
        "| Perplexity | 5.474 | 5.585 | +2.02 % | +1.81 % to +2.23 % |",
        "| Largest logit difference | 1.9 × 10⁻⁵ | 0.310 |",
        "| Perplexity | 1.0202 | 1.0223 | 1.0500 | passed |",
        "clustered by 31 documents",
        "[EleutherAI/pythia-160m](https://huggingface.co/EleutherAI/pythia-160m) at `step3000` (commit `c0ffee",
        "not a chat model",
    ):
        assert part in card


@pytest.mark.parametrize("kept", [None, "int8"])
def test_the_cards_onnxruntime_example_runs(kept, tmp_path):
    """Against a graph of random weights: the example decodes over its cache what a fresh pass over all would."""
    config, export = small_config(vocab=256), Export(kv_cache=kept)
    graph = export_model(InMemory(config, on_disk(hugging_face(config))), tmp_path, Quantize(method="none"), export)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    tokenizer = Tokenizer(tokenizer_models.BPE({c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer.save(str(tmp_path / "tokenizer.json"))

    manifest, quantization, parity = records()
    manifest["layout"]["kv_dtype"] = export.cache_dtype
    example, *optimum = blocks(model_card(manifest, quantization, parity), "python")
    assert len(optimum) == (kept is None)  # Optimum makes a cache of the activations' type alone
    for code in optimum:
        compile(code, "optimum", "exec")
    ran = subprocess.run(
        [sys.executable, "-X", "utf8", "-W", "error::DeprecationWarning", "-c", example],
        cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr

    session, tokens = graph.session(), tokenizer.encode("def main(").ids
    for _ in range(32):
        ids = np.array([tokens])
        best = int(session.run(["logits"], graph.feeds(ids, np.ones_like(ids)))[0][0, -1].argmax())
        if best == config.eos_token_id:
            break
        tokens.append(best)
    assert ran.stdout.removesuffix("\n") == tokenizer.decode(tokens)


# --- the terminal


def test_the_terminals_verdict():
    _, quantization, parity = records()
    text = printed(parity, quantization)
    assert text.startswith("PASSED  all 5 gates")
    for part in (
        "largest logit difference        1.9 × 10⁻⁵",
        "5.474     5.585  +2.02 %  +1.81 % to +2.23 %",
        "0.0210    0.0190 to 0.0230",
        "1.0202         1.0223   ≤ 1.0500  passed",
        "95.10 %        94.79 %  ≥ 90.00 %  passed",
        "GPTQ recovered 50 % of round-to-nearest's output error over 13 linears.",
    ):
        assert part in text, part


def test_the_terminals_verdict_fits_eighty_columns():
    _, quantization, parity = records()
    text = printed(parity, quantization, width=80)
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text


# --- what the quantiser records beyond losses


def recorded(layers=3, heads=2):
    """Records with everything that schema 2 may hold; head errors differ everywhere and are largest at layer 1."""
    manifest, quantization, parity = records(layers=layers)
    for x in quantization["linears"]:
        x["expected_cost"] = None if x["layer"] is None else 1e-5
        if x["name"].endswith("query_key_value"):
            x["heads"] = [[1e-4 * (1 + 3 * h + i) * (1 + x["layer"] / 64) for i in range(3)] for h in range(heads)]
    linear_of(quantization, "layers.1.attention.query_key_value")["heads"][:2] = [
        [1e-4, 2e-4, 3e-4],
        [1e-4, 0.041, 9e-3],
    ]
    linear_of(quantization, "layers.1.attention.dense")["expected_cost"] = 0.0012
    linear_of(quantization, "layers.2.mlp.dense_4h_to_h")["expected_cost"] = 0.0034
    quantization["layers"] = [
        {"layer": i, "residual_error": e, "seconds": 1.5 + i} for i, e in enumerate((1e-3, 4e-3, 0.021)[:layers])
    ]
    quantization["sensitivity"] = {"tokens": 16384, "seconds": 41.3}
    quantization["allocation"] = {"asked": 4.25, "reached": 4.249, "raised": ["gpt_neox.layers.0.attention.dense"]}
    return manifest, quantization | {"schema": 2}, parity


def linear_of(quantization, name):
    return next(x for x in quantization["linears"] if x["name"] == f"gpt_neox.{name}")


def cells(panel) -> dict[str, dict[str, float]]:
    """Each cell's place, size and opacity by what it says when pointed at."""
    root = ElementTree.fromstring(panel)
    return {x.find("title").text: {k: float(v) for k, v in x.attrib.items()} for x in root.iter("rect")}


def rows(page: str) -> list[list[str]]:
    """The table of linears: a list of cells a row."""
    table = page[page.index("<table", page.index("Every linear")) :]
    found = re.findall(r"<tr>(.*?)</tr>", table[: table.index("</table>")], re.S)
    return [
        [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", cell)).strip() for cell in re.split(r"</t[hd]>", row)[:-1]]
        for row in found
    ]


def test_every_heads_error_is_in_the_cell_of_its_layer_and_head():
    _, quantization, _ = recorded(layers=6, heads=4)
    panels = [cells(panel) for panel in head_maps(quantization["linears"]).panels]
    assert len(panels) == 3
    origin = panels[0]["layer 0 head 0 q: 0.01 %"]
    for x in quantization["linears"]:
        for head, errors in enumerate(x.get("heads", ())):
            for panel, part, error in zip(panels, "qkv", errors, strict=True):
                cell = panel[f"layer {x['layer']} head {head} {part}: {words.percent(error)}"]
                # Cells and gaps are of one size.
                assert cell["x"] == pytest.approx(origin["x"] + head * (320 - 40) / 4, abs=0.2)
                assert cell["y"] == pytest.approx(origin["y"] + x["layer"] * 20, abs=0.2)
    assert sum(map(len, panels)) == 6 * 4 * 3


def test_equal_ratios_of_errors_are_equal_steps_of_colour_in_all_panels():
    errors = [[1e-4, 1e-3, 1e-2], [1e-3, 1e-4, 1e-3]]
    maps = head_maps([linear("gpt_neox.layers.0.attention.query_key_value", 0, 1, 1, heads=errors)])
    opacity = {
        name.split()[3] + name.split()[4]: cell["fill-opacity"]
        for panel in maps.panels
        for name, cell in cells(panel).items()
    }
    assert opacity["0v:"] == 1 and opacity["0q:"] == opacity["1k:"] == pytest.approx(0.06)
    assert opacity["0k:"] == opacity["1q:"] == opacity["1v:"] == pytest.approx(0.53)
    legend = ElementTree.fromstring(maps.legend)
    assert [t.text for t in legend.iter("text")] == ["0.01 %", "0.05 %", "0.1 %", "0.2 %", "1 %"]


def test_a_map_says_without_colour_where_its_largest_error_is():
    page = render_report(*recorded())
    labels = [a["aria-label"] for tag, a in Page(page).tags if tag == "svg" and a.get("role") == "img"]
    assert "Relative output error of keys (k), layer by head; largest layer 1 head 1 k, 4.1 %" in labels
    text = Page(page).text
    assert "those of layer 1 head 1 k (4.1 %), layer 1 head 1 v (0.9 %), layer 2 head 1 v (0.062 %)." in text


def test_few_heads_have_their_figures_in_the_cells_and_many_do_not():
    def figures(panel):
        return [
            x.text for x in ElementTree.fromstring(panel).iter("text") if x.get("class") in ("under", "mid", "over")
        ]

    few = head_maps(recorded(heads=4)[1]["linears"]).panels[1]
    assert len(figures(few)) == 12 and "4.1" in figures(few)
    assert not figures(head_maps(recorded(heads=16)[1]["linears"]).panels[1])


def test_a_model_of_36_layers_and_40_heads_stays_inside_its_picture():
    manifest, quantization, parity = recorded(layers=36, heads=40)
    for panel in head_maps(quantization["linears"]).panels:
        _, _, width, height = map(float, ElementTree.fromstring(panel).attrib["viewBox"].split())
        found = cells(panel)
        assert len(found) == 36 * 40 and height < 320
        for cell in found.values():
            assert cell["x"] > 30 and cell["x"] + cell["width"] <= width and cell["width"] > 5
            assert cell["y"] > 15 and cell["y"] + cell["height"] < height - 20
    assert len(render_report(manifest, quantization, parity)) < 1_000_000


def test_a_layer_without_heads_leaves_its_row_empty():
    _, quantization, _ = recorded(layers=3, heads=2)
    whole = cells(head_maps(quantization["linears"]).panels[0])
    linear_of(quantization, "layers.1.attention.query_key_value")["heads"] = None
    holed = cells(head_maps(quantization["linears"]).panels[0])
    gone = {name for name in whole if name.startswith("layer 1 ")}
    assert len(gone) == 2 and holed.keys() == whole.keys() - gone
    assert all(holed[name]["y"] == whole[name]["y"] for name in holed)


def test_a_silent_or_exact_head_takes_the_colour_from_no_other():
    """An output of zero energy makes the quantiser's quotient 3e38; an exact one 0."""
    heads = [[3.4e38, 0.0, 1e-3], [1e-3, 1e-3, 1e-2]]
    linears = [linear("gpt_neox.layers.0.attention.query_key_value", 0, 1, 1, heads=heads)]
    maps = head_maps(linears)
    assert [len(cells(panel)) for panel in maps.panels] == [1, 2, 2]
    assert cells(maps.panels[1])["layer 0 head 0 k: 0 %"]["fill-opacity"] == pytest.approx(0.06)
    assert "those of layer 0 head 1 v (1 %), layer 0 head 0 v (0.1 %)" in findings.worst_heads(linears)
    assert [t.text for t in ElementTree.fromstring(maps.legend).iter("text")][0] == "≤ 0.1 %"
    assert head_maps([linears[0] | {"heads": [[0.0, 0.0, 0.0]]}]) is None


def residual_heights(*errors):
    """Of the dots, from the bottom of the picture up."""
    plot = residual_panel([{"layer": i, "residual_error": e, "seconds": 1} for i, e in enumerate(errors)])
    root = ElementTree.fromstring(plot)
    grid = [float(x.attrib["y1"]) for x in root.iter("line") if x.attrib["class"] == "grid"]
    labels = [x.text for x in root.iter("text")]
    return [max(grid) - float(c.attrib["cy"]) for c in root.iter("circle")], labels


def test_the_residual_streams_scale_is_logarithmic_beyond_a_decade_else_from_zero():
    (a, b, c), labels = residual_heights(1e-4, 1e-3, 1e-2)
    assert c - b == pytest.approx(b - a, abs=0.2) and c > b > a
    assert labels[0] == "10⁻⁴"
    (a, none, b, c), labels = residual_heights(0.002, 0.0, 0.004, 0.008)
    assert (b, c, none) == (pytest.approx(2 * a, abs=0.2), pytest.approx(4 * a, abs=0.2), 0) and labels[0] == "0"
    assert len(residual_heights(None, 0.004, None)[0]) == 1 and residual_panel([]) is None
    assert residual_heights(0.0, 0.0)[0] == [0, 0]


def test_the_residual_stream_stands_in_figures_too():
    page = render_report(*recorded())
    assert "Relative squared error of the residual stream, layer by layer" in page
    assert (
        "Behind layer 2 the residual stream differs from the original model's by 2.1 % of its energy."
        in Page(page).text
    )
    titles = [row[0] for row in rows(page) if len(row) == 1]
    assert titles[1:] == ["Layer 1 residual stream 0.00400 · 2.5 s", "Layer 2 residual stream 0.0210 · 3.5 s", "Head"]
    manifest, quantization, parity = recorded()
    quantization["layers"] = [x | {"residual_error": None} for x in quantization["layers"]]
    page = render_report(manifest, quantization, parity)
    assert ["Layer 1 2.5 s"] in rows(page) and "esidual stream" not in page


def test_expected_costs_are_a_column_and_the_three_largest_a_sentence():
    page = render_report(*recorded())
    head, *table = rows(page)
    assert head == [
        "Linear", "Shape", "Stored as", "RTN", "GPTQ", "Recovered", "Expected cost nats a token", "Damp", "Time",
    ]  # fmt: skip
    dense = [
        "attention.dense",
        "384 × 128",
        "int4, groups of 32",
        "0.00880",
        "0.00440",
        "50 %",
        "0.00120",
        "0.01",
        "0.2 s",
    ]
    assert dense in table
    assert table[-1][6] == "–"  # the head's is not known
    text = Page(page).text
    assert "expected to cost 0.00470 nats a token in 12 linears, most in layers.2.mlp.dense_4h_to_h (0.00340), " in text
    assert "layers.1.attention.dense (0.00120), layers.0.attention.query_key_value (10⁻⁵)." in text
    assert (
        "was measured on 16,384 tokens in 41 s" in text and "weighed in the blocks by how much the loss feels" in text
    )


def test_the_budget_is_said_and_its_linears_marked():
    manifest, quantization, parity = recorded()
    page = render_report(manifest, quantization, parity)
    assert "4.25 bits a weight asked for, 4.249 reached; raised to 8 bits: layers.0.attention.dense." in Page(page).text
    names = [row[0] for row in rows(page)]
    assert names[2:4] == ["attention.query_key_value", "attention.dense ▲ raised"] and page.count("▲") == 1
    quantization["allocation"]["raised"] = [x["name"] for x in quantization["linears"][:11]]
    page = render_report(manifest, quantization, parity)
    assert "raised to 8 bits: 11 linears (3 attention.query_key_value, 3 attention.dense, 3 mlp.dense_h_to_4h, " in (
        Page(page).text
    )
    assert page.count("▲") == 11
    quantization["allocation"]["raised"] = []
    assert "raised to 8 bits: none." in Page(render_report(manifest, quantization, parity)).text


def test_the_card_says_where_the_error_is():
    manifest, quantization, parity = recorded()
    card = model_card(manifest, quantization, parity)
    section = card.split("## Where the error is\n\n")[1].split("\n\n## Use")[0]
    assert section.splitlines() == [f"- {sentence}" for sentence in findings.sentences(quantization)]
    for part in ("2.1 % of its energy", "layer 1 head 1 k (4.1 %)", "0.00470 nats a token", "4.249 reached"):
        assert part in section


TRACES = (
    "fused QKV", "expected to cost", "Expected cost", "asked for", "▲", "esidual stream", "weighed", "loss feels",
    "layer by head", "Where the error is\n",
)  # fmt: skip


@pytest.mark.parametrize("how", ["absent", "null", "rtn", "none"])
def test_what_was_not_recorded_leaves_no_trace(how):
    manifest, quantization, parity = records(method=how) if how in ("rtn", "none") else records()
    if how == "null":
        quantization |= dict.fromkeys(("layers", "sensitivity", "allocation"))
        for x in quantization["linears"]:
            x |= {"heads": None, "expected_cost": None}
    page, card = render_report(manifest, quantization, parity), model_card(manifest, quantization, parity)
    for part in TRACES:
        assert part not in Page(page).text and part not in card
    assert "residual" not in page and 'class="heads"' not in page
    if how != "none":
        assert {len(row) for row in rows(page)} == {1, 8}


@pytest.mark.parametrize(
    ("x", "said"), [(0, "0 %"), (0.041, "4.1 %"), (1.534, "150 %"), (3e-4, "0.03 %"), (2e-8, "2.0 × 10⁻⁶ %")]
)
def test_percents(x, said):
    assert words.percent(x) == said
