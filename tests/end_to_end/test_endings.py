"""How commands end: exit codes and the table of them, Ctrl-C, memory, and what CI systems get to see of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi
from models import InMemory, hugging_face, on_disk, small_config
from places import ROOT
from typer.testing import CliRunner

from pythia_export import cli, hub
from pythia_export.base import errors
from pythia_export.base.compute import Compute
from pythia_export.base.memory import memory_fault
from pythia_export.calibrate import Journal, quantize_stream
from pythia_export.commands import dequantize
from pythia_export.commands import plan as planning
from pythia_export.recipe import Quantize
from pythia_export.weights.layout import layout
from pythia_export.weights.writer import WeightsWriter

DOCS = ROOT / "docs" / "reference" / "exit-codes.md"
PLAIN = Quantize(method="rtn", bits=4, group_size=32)


def invoke(*args: object):
    return CliRunner().invoke(cli.app, [str(x) for x in args])


def kinds_of_errors() -> list[type[errors.PythiaExportError]]:
    return [x for x in vars(errors).values() if isinstance(x, type) and issubclass(x, errors.PythiaExportError)][1:]


def test_the_docs_have_the_exit_codes_of_the_code():
    lines = [line.strip().split("|")[1:-1] for line in DOCS.read_text().splitlines() if re.match(r"\| \d", line)]
    rows = [[cell.strip().strip("`") for cell in line] for line in lines]
    assert {int(code): kind for code, kind, *_ in rows} == errors.EXIT_CODES
    told = {name: int(code) for code, _, name, _ in rows if name}
    assert told == {kind.__name__: kind.exit_code for kind in kinds_of_errors()}
    assert all(what for _, _, name, what in rows if name), "each kind says what belongs to it"


# ---- Ctrl-C


class Interrupting:
    """A Progress that presses Ctrl-C while layer 1 is at work, `times` times."""

    def __init__(self, times: int) -> None:
        self.left, self.notes = times, []

    @contextmanager
    def track(self, title, total, unit=""):
        yield lambda n: None

    def note(self, message):
        self.notes.append(message)


@pytest.mark.parametrize("times", [1, 2])
def test_the_first_ctrl_c_finishes_the_layer_and_the_second_ends(tmp_path, times):
    config, progress = small_config(layers=3), Interrupting(times)
    tensors = on_disk(hugging_face(config))
    places = layout(config, PLAIN, "float32")

    class Source(InMemory):
        def tensor(self, name):
            if name.startswith("gpt_neox.layers.1.") and progress.left:
                progress.left -= 1
                os.kill(os.getpid(), signal.SIGINT)
            return super().tensor(name)

    def quantise(source, work, resume=False):
        with Journal(work, {}, resume=resume) as journal:
            with WeightsWriter(journal.weights, places, keep=bool(journal.finished)) as writer:
                quantize_stream(source, writer, None, Compute(progress=progress), journal=journal)
            return journal.weights.read_bytes()

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(errors.Interrupted if times == 1 else KeyboardInterrupt) as raised:
        quantise(Source(config, tensors), tmp_path / "work")
    assert signal.getsignal(signal.SIGINT) == before
    if times == 1:
        assert raised.value.exit_code == 75 and "2 of 3 layers are done" in str(raised.value)
        assert "--resume" in raised.value.hint
    assert progress.notes == ["Ctrl-C: this layer is finished and kept first; a second one ends at once."]
    resumed = quantise(InMemory(config, tensors), tmp_path / "work", resume=True)
    assert resumed == quantise(InMemory(config, tensors), tmp_path / "whole")


def test_an_interruption_between_layers_is_no_error(monkeypatch):
    def stop(*args, **kwargs):
        raise errors.Interrupted("Interrupted: 2 of 3 layers are done and kept.", hint="--resume goes on.")

    monkeypatch.setattr("pythia_export.commands.run.run", stop)
    done = invoke("run", "demo", "--out", "never")
    assert done.exit_code == 75 and "Error" not in done.stderr and "--resume goes on" in done.stderr


def test_ctrl_c_while_modules_are_imported_is_no_traceback(tmp_path):
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{DOCS.parents[2]}"}
    done = subprocess.run([sys.executable, "-m", "pythia_export", "--help"], env=env, capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr == ""
    scripts = (DOCS.parents[2] / "pyproject.toml").read_text()
    assert 'pythia-export = "pythia_export.__main__:main"' in scripts, "which imports nothing before it listens"


# ---- memory


def too_much_of(kind: str):
    """The real thing: more than an address space holds."""
    if kind == "torch":
        return torch.empty(1 << 60, dtype=torch.uint8)
    if kind == "numpy":
        return np.empty(1 << 60, np.uint8)
    raise RuntimeError(
        "std::bad_alloc" if kind == "C++" else "Failed to allocate memory for requested buffer of size 8"
    )


@pytest.mark.parametrize("kind", ["torch", "numpy", "C++", "ONNX Runtime"])
def test_memory_that_does_not_suffice_is_7_in_every_command(kind, monkeypatch):
    def fail(*args, **kwargs):
        too_much_of(kind)

    for name in ("run", "quantize", "verify", "pull", "export"):
        monkeypatch.setattr(f"pythia_export.commands.{name}.{name}", fail)
    monkeypatch.setattr(planning, "plan", fail)
    monkeypatch.setattr(dequantize, "dequantize", fail)
    for command in (
        ("run", "demo", "--out", "never"), ("quantize", "demo", "--out", "never"), ("verify", "never"),
        ("plan", "demo"), ("pull", "demo"), ("export", "never", "--out", "x"), ("dequantize", "never", "x"),
    ):  # fmt: skip
        done = invoke(*command)
        assert done.exit_code == 7 and "Error: not enough memory" in done.stderr, (command, done.stderr)
        assert "sequence_length" in done.stderr


def test_memory_that_does_not_suffice_for_a_layer_is_told_to_callers_too(tmp_path):
    config = small_config(layers=1)
    places = layout(config, PLAIN, "float32")

    class Source(InMemory):
        def tensor(self, name):
            return too_much_of("torch") if "mlp" in name else super().tensor(name)

    with (
        pytest.raises(errors.ResourceError, match="not enough memory"),
        WeightsWriter(tmp_path / "x", places) as writer,
    ):
        quantize_stream(Source(config, on_disk(hugging_face(config))), writer, None)


def test_other_faults_are_not_taken_for_memory():
    for error in (RuntimeError("shape mismatch"), ValueError(), errors.SourceError("not enough memory"), SystemExit()):
        assert memory_fault(error) is None


# ---- JUnit


@pytest.mark.parametrize("kind", [*kinds_of_errors(), ValueError, MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("command", ["run", "verify"])
def test_junit_is_written_on_every_ending(kind, command, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise kind("this & that\x00")

    monkeypatch.setattr(f"pythia_export.commands.{command}.{command}", fail)
    file = tmp_path / "x.xml"
    done = invoke(command, *(["demo", "--out", "never"] if command == "run" else ["never"]), "--junit", file)
    assert done.exit_code == getattr(kind, "exit_code", {MemoryError: 7, KeyboardInterrupt: 130}.get(kind, 1))
    (suite,) = ElementTree.fromstring(file.read_text())
    assert suite.get("errors") == suite.get("tests") == "1" and command in suite.get("name")
    error = suite.find("testcase/error")
    assert error.get("type") == {MemoryError: "ResourceError"}.get(kind, kind.__name__)
    assert "this & that" in error.get("message")


def test_a_recipe_that_is_not_there_is_in_the_junit_too(tmp_path):
    file = tmp_path / "x.xml"
    assert invoke("run", "nothing.toml", "--out", tmp_path / "o", "--junit", file).exit_code == 2
    assert "nothing.toml" in ElementTree.fromstring(file.read_text()).find("testsuite/testcase/error").get("message")


@pytest.mark.parametrize(
    "what, code, told",
    [
        (("somebody/nothing",), 3, "somebody/nothing"),  # is looked for on the hub
        (("never", "--per-token", "no/such/folder/table.parquet"), 8, "table.parquet"),
    ],
)
def test_what_ends_a_proof_before_it_begins_is_in_the_junit_too(what, code, told, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    file = tmp_path / "x.xml"
    assert invoke("verify", *what, "--junit", file).exit_code == code
    assert told in ElementTree.fromstring(file.read_text()).find("testsuite/testcase/error").get("message")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("run demo --out o --overwrit --junit x.xml", "--overwrit"),
        ("run --out o --junit=x.xml", "RECIPE"),
        ("run demo --junit x.xml", "--out"),
        ("verify --junit x.xml", "ARTIFACT"),
        ("verify a b --junit x.xml", "b"),
        ("run demo --out o --device tpu --junit x.xml", "tpu"),
        ("--colour verify a --junit x.xml", "--colour"),
    ],
)
def test_a_command_line_that_is_not_understood_is_in_the_junit_too(line, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke(*line.split())
    assert done.exit_code == 2 and "--help` shows how it is used" in done.stderr
    error = ElementTree.fromstring((tmp_path / "x.xml").read_text()).find("testsuite/testcase/error")
    assert error.get("type") == "UsageError" and said in error.get("message")


@pytest.mark.parametrize(
    "line", ["run demo --junit", "run demo --junit --out", "verify --junit a/x.xml", "run --junit="]
)
def test_a_junit_file_that_cannot_be_made_out_is_not_written(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "manifest.json").write_text("{}")  # an artifact holds what its manifest names
    assert invoke(*line.split()).exit_code == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "manifest.json"]


# ---- the hub


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://nobody.invalid"])
def test_a_network_error_is_one_sentence(endpoint):
    with pytest.raises(errors.SourceError) as raised, hub.told("a/b", "main"):
        HfApi(endpoint=endpoint).model_info("a/b")
    said = str(raised.value)
    assert len(said) < 120 and not re.search(r"Pool|Max retries|object at|Errno|\n", said), said


@pytest.mark.parametrize("name", ["badname", "a/b/c", "/a", "a/", "", "me/has space", "../x", "me/x--y", "me/x.git"])
def test_a_name_that_is_no_repository_is_refused_before_anything_is_read(name, tmp_path):
    done = invoke("push", tmp_path, name, "--dry-run")
    assert done.exit_code == 2 and "OWNER/NAME" in done.stderr
