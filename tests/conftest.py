"""What a CI system around these tests says in the environment is not meant for the commands that they run."""

from __future__ import annotations

import os

import pytest

# The longest first: a worker takes whole files, and one that begins with the longest at the end lets the others wait.
LONGEST = ("demo", "consumers", "eval", "ci", "bench", "hub", "native", "mutations", "resume", "checkpoint", "graph")

for _name in ("GITHUB_ACTIONS", "GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(_name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}.py": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
