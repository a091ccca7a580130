"""Cores of its own for each of pytest's workers, and for what it starts.

ONNX Runtime's threads wait for work by spinning, so two workers that both take every core slow each other down.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_PINS = hasattr(os, "sched_setaffinity")  # Linux
_ALL = os.sched_getaffinity(0) if _PINS else set()


def take_own_cores() -> None:
    """Confine this process, where it is one of several workers of pytest-xdist. More workers than cores share them."""
    name, workers = os.environ.get("PYTEST_XDIST_WORKER", ""), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if _PINS and name and workers > 1:
        cores = sorted(_ALL)
        os.sched_setaffinity(0, cores[int(name.removeprefix("gw")) % len(cores) :: workers])


@contextmanager
def every_core() -> Iterator[None]:
    """Let what is started meanwhile have all cores, as it has in a user's shell."""
    if not _PINS:
        yield
        return
    own = os.sched_getaffinity(0)
    os.sched_setaffinity(0, _ALL)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)
