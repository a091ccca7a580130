"""benchmarks/gpu/run.py, which has a quarter of an hour on the day: every step of it on an emulated GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_kernels import emulated_library
from places import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu" / "run.py"


def run(*args: object, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, args)],
        capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def rows(out: Path, **wanted: str) -> list[dict]:
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return [row for row in lines if all(row.get(key) == value for key, value in wanted.items())]


def test_every_step_runs_on_an_emulated_gpu_and_is_not_repeated(tmp_path):
    if emulated_library() is None:
        pytest.skip("no build of the kernels in this checkout, or no CMake")
    printed = run("--dry", "--out", tmp_path / "out", "--mirror", tmp_path / "mirror", "--budget", 500)
    ends = rows(tmp_path / "out", kind="end")
    assert {row["status"] for row in ends} == {"done"}, ends
    assert (tmp_path / "mirror" / "results.jsonl").read_bytes() == (tmp_path / "out" / "results.jsonl").read_bytes()
    for row in ends:
        assert f"| {row['step']} | **done**" in printed
