"""benchmarks/gpu/run.py, which has a quarter of an hour on the day: every step of it on an emulated GPU, and what
becomes of steps that go wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cuda_kernels import emulated_library
from places import ROOT, SUPPORT

sys.path.append(str(ROOT / "benchmarks" / "gpu"))
import plan  # noqa: E402

SCRIPT = ROOT / "benchmarks" / "gpu" / "run.py"
STEPS = SUPPORT / "gpu_steps.py"
SANITIZER = '#!/bin/sh\nwhile [ "$1" != "$PYTHON" ]; do shift; done\nexec "$@"\n'


def run(*command: object, code: int = 0, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True, text=True, timeout=1000, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def rows(out: Path, **wanted: str) -> list[dict]:
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return [row for row in lines if all(row.get(key) == value for key, value in wanted.items())]


def ends(out: Path) -> dict[str, tuple[str, str]]:
    """How each step ended last, and why."""
    return {row["step"]: (row["status"], row["why"]) for row in rows(out, kind="end")}


def test_every_step_runs_on_an_emulated_gpu(tmp_path):
    if emulated_library() is None:
        pytest.skip("no build of the kernels in this checkout, or no CMake")
    (tmp_path / "compute-sanitizer").write_text(SANITIZER)
    (tmp_path / "compute-sanitizer").chmod(0o755)
    tools = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": sys.executable}
    out, mirror = tmp_path / "out", tmp_path / "mirror"
    printed = run(SCRIPT, "--dry", "--out", out, "--mirror", mirror, "--budget", 900, **tools)
    found = ends(out)
    assert set(found.values()) == {("done", "")}, found
    assert (mirror / "results.jsonl").read_bytes() == (out / "results.jsonl").read_bytes()
    for step in found:
        assert f"| {step} | **done**" in printed and rows(out, step=step, kind="finding"), step


def has_ended(process: int) -> bool:
    """Whether a process is gone within five seconds; one that its new parent has not yet waited for has ended, too."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state in "ZX":
            return True
        time.sleep(0.05)
    return False


def test_a_step_that_goes_wrong_costs_no_other(tmp_path):
    printed = run(STEPS, tmp_path)
    found = ends(tmp_path)
    assert {step: status for step, (status, _) in found.items()} == {
        "look": "done", "mended": "failed", "wrong": "failed", "memory": "failed", "crash": "crashed",
        "hang": "timed out", "missing": "not possible", "long": "no time", "probe": "done", "good": "done",
    }  # fmt: skip
    assert found["wrong"][1] == "does not hold: one thing" and found["crash"][1] == "SIGSEGV"
    assert found["memory"][1] == "MemoryError: CUDA out of memory. Tried to allocate 9 GiB."
    assert found["missing"][1] == "there is not: a unicorn"
    assert rows(tmp_path, step="memory", what="before")
    assert has_ended(int((tmp_path / "work" / "child").read_text())), "what the step that hung had started"
    assert "| wrong | one thing | 3 |  | **WRONG** |" in printed
    assert [row["status"] for row in rows(tmp_path, step="probe", kind="end")] == ["done", "done"]

    # A machine that went away in the middle of a line; the next run does what was never begun, then what failed.
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"step": "good", "kind": "fin')
    (tmp_path / "mended").touch()
    run(STEPS, tmp_path)
    lines = (tmp_path / "results.jsonl").read_text().split('"fin\n')[1].splitlines()
    begun = [row["step"] for row in map(json.loads, lines) if row["kind"] == "begin"]
    assert begun == ["look", "mended", "wrong", "memory", "crash", "probe", "hang", "probe"]
    assert json.loads(next(line for line in lines if '"mended"' in line and '"end"' in line))["status"] == "done"


def test_ended_from_outside_it_says_what_it_has_and_leaves_nothing_running(tmp_path):
    process = subprocess.Popen([sys.executable, STEPS, tmp_path, "hang"], stdout=subprocess.PIPE, text=True)
    child = tmp_path / "work" / "child"
    while not (child.exists() and child.read_text()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert ends(tmp_path)["hang"][0] == "interrupted" and "| hang | **interrupted**" in printed
    assert has_ended(int(child.read_text()))


def test_the_page_has_every_step_with_its_limit():
    page = (SCRIPT.parent / "README.md").read_text()
    named = re.findall(r"^\| `([\w.-]+)` \|.*\| (\d+) \|$", page, re.MULTILINE)
    steps = [(step.name, f"{step.limit:.0f}") for step in plan.STEPS]
    assert named == steps
