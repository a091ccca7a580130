"""`bench`: everybody's perplexity of the same text is what it must be, whoever is absent or fails is told."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from places import ROOT
from rich.console import Console
from typer.testing import CliRunner

from pythia_export import Artifact, cli
from pythia_export.base.errors import IntegrityError, NumericsError, RecipeError
from pythia_export.bench import line_up
from pythia_export.bench.line_up import PEERS, Contestant, chosen, interpreters_for
from pythia_export.bench.measure import nll, require_near
from pythia_export.bench.result import Result
from pythia_export.bench.run import bench
from pythia_export.cli.tables import bench_view
from pythia_export.commands.run import run as run_recipe
from pythia_export.commands.verify import verify
from pythia_export.evaluate.scores import ScoringSession
from pythia_export.recipe import parse_recipe

BUILD = ROOT / "build"
# Interpreters that have peers which this one lacks: `make consumers`, and benchmarks/README.md for llama.cpp.
GENAI, OPENVINO, LLAMA = (BUILD / name / "bin" / "python" for name in ("consumers/venv", "consumers/openvino", "llama"))
RECIPE = {
    "model": {"id": "demo"},
    "quantize": {"method": "rtn", "bits": 4, "group_size": 32},
    "verify": {"source": "python-stdlib", "tokens": 1024, "sequence_length": 512},
}
SHORT = {"prompt_tokens": 8, "new_tokens": 2, "contexts": [8, 16], "text_tokens": 1024, "repeats": 1, "threads": 1}
NOBODY = Contestant("Nobody", "nobody", "", needs=(), install="")
ABSENT = Contestant("Absent", "nobody", "", needs=("no_such_module_at_all",), install="pip install nothing")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "artifact"
    run_recipe(parse_recipe(RECIPE), out)
    return out


@pytest.fixture(scope="module")
def cost(artifact) -> dict:
    return json.loads((artifact / "parity.json").read_text())["cost"]


@pytest.fixture(scope="module")
def result(artifact) -> Result:
    """One run of peers that come with this package, beside one that fails and one that is not there."""
    peers = [p for p in PEERS if p.name in ("Optimum float32", "Optimum int8", "transformers float32")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_up, "PEERS", (NOBODY, *peers, ABSENT))
        return bench(artifact, **SHORT)


def rows(result: Result) -> dict[str, dict]:
    """What --json says of each."""
    return {row["name"]: row for row in result.to_json()["rows"]}


def test_ours_scores_what_the_proof_says(result, cost):
    ours = [row for name, row in rows(result).items() if name.startswith("pythia-export int4")]
    assert ours and result.text.tokens == 1024
    for row in ours:
        assert row["perplexity"] == pytest.approx(cost["ppl_quantized"], rel=1e-5)


def test_peers_in_float32_score_what_the_original_does(result, cost):
    for name in ("Optimum float32", "transformers float32"):
        assert rows(result)[name]["perplexity"] == pytest.approx(cost["ppl_original"], rel=1e-5)
    assert rows(result)["Optimum int8"]["perplexity"] == pytest.approx(cost["ppl_original"], rel=0.02)


def test_every_figure_is_there(result):
    for row in rows(result).values():
        assert set(row["decode_tokens_per_second"]) == {"8", "16"} and min(row["decode_tokens_per_second"].values()) > 0
        assert row["first_token_seconds"] > row["load_seconds"] > 0 and row["prefill_tokens_per_second"] > 0
        assert row["peak_memory_bytes"] > 20e6 and row["size_bytes"] > 500e3
        assert row["versions"]["python"] and len(row["rounds"]) == 1
    assert rows(result)["transformers float32"]["versions"]["transformers"]
    assert rows(result)["Optimum int8"]["size_bytes"] < rows(result)["Optimum float32"]["size_bytes"] / 3


def test_whoever_is_absent_or_fails_is_told_and_the_others_go_on(result):
    absent = {peer.name: peer.why for peer in result.absent}
    assert set(absent) == {"Nobody", "Absent"}
    assert absent["Absent"] == "no_such_module_at_all is not installed (pip install nothing)"
    assert absent["Nobody"].startswith("failed: ModuleNotFoundError") and "contestants.nobody" in absent["Nobody"]
    assert len(result.rows) >= 4


def test_without_checkpoint_and_text_ours_is_measured_all_the_same(artifact, tmp_path):
    moved = tmp_path / "artifact"
    shutil.copytree(artifact, moved)
    manifest = json.loads((moved / "manifest.json").read_text())
    manifest["source"]["commit"] = "sha256:other"
    manifest["recipe"]["verify"] |= {"source": "file", "path": str(tmp_path / "gone.txt")}
    (moved / "manifest.json").write_text(json.dumps(manifest))
    result = bench(moved, peers=["transformers"], **SHORT)
    assert {peer.name for peer in result.absent} == {"transformers float32", "transformers bfloat16"}
    assert all("changed since the artifact was made" in peer.why for peer in result.absent)
    assert "gone.txt" in result.text.why and result.rows[0].medians.prefill_tokens_per_second > 0


def test_sigterm_ends_the_contestant_too_and_leaves_no_files(artifact, tmp_path):
    python, said, scratch = tmp_path / "python", tmp_path / "pid", tmp_path / "scratch"
    python.write_text(f"#!/bin/sh\necho $$ > {said}.part; mv {said}.part {said}; exec sleep 60\n")
    python.chmod(0o755)
    scratch.mkdir()
    code = (
        "from pathlib import Path; from types import SimpleNamespace; from pythia_export.bench import run\n"
        f"run.sys = SimpleNamespace(executable={str(python)!r})\n"
        f"run.bench(Path({str(artifact)!r}), peers=None, text_tokens=0)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(scratch)})
    while not said.is_file():
        assert process.poll() is None
        time.sleep(0.05)
    assert list(scratch.glob("pythia-export-bench-*/job.json"))
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM and not list(scratch.glob("pythia-export-bench-*"))
    with pytest.raises(ProcessLookupError):
        os.kill(int(said.read_text()), signal.SIGKILL)


def test_the_tables_hold_everybody_in_80_columns(result):
    decode = {"128": 12.34, "512": 1234.5, "1500": 123456.7}
    wide = [
        dataclasses.replace(row, medians=dataclasses.replace(row.medians, decode_tokens_per_second=decode))
        for row in result.rows
    ]
    real = dataclasses.replace(result, contexts=[128, 512, 1500], prompt_tokens=128, rows=wide)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(bench_view(real))
    said = console.export_text()
    assert "…" not in said and "12.3 " in said and "123,457" in said and "at 1,500" in said
    for name in rows(result):
        assert said.count(f"{name} ") >= 2
    assert "Not measured: Absent: no_such_module_at_all is not installed" in said and "Nobody: failed" in said


def test_json_and_no_peers_on_the_command_line(artifact):
    line = ["bench", str(artifact), "--no-peers", "--json", "--repeats", "1", "--new-tokens", "2", "--contexts", "4,9"]
    done = CliRunner().invoke(cli.app, [*line, "--prompt-tokens", "4", "--tokens", "0"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["absent"] == [] and found["contexts"] == [4, 9] and found["text"] == {"why": "no text was asked for"}
    assert all(row["name"].startswith("pythia-export") and "perplexity" not in row for row in found["rows"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--peer", "llama"], "no peer is called 'llama'"), (["--no-peers", "--peer", "optimum"], "contradict"),
        (["--contexts", "a,b"], "numbers"), (["--contexts", "600"], "this model's context is 512"),
        (["--peer-python", "/nowhere/python"], "no Python that runs"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(artifact, options, said):
    done = CliRunner().invoke(cli.app, ["bench", str(artifact), *options])
    assert done.exit_code == 2 and said in done.stderr


def test_peers_are_chosen_by_name_or_first_word():
    assert {p.name for p in chosen(["optimum"])} == {"Optimum float32", "Optimum int8", "Optimum int4"}
    assert {p.name for p in chosen(["llama.cpp q8_0", "onnxruntime-genai"])} == {"llama.cpp Q8_0", "onnxruntime-genai"}
    assert chosen([]) == list(PEERS)


def test_a_peer_is_looked_for_in_every_interpreter(tmp_path):
    """The first that has all it needs; one that has a half does not do."""
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    other.chmod(0o755)
    (tmp_path / "only_over_there.py").touch()
    here = dataclasses.replace(NOBODY, name="here", needs=("json",))
    there = dataclasses.replace(NOBODY, name="there", needs=("only_over_there", "json"))
    half = dataclasses.replace(NOBODY, name="half", needs=("only_over_there", "nowhere_to_be_found"), install="x")
    found = interpreters_for([here, there, half], [other])
    assert found == {
        "here": Path(sys.executable), "there": other, "half": "nowhere_to_be_found is not installed (x)",
    }  # fmt: skip


class Guessing:
    """A peer with logits of its own: after two tokens in the prompt, and after the third."""

    def __init__(self, logits: np.ndarray) -> None:
        self.answers = dict(zip(("prefill", "step"), logits, strict=True))
        self.asked: list = []

    def prefill(self, ids: np.ndarray) -> np.ndarray:
        self.asked.append(ids.tolist())
        return self.answers["prefill"]

    def step(self, token: int) -> np.ndarray:
        self.asked.append(token)
        return self.answers["step"]


def test_a_peer_whose_logits_are_not_the_models_is_not_timed():
    expected = np.random.default_rng(0).normal(size=(2, 50)) * 3
    rounded = expected * 0.9 + 7  # what softmax does not see is no error
    near = Guessing(rounded)
    require_near(near, np.array([5, 6, 7]), expected)
    assert near.asked == [[5, 6], 7]
    for wrong in (expected[::-1], np.zeros_like(expected), np.full_like(expected, np.nan)):
        with pytest.raises(ValueError, match="its logits are off the model's by .* of their size"):
            require_near(Guessing(wrong), np.array([5, 6, 7]), expected)


def test_negative_log_likelihood_of_short_and_broken_logits():
    logits = np.array([[0, 0], [np.log(3), 0], [9, 9]], np.float32)
    assert nll(logits, np.array([0, 1, 0])) == pytest.approx([np.log(2), np.log(4 / 3)])
    for broken in (logits[:2], np.full((3, 2), np.nan)):
        with pytest.raises(ValueError):
            nll(broken, np.array([0, 1, 0]))


@pytest.mark.parametrize(
    ("python", "peer", "figure", "within"),
    [
        pytest.param(GENAI, "onnxruntime-genai", "ppl_quantized", 1e-3, id="onnxruntime-genai"),
        # It rounds activations to int8.
        pytest.param(OPENVINO, "OpenVINO (artifact)", "ppl_quantized", 0.02, id="OpenVINO (artifact)"),
        # Part of its arithmetic, and its cache, are float16.
        pytest.param(LLAMA, "llama.cpp F16", "ppl_original", 1e-3, id="llama.cpp F16"),
        pytest.param(LLAMA, "llama.cpp Q8_0", "ppl_original", 2e-3, id="llama.cpp Q8_0"),
        pytest.param(LLAMA, "llama.cpp Q4_0", "ppl_original", 0.1, id="llama.cpp Q4_0"),
        pytest.param(LLAMA, "llama.cpp Q4_0, q8_0 cache", "ppl_original", 0.1, id="llama.cpp Q4_0, q8_0 cache"),
    ],
)
def test_peers_in_interpreters_of_their_own(artifact, cost, python, peer, figure, within):
    if not python.is_file():
        pytest.skip(f"no {python.relative_to(BUILD.parent)}: see benchmarks/README.md")
    result = bench(artifact, peers=[peer], peer_pythons=[python], **SHORT)
    assert result.absent == []
    assert rows(result)[peer]["perplexity"] == pytest.approx(cost[figure], rel=within)


def test_an_error_of_ours_keeps_its_class_on_the_way_out_of_its_process(artifact, tmp_path, monkeypatch):
    """Here a scale that is NaN: what it computes is none either."""
    broken = tmp_path / "broken"
    shutil.copytree(artifact, broken)
    data, opened = broken / "model.onnx_data", Artifact.open(broken)
    slot = next(slot for name, slot in opened.layout.slots.items() if name.endswith("final_layer_norm.weight"))
    raw = bytearray(data.read_bytes())
    raw[slot.offset : slot.offset + slot.nbytes] = np.full(slot.nbytes // 4, np.nan, "f4").tobytes()
    data.write_bytes(raw)
    with pytest.raises(NumericsError, match="logits are not finite"):
        bench(broken, peers=None, text_tokens=0, repeats=1, prompt_tokens=8, new_tokens=2, contexts=[8])


def test_a_graph_that_is_not_ours_is_given_to_nobody(artifact, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(artifact, other)
    model = onnx.load(other / "model.onnx", load_external_data=False)
    model.graph.node.append(onnx.helper.make_node("RandomNormal", [], ["r"], name="dice", shape=[1]))
    Artifact.open(other).replace_files({"model.onnx": model.SerializeToString()})
    for run in (bench, verify, lambda folder: ScoringSession.of(Artifact.open(folder))):
        with pytest.raises(IntegrityError, match="node dice is RandomNormal"):
            run(other)


def test_contexts_beyond_the_model_are_an_error_before_anything_runs(artifact):
    with pytest.raises(RecipeError, match="510 \\+ 64"):
        bench(artifact, prompt_tokens=510, peers=None)
