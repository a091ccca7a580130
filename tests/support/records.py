"""What a run hands to the report: what production wrote (written/), with other figures; and a reader of pages."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

from rich.console import Console

from pythia_export.cli import tables
from pythia_export.model.neox import LINEARS
from pythia_export.proof.gates import judge
from pythia_export.recipe import Gates, load_recipe
from pythia_export.records.manifest import Origin
from pythia_export.records.parity import PARITY_SCHEMA as SCHEMA
from pythia_export.records.parity import Against, Corpus, Cost, Exported, Parity
from pythia_export.records.quantization import Quantization
from pythia_export.report import card, depth, heads, html, text
from pythia_export.report import findings as of_findings
from pythia_export.report import junit as junit_of
from pythia_export.report import summary as summary_of
from pythia_export.report import words as of_words

MANIFEST, QUANTIZATION, WRITTEN = (
    json.loads(Path(__file__).with_name("written").joinpath(f"{name}.json").read_text())
    for name in ("manifest", "quantization", "parity")
)
PLAIN = {k: v for k, v in QUANTIZATION["linears"][0].items() if k != "heads"} | {"expected_cost": None}  # no fisher
HOSTILE = '</title><script>alert("1")</script>|`[x](http://evil.example)\n# <img src=x onerror=alert(1)>'
GATES = Gates(export_max_abs=1e-4, decode_max_abs=1e-4, ppl_ratio=1.05, kld_mean=0.05, same_top=0.9)


def linear(name, layer, rtn, loss, method="gptq", **others):
    recovered = 1 - loss / rtn if rtn else None
    return PLAIN | {
        "name": name, "layer": layer, "method": method, "rtn_loss": rtn, "loss": loss, "recovered": recovered,
        "shape": [384, 128], "damp": 0.01 if method == "gptq" else None, "tokens": 32768, "seconds": 0.25,
    } | others  # fmt: skip


def records(layers=3, method="gptq", model="demo", gates=GATES, shipped=True):
    """Manifest, quantization and parity of an artifact of so many layers, as a run hands them over."""
    linears = []
    for layer in range(layers if method != "none" else 0):
        for i, kind in enumerate(LINEARS):
            rtn = 0.004 * (1 + i) * (1 + layer / 10)
            linears.append(
                linear(f"gpt_neox.layers.{layer}.{kind}", layer, rtn, rtn * (0.5 if method == "gptq" else 1), method)
            )
    if linears:
        linears.append(linear("embed_out", None, 3e-5, 2.7e-5, method, bits=8, group_size=128, shape=[4096, 128]))
    changed = {"method": method, "bits_per_weight": 4.625, "seconds": 9.0, "linears": linears, "layers": []}
    quantization = QUANTIZATION | changed
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
    parity = completed(parity, WRITTEN)
    parity["gates"] = judged(gates, parity)
    parity["passed"] = all(gate["passed"] for gate in parity["gates"])
    recipe = load_recipe("demo").model_dump(mode="json")
    recipe["model"]["id"] = model
    manifest = MANIFEST | {
        "versions": {"onnx": "1.23.2"},
        "source": MANIFEST["source"] | {"name": model, "revision": "step3000", "commit": "c0ffee" * 6},
        "recipe": recipe,
        "calibration": MANIFEST["calibration"] | {"source": "other modules", "sha256": "cd" * 32},
    }
    return manifest, quantization, parity


def judged(gates, parity) -> list[dict]:
    """What the gates say of a proof in JSON, with what production wrote in the place of what it lacks."""
    whole = completed(parity, WRITTEN)
    sections = Corpus.model_validate(whole["corpus"]), Exported.model_validate(whole["export"])
    against = whole["against"] and Against.model_validate(whole["against"])
    return [verdict.to_json() for verdict in judge(gates, *sections, Cost.model_validate(whole["cost"]), against)]


def completed(made, written):
    """What is made up, with what production writes in the place of what is not."""
    if not isinstance(made, dict) or not isinstance(written, dict):
        return made
    return {key: completed(made[key], written.get(key)) if key in made else written[key] for key in made | written}


def inside(layers=3, heads=4):
    """The section of the third question, round-to-nearest beside."""
    mean = {"mean": 0.0251, "se": 0.001, "dof": 30, "low": 0.023, "high": 0.027}
    top = {"value": 0.93, "se": 0.01, "dof": 30, "low": 0.91, "high": 0.95, "independent_tokens": 900}

    def of(x):
        return mean | {key: x * mean[key] for key in ("mean", "low", "high")}

    def side(by):
        return {
            **{name: of(by) for name in ("residual_error", "cosine", "lens_kld", "pattern_js")},
            "lens_same_top": top, "induction_original": 0.53, "induction": 0.5,
            "feature_survival": top, "features": [features(of(by))],
            "depth": [
                {"layer": None if at == 0 else at - 1, "residual_error": of(by * at), "cosine": of(by),
                 "lens_kld": of(by), "lens_same_top": top} for at in range(layers + 1)
            ],
            "heads": [
                {"layer": layer, "head": head, "pattern_js": of(by * 10.0 ** (layer - head)), "induction_original": 0.1,
                 "induction": 0.1 - 0.01 * head, "induction_lost": of(0.4 * head)}
                for layer in range(layers) for head in range(heads)
            ],
        }  # fmt: skip

    def features(unexplained):
        return {
            "name": HOSTILE, "sha256": "ab" * 32, "architecture": "topk", "hook": "blocks.1.hook_out", "head": None,
            "features": 32768, "active_original": 32.0, "active": 31.9, "survived": top, "inherited": None,
            "unexplained_original": mean, "unexplained": unexplained,
        }  # fmt: skip

    return {
        "tokens": 65536, "sampled": 4096, "clusters": {"by": "document", "count": 31}, "sequences": 16, "repeated": 50,
        "seconds": 8.0, "artifact": side(1.0), "rtn": side(2.0),
    }  # fmt: skip


def everything():
    """The same with every part that a proof may have: parts of the text, rounding, suspects, the other artifact."""
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
    parity["inside"] = inside()
    parity["against"] = {
        "created": "2025-01-01T00:00:00Z", "machine": "another machine", "tokens": 65408, "delta_nll": estimate,
        "kld": estimate, "same_top": estimate, "versions": {}, "clusters": cost["clusters"],
        "export": dict.fromkeys(("max_abs", "decode_max_abs"), 1.9e-5)
        | dict.fromkeys(("other_max_abs", "other_decode_max_abs"), 1.7e-5),
    }  # fmt: skip
    return manifest, quantization, parity


class Part:
    """A part of a record, with the fields that a test says; types are checked where whole records are read."""

    def __init__(self, fields: dict) -> None:
        vars(self).update({name: part(value) for name, value in fields.items()})

    def __getattr__(self, name):  # a field that is not said
        return None


def part(value):
    if isinstance(value, dict):
        return Part(value)
    return [part(x) for x in value] if isinstance(value, list) else value


class OfParts:
    """The functions of a module of reports, for parts of records."""

    def __init__(self, module) -> None:
        self._module = module

    def __getattr__(self, name):
        found = getattr(self._module, name)
        if not callable(found) or name == "recipe_toml":  # which takes what TOML holds
            return found
        return lambda *given: found(*map(part, given))


words, findings = OfParts(of_words), OfParts(of_findings)
depth_panels, residual_panel = OfParts(depth).depth_panels, OfParts(depth).residual_panel
head_maps, losses_table = OfParts(heads).head_maps, OfParts(tables).losses_table


def typed(*, manifest=None, quantization=None, parity=None):
    """One of the three, as what reads the file gives it."""
    if manifest is not None:
        return Origin.model_validate(manifest)
    if parity is not None:
        passed = all(gate["passed"] for gate in parity["gates"])
        # Versions are a list of what was installed: what another machine had is no part of it.
        versions = parity.get("versions", WRITTEN["versions"])
        return Parity.model_validate(completed(parity, WRITTEN) | {"passed": passed, "versions": versions})
    return Quantization.model_validate(quantization)


def all_typed(manifest, quantization, parity):
    hostile = any(x["name"] == HOSTILE for x in quantization["linears"])  # no record could be read with such a name
    rounded = part(quantization) if hostile else typed(quantization=quantization)
    return typed(manifest=manifest), rounded, typed(parity=parity)


def render_report(manifest, quantization, parity) -> str:
    return html.render_report(*all_typed(manifest, quantization, parity))


def model_card(manifest, quantization, parity) -> str:
    return card.model_card(*all_typed(manifest, quantization, parity))


def junit(parity) -> str:
    return junit_of.junit(typed(parity=parity))


def summary(parity) -> str:
    return summary_of.summary(typed(parity=parity))


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


def printed(parity, quantization, width=100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(
        text.verdict(typed(parity=parity), None if quantization is None else typed(quantization=quantization))
    )
    return console.export_text()
