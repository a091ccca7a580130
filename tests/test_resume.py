"""A run that was killed goes on after its last finished layer, to the same bytes; or says why it cannot."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import InMemory, hugging_face, on_disk, small_config
from processes import pythia_export, script, started

from pythia_export.checkpoint import demo_folder
from pythia_export.errors import IntegrityError, OutputError, SourceError
from pythia_export.graph.layout import layout
from pythia_export.recipe import Quantize
from pythia_export.stream import Journal, quantize_stream
from pythia_export.weights import WeightsWriter

RECIPE = """
model = {path = "model"}
calibration = {source = "python-stdlib", samples = 4, sequence_length = 128, memory_gb = 0.0}
quantize = {bits = 4, group_size = 32}
verify = {source = "python-stdlib", tokens = 256, sequence_length = 128}
"""


ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "160"}


def run(*args: object, check: int = 0) -> subprocess.CompletedProcess[str]:
    return pythia_export(*args, env=ENVIRONMENT, check=check)


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    shutil.copytree(demo_folder() / "main", folder / "model")
    (folder / "recipe.toml").write_text(RECIPE)
    run("quantize", folder / "recipe.toml", "--out", folder / "whole")
    return folder


def layers_done(work: Path) -> int:
    try:
        return len(json.loads((work / "journal.json").read_text())["finished"])
    except (OSError, ValueError):
        return 0


def kill_after(job: Path, out: Path, layers: int, sign: signal.Signals = signal.SIGKILL) -> None:
    kill_at(layers, out, sign, "quantize", job / "recipe.toml", "--out", out)


def kill_at(layers: int, out: Path, sign: signal.Signals, *command: object) -> None:
    process, deadline = started(*command, env=ENVIRONMENT), time.monotonic() + 120
    while layers_done(out.parent / f".{out.name}.work") < layers and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, sign)
    process.join(60)
    assert process.exitcode not in (None, 0)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_resumed_the_weights_are_the_same_bytes(job, tmp_path, sign):
    out = tmp_path / "out"
    kill_after(job, out, 1, sign)
    assert not out.exists()
    if sign == signal.SIGKILL:  # and once more, further on
        kill_at(4, out, sign, "quantize", job / "recipe.toml", "-o", out, "--resume")
    at = layers_done(tmp_path / ".out.work")
    assert at >= (4 if sign == signal.SIGKILL else 1)
    done = run("quantize", job / "recipe.toml", "--out", out, "--resume")
    assert f"Going on after {at} finished layers" in done.stderr
    assert (out / "model.onnx_data").read_bytes() == (job / "whole" / "model.onnx_data").read_bytes()

    def linears(folder):
        found = json.loads((folder / "quantization.json").read_text())
        return [{k: v for k, v in linear.items() if k != "seconds"} for linear in found["linears"]]

    assert linears(out) == linears(job / "whole")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert os.stat(out / "model.onnx_data").st_nlink == 1  # onnx refuses a file that has a second name


PUBLISHING_FAILS = """
import os, signal, sys
from pythia_export.artifact import Publisher
from pythia_export.cli import main

how, publish = sys.argv.pop(1), Publisher.publish

def fails(self, *what):
    if how != "taken":
        os.kill(os.getpid(), getattr(signal, how))
    self.out.mkdir()  # somebody else's
    publish(self, *what)

Publisher.publish = fails
main()
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "taken"])
def test_what_is_not_published_is_not_lost(how, job, tmp_path):
    out, code = tmp_path / "out", tmp_path / "fails.py"
    code.write_text(PUBLISHING_FAILS)
    done = script(code, how, "quantize", job / "recipe.toml", "--out", out, env=ENVIRONMENT)
    code.unlink()
    assert done.returncode == {"SIGKILL": -9, "SIGTERM": 143, "taken": OutputError.exit_code}[how], done
    if how == "taken":
        out.rmdir()
    again = run("quantize", job / "recipe.toml", "--out", out, "--resume")
    assert "Going on after 6 finished layers" in again.stderr
    assert (out / "model.onnx_data").read_bytes() == (job / "whole" / "model.onnx_data").read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and os.stat(out / "model.onnx_data").st_nlink == 1


def test_weights_that_are_gone_or_cut_are_no_run_to_go_on_from(job, tmp_path):
    out = tmp_path / "out"
    kill_after(job, out, 1)
    weights = tmp_path / ".out.work" / "artifact" / "model.onnx_data"
    with weights.open("r+b") as file:
        file.truncate(1000)
    cut = run("quantize", job / "recipe.toml", "--out", out, "--resume", check=4)
    assert "model.onnx_data has 1,000 bytes; " in cut.stderr and "without --resume" in cut.stderr
    weights.rename(weights.with_name("other"))
    gone = run("quantize", job / "recipe.toml", "--out", out, "--resume", check=4)
    assert "model.onnx_data is not there; " in gone.stderr


def test_changed_inputs_are_refused_with_the_fields_that_differ(job, tmp_path):
    out = tmp_path / "out"
    kill_after(job, out, 1)
    text = (
        RECIPE.replace("bits = 4", "bits = 3")
        .replace("samples = 4", "samples = 5")
        .replace('"model"}', f'"{job}/model"}}')
    )
    (tmp_path / "recipe.toml").write_text(text)
    refused = run("quantize", tmp_path / "recipe.toml", "--out", out, "--resume", check=3)
    assert "quantize.bits: 4 then, 3 now" in refused.stderr and "calibration.sha256" in refused.stderr
    assert layers_done(tmp_path / ".out.work") >= 1  # nothing is lost by asking
    anew = run("quantize", tmp_path / "recipe.toml", "--out", out)
    assert "Starting anew" in anew.stderr
    assert json.loads((out / "quantization.json").read_text())["linears"][0]["bits"] == 3


@pytest.mark.parametrize(("dtype", "parallel"), [("float32", True), ("float16", True), ("float16", False)])
def test_a_layer_that_is_read_back_computes_what_it_computed(dtype, parallel, tmp_path):
    """In float16 norms and biases are rounded when they are stored; both runs must compute with what is stored."""
    config = replace(small_config(layers=3), parallel_residual=parallel)
    source = InMemory(config, {name: t + 1e-5 for name, t in on_disk(hugging_face(config)).items()})
    windows, quantize = np.random.default_rng(0).integers(0, 96, (16, 32)), Quantize(bits=4, group_size=32)
    places, found = layout(config, quantize, dtype), []
    for stops in ((), (2,)):
        work = tmp_path / str(len(stops))
        for stop in (*stops, 99):
            with suppress(InterruptedError), Journal(work, {}, resume=work.exists()) as journal:
                monkey = journal.commit

                def commit(layer, *rest, stop=stop, monkey=monkey):
                    monkey(layer, *rest)
                    if layer["layer"] + 1 == stop:
                        raise InterruptedError

                journal.commit = commit
                path = journal.weights
                with WeightsWriter(path, places, keep=bool(journal.finished)) as writer:
                    quantize_stream(source, quantize, places, dtype, windows, writer, journal=journal)
        found.append(path.read_bytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fingerprint": {}}', "\x00"])
def test_a_journal_that_cannot_be_read_is_refused_and_kept(text, tmp_path):
    (tmp_path / "work" / "artifact").mkdir(parents=True)
    (tmp_path / "work" / "artifact" / "data").write_text("bytes")
    (tmp_path / "work" / "journal.json").write_text(text)
    with pytest.raises(IntegrityError, match="not a journal of ours|not JSON"):
        Journal(tmp_path / "work", {}, resume=True).__enter__()
    assert (tmp_path / "work" / "artifact" / "data").exists()


def test_a_file_in_the_way_and_a_journal_without_weights_are_said(tmp_path):
    (tmp_path / "work").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        Journal(tmp_path / "work", {}).__enter__()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "journal.json").write_text("{}")
    with pytest.raises(SourceError, match="no run to go on from"):
        Journal(tmp_path / "other", {}, resume=True).__enter__()


def test_nothing_to_go_on_from_is_said(job, tmp_path):
    refused = run("quantize", job / "recipe.toml", "--out", tmp_path / "out", "--resume", check=3)
    assert "no run to go on from" in refused.stderr and "Tokenising" not in refused.stderr  # nothing was read for it
    assert list(tmp_path.iterdir()) == []


def test_one_process_at_a_time(tmp_path):
    with Journal(tmp_path / "work", {}), pytest.raises(OutputError, match="another process"):
        Journal(tmp_path / "work", {}).__enter__()


def test_a_journal_without_a_layer_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), Journal(tmp_path / "work", {}):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SourceError), Journal(tmp_path / "work", {}, resume=True):
        pass
