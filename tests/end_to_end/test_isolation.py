"""Modules that lie in the current folder are never imported, by the command or by any interpreter that it starts."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from places import ROOT

from pythia_export.base.interpreter import isolated_environment
from pythia_export.bench.job import Job
from pythia_export.bench.line_up import Contestant, interpreters_for
from pythia_export.bench.run import Failed, in_own_process
from pythia_export.checkpoint.convert import converted

NAMES = ("torch", "json", "numpy", "typing", "zipfile", "importlib", "platform", "onnxruntime", "typer", "submitit")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The current folder, with modules that leave a mark where they are executed."""
    folder = tmp_path / "shadow"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'ran-')!r} + {name!r}, 'w').close()\n")
    monkeypatch.chdir(folder)
    return folder


def executed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("ran-*"))


def command(*args: str, python: tuple[str, ...] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """As the installed command runs: a script elsewhere, whose own folder is first on the path."""
    given = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"} | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run([sys.executable, *python, *args], env=given, capture_output=True, text=True, timeout=120)


def test_the_command_does_not_import_from_the_current_folder(here, tmp_path):
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "pythia-export"
    script.write_text("import sys\nfrom pythia_export.__main__ import main\nsys.exit(main())\n")
    done = command(str(script), "sweep", "run", "no.toml", "--out", "made")
    assert "no.toml" in done.stderr and done.returncode in (2, 3), done.stderr
    assert executed(here) == []


def test_neither_does_the_module_nor_a_path_with_an_empty_part(here):
    (here / "importlib.py").unlink()  # Python itself imports it from there, on the way to the first line of ours
    for path in (str(ROOT), f"{ROOT}{os.pathsep}", f"{os.pathsep}{ROOT}"):
        done = command("-m", "pythia_export", "plan", "no-such-recipe", PYTHONPATH=path)
        assert "no-such-recipe" in done.stderr and done.returncode == 2, done.stderr
        assert executed(here) == [], path


def test_what_a_process_of_ours_starts_does_not_either(here, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}")
    nested = "import json, subprocess, sys; subprocess.run([sys.executable, '-c', 'import torch'], check=True)"
    subprocess.run([sys.executable, "-c", nested], env=isolated_environment(), check=True)
    assert executed(here) == []


def test_a_pickle_is_converted_without_it(here, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    torch.save({"a": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    assert converted(tmp_path / "pytorch_model.bin").stat().st_size > 12
    assert executed(here) == []


def test_bench_looks_for_peers_and_runs_them_without_it(here, tmp_path):
    peer = Contestant("peer", "ours", "function", needs=("json", "torch", "nowhere_to_be_found"), install="x")
    assert interpreters_for([peer], []) == {"peer": "nowhere_to_be_found is not installed (x)"}
    job = Job(
        module="ours", variant="function", artifact=str(tmp_path / "none"), checkpoint="", weights=[],
        scratch=str(tmp_path), threads=1, vocab_size=96, prompt_tokens=4, new_tokens=2, contexts=[4],
    )  # fmt: skip
    with pytest.raises(Failed, match="no such directory"):
        in_own_process("measure", Path(sys.executable), job)
    assert executed(here) == []


def test_every_interpreter_that_the_package_starts_is_isolated():
    """Who starts one does it with `isolated_environment`; none is given code or a module's name."""
    starts = []
    for path in sorted((ROOT / "pythia_export").rglob("*.py")):
        text = path.read_text()
        words = {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
        assert not {"-m", "-c"} & words, f"{path} starts a module or code: it would look into the current folder first"
        if "sys.executable" in text or "multiprocessing" in text:
            starts.append(path.relative_to(ROOT).as_posix())
            assert "isolated_environment" in text or "-P" in text, path
    assert "pythia_export/checkpoint/convert.py" in starts


def test_the_action_does_not_look_into_the_jobs_folder():
    for step in yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]:
        for line in step.get("run", "").splitlines():
            words = line.split()
            at = next((i for i, word in enumerate(words) if word.strip('"').endswith("python")), None)
            if at is not None:
                assert words[at + 1] == "-P", line
