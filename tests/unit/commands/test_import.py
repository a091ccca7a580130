"""`import`: a quantised checkpoint becomes an artifact that is proved, by the command itself."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import onnxruntime
import pytest
from models import hugging_face, save_checkpoint
from packers import quantise
from places import ROOT
from sessions import needs_fixed_scales
from typer.testing import CliRunner

from pythia_export.artifact import Artifact
from pythia_export.cli import app
from pythia_export.model.neox import NeoXConfig
from pythia_export.runtime import Session

DEMO = ROOT / "demo" / "main"
TEXT = ["--set", "verify.source=python-stdlib", "--set", "verify.sequence_length=32", "--tokens", "128"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    config = NeoXConfig(4096, 64, 1, 2, 128, max_positions=64)
    folder = tmp_path_factory.mktemp("made") / "float"
    save_checkpoint(hugging_face(config), config, folder, DEMO / "tokenizer.json")
    return folder


@pytest.fixture
def quantised(original, tmp_path):
    folder = shutil.copytree(original, tmp_path / "mine-gptq")
    made = quantise(folder, "gptq", meta={"quantizer": ["gptqmodel:5.6.12"]})
    return folder, made


def run(*arguments, code=0):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    return done


def test_an_import_is_proved_against_the_original_and_says_where_it_is_from(original, quantised, tmp_path):
    folder, made = quantised
    out = tmp_path / "artifact"
    done = run("import", folder, "--original", original, "--out", out, *TEXT, "--json")
    found = json.loads(done.stdout)
    parity, opened = found["parity"], Artifact.open(out)
    opened.check()
    assert parity["passed"] and max(r["max_abs"] for r in parity["export"]["runs"] if r["gated"]) < 1e-4
    assert "baseline" not in parity["cost"] and parity["cost"]["kld"]["mean"] > 1e-3  # random codes are another model
    imported = opened.manifest.imported
    assert (imported.format, imported.tool, imported.name) == ("gptq", "gptqmodel 5.6.12", "mine-gptq")
    assert imported.config == json.loads((folder / "config.json").read_text())["quantization_config"]
    assert opened.manifest.source.name == "float" and imported.requantized is None
    for name, rounded in made.items():
        assert np.array_equal(opened.weights().tensor(f"{name}.weight").numpy(), rounded.dense())
    for name in ("report.html", "README.md"):
        assert "gptqmodel 5.6.12" in (out / name).read_text()
    assert json.loads(run("verify", out, "--json").stdout)["cost"]["kld"] == parity["cost"]["kld"]
    again = tmp_path / "again"
    run("export", out, "--out", again, "--rotary", "gqa")
    assert Artifact.open(again).manifest.imported == imported
    assert "gptqmodel 5.6.12" in run("inspect", out).stdout.replace("\n", " ")


def test_an_import_has_the_graph_that_its_own_export_has(quantised, tmp_path):
    """At level 4 the layers of a graph are one node for the native kernels, whoever rounded the weights."""
    out, again = tmp_path / "artifact", tmp_path / "again"
    run("import", quantised[0], "--out", out, *TEXT, "--set", "export.accuracy_level=4")
    run("export", out, "--out", again)
    assert (out / "model.onnx").read_bytes() == (again / "model.onnx").read_bytes()
    assert b"Decoder" in (out / "model.onnx").read_bytes()


@needs_fixed_scales
def test_a_cache_of_int8_with_fixed_scales_comes_with_an_import_and_logits_agree(original, tmp_path):
    folder, out, floats = shutil.copytree(original, tmp_path / "gptq"), tmp_path / "artifact", tmp_path / "floats"
    made = quantise(folder, "gptq", nearest=True)
    int8 = ["--set", "export.rotary=gqa", "--set", "export.kv_cache=int8"]
    text = {"source": "python-stdlib", "samples": "16", "sequence_length": "32"}
    text = [word for key, value in text.items() for word in ("--set", f"calibration.{key}={value}")]
    run("import", folder, "--original", original, "--out", out, *TEXT, *int8, *text)
    opened = Artifact.open(out)
    assert opened.parity.passed and opened.manifest.layout.kv_dtype == "int8"
    for name, rounded in made.items():
        assert np.array_equal(opened.weights().tensor(f"{name}.weight").numpy(), rounded.dense())
    run("export", out, "--out", floats, "--kv-cache", "float32")
    ids = np.array([opened.tokenizer().encode("import os\nimport sys\n\ndef main(argv):\n    return 0\n").ids])
    ours, theirs = (stepped(onnxruntime.InferenceSession(str(at / "model.onnx")), ids) for at in (out, floats))
    moved = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert 0 < moved < 0.02, "the cache is read, and it holds what floats hold"
    assert np.allclose(stepped(Session.open(opened), ids), ours, atol=1e-5)


def stepped(session, ids):
    """Logits [1, T, vocabulary] of a bare session or ours: half of the ids at once, then one at a time by the cache."""
    half, found = ids.shape[1] // 2, []
    pieces = [ids[:, :half], *(ids[:, at : at + 1] for at in range(half, ids.shape[1]))]
    if isinstance(session, Session):
        cache = session.start(1, ids.shape[1])
        return np.concatenate([session.step(cache, piece) for piece in pieces], 1)
    kinds = {"tensor(int8)": np.int8, "tensor(float)": np.float32}
    inputs = [x for x in session.get_inputs() if x.name.startswith("past")]
    past = {x.name: np.zeros((1, x.shape[1], 0, x.shape[3]), kinds[x.type]) for x in inputs}
    outputs, seen = ["logits", *(name.replace("past_key_values", "present") for name in past)], 0
    for piece in pieces:
        positions, seen = np.arange(seen, seen + piece.shape[1])[None], seen + piece.shape[1]
        feeds = {"input_ids": piece, "attention_mask": np.ones((1, seen), np.int64), "position_ids": positions}
        logits, *present = session.run(outputs, feeds | past)
        past = dict(zip(past, present, strict=True))
        found.append(logits)
    return np.concatenate(found, 1)


def test_without_the_original_nothing_is_said_of_what_quantisation_cost(quantised, tmp_path):
    out = tmp_path / "artifact"
    done = run("import", quantised[0], "--out", out, *TEXT)
    assert "What did the import cost?" in done.stdout
    parity = Artifact.open(out).parity
    assert parity.cost.baseline == "imported" and parity.cost.kld.mean < 1e-9
    assert "What quantisation cost is not known: no original was given" in (out / "report.html").read_text()
    again = json.loads(run("verify", out, "--json").stdout)
    assert again["cost"]["baseline"] == "imported" and again["passed"]


def test_what_is_rounded_again_is_counted_and_its_cost_is_told(original, tmp_path):
    folder, out = shutil.copytree(original, tmp_path / "scattered"), tmp_path / "artifact"
    quantise(folder, "gptq_v2", order=lambda rng, n: rng.permutation(n), desc_act=True)
    done = run("import", folder, "--out", out, *TEXT, code=3)
    assert "does not fit" in done.output and "--requantize 8" in done.output
    done = run("import", folder, "--out", out, *TEXT, "--requantize", "8")
    assert re.search(r"rounded again: 4 linears, to 8 bits: [+-]\d", done.stderr), "of so little text either"
    again = Artifact.open(out).manifest.imported.requantized
    assert again.bits == 8 and len(again.linears) == 4
    assert 0 < again.kld.mean < 1e-2 and again.kld.low < again.kld.mean < again.kld.high
    assert "4 linears, to 8 bits" in (out / "README.md").read_text()


REFUSED = {
    "another model": (["--original", "demo"], 3, "is not what .* was quantised from: hidden_size is 128 in the"),
    "bits": (["--requantize", "5"], 2, "--requantize 5: 4 or 8 was expected"),
    "a key of weights": (["--set", "quantize.bits=8"], 2, "--set quantize.bits: .import. takes keys"),
    "no key": (["--set", "bits=8"], 2, "SECTION.KEY=VALUE was expected Hint: For example: --set verify.seed=1"),
    "scales in float16": (["--set", "export.target=cuda", "--set", "export.dtype=float16"], 2, "scales are kept"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_with_an_import_is_refused(quantised, tmp_path, case):
    given, code, said = REFUSED[case]
    done = run("import", quantised[0], "--out", tmp_path / "artifact", *TEXT, *given, code=code)
    assert re.search(said, done.output.replace("\n", " "))
    assert not (tmp_path / "artifact").exists()


def test_a_recipe_of_imported_weights_cannot_be_run(tmp_path):
    done = run("run", "demo", "--set", "quantize.method=imported", "--out", tmp_path / "artifact", code=2)
    assert "such weights were rounded by another tool" in done.output and "pythia-export import" in done.output
