"""What is around these tests, a CI system or a shell, is not meant for the commands that they run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from cores import take_own_cores

# Markers by folder; pyproject.toml says what each means.
MARKERS = {"kernels": "native", "end_to_end": "end_to_end"}

# The longest first: a worker takes whole files, and one that begins with the longest at the end lets the others wait.
LONGEST = (
    "native", "demo", "packaging", "consumers", "eval", "ci", "bench", "hub", "sweep_run", "sweep_device",
    "engines", "gpu_script", "cuda", "mutations", "resume", "checkpoint", "hub_text", "publish_steps",
    "graph", "rounding",
)  # fmt: skip
# Files that are `slow`: they build artifacts, fork commands, run sweeps or fuzz. Elsewhere it stands beside the test.
SLOW = {
    "adapter", "api", "artifact", "bench", "checkpoint", "correction", "dequantize", "device", "engines", "eval",
    "family", "generation", "gpu_script", "hub", "hub_text", "job", "kinds", "mutations", "numerics", "overlap",
    "parity", "publish_steps", "push", "rounding", "serve", "snapshot", "speeds", "store", "sweep_device", "sweep_hub",
    "sweep_report", "sweep_run", "trace", "two_products", "whereabouts",
}  # fmt: skip

take_own_cores()

for _name in ("GITHUB_ACTIONS", "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(_name, None)

# A shell's background jobs ignore Ctrl-C, and so does what they start: the commands that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def a_command_isolates_itself_alone() -> Iterator[None]:
    """The command's first act forbids imports from the current folder, to all that its process starts: here that is the
    tests' own process, whose scripts import from where they are."""
    before = {name: os.environ.get(name) for name in ("PYTHONSAFEPATH", "PYTHONPATH")}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}.py": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    for item in items:
        if marker := MARKERS.get(item.path.parent.name):
            item.add_marker(marker)
        if item.path.stem.removeprefix("test_") in SLOW:
            item.add_marker("slow")
