"""The kernels without ONNX Runtime, by the tests of tests/kernels/test_cuda.py, which take a GPU where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from bench import ROOT, Bench

FEW = ["test_a_prompt_in_parts_is_the_prompt_in_one", "test_partial_rotary_turns_what_it_should"]


def contract(bench: Bench) -> None:
    """Attention and rotary: all types, geometries and caches."""
    named = " or ".join(FEW) if bench.dry else "not beam"
    run_tests(bench, f"({named}) and {_device(bench)}", "test_cuda.py")


def beam(bench: Bench) -> None:
    """GPTQ's beam: a block's codes bit for bit, and whole matrices."""
    run_tests(bench, f"beam and {_device(bench)}" + bench.sized("", " and 32"), "test_cuda.py")


def sanitized(bench: Bench) -> None:
    """A few of the tests under compute-sanitizer, which finds reads and writes beyond a buffer, and races."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return bench.say("compute-sanitizer", "not there")
    few = f"({' or '.join([*FEW, 'beam'])}) and {_device(bench)}"
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", _path("test_cuda.py"), "-k", few]
    for check in bench.sized(("memcheck", "racecheck"), ("memcheck",)):
        command = [tool, "--tool", check, "--error-exitcode", "99", "--target-processes", "all", *tests]
        # torch's own allocator would hide what reads beyond a buffer.
        environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
        print(done.stdout, done.stderr)
        if "Device not supported" in done.stdout:
            bench.say(check, "the device is not supported")
        else:
            summary = [line for line in done.stdout.splitlines() if "SUMMARY" in line]
            bench.check(check, done.returncode == 0, summary[-1] if summary else f"exit code {done.returncode}")


def _device(bench: Bench) -> str:
    return "emulated" if bench.dry else "GPU"


def _path(name: str) -> str:
    return str(next((ROOT / "tests").rglob(name)))


class _Reports:
    """What pytest reports of each test."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failures: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome] += 1
        if report.failed:
            lines = report.longreprtext.splitlines()
            said = [line.lstrip("E ") for line in lines if line.startswith("E ")]
            self.failures.append((report.nodeid.partition("::")[2], said[0] if said else lines[-1]))


def run_tests(bench: Bench, which: str, *files: str) -> None:
    """Run tests, and record each that fails."""
    reports = _Reports()
    options = ["-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", "-k", which]
    pytest.main([*options, *map(_path, files)], plugins=[reports])
    for name, said in reports.failures:
        bench.check(name, False, said)
    counts = ", ".join(f"{n} {outcome}" for outcome, n in reports.outcomes.items())
    bench.check(f"tests of {Path(files[0]).stem}, {which}", reports.outcomes["passed"] > 0, counts or "none was found")
