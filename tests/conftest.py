"""What is around these tests, a CI system or a shell, is not meant for the commands that they run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from cores import take_own_cores
from marks import LONGEST, MARKERS, SLOW

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
