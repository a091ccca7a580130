"""How long work reports itself.

The library never prints. Whatever takes long accepts a ``Progress`` and tells it what is being done; the command line
draws bars from that, tests and callers who do not care pass nothing and get ``SILENT``. It is a protocol on floor 0 so
that every floor can speak it and none has to know who is listening.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Listener for long work."""

    def track(self, title: str, total: int, unit: str = "") -> AbstractContextManager[Advance]:
        """A bar of ``total`` steps of ``unit``; yields ``advance(n)``, which adds ``n`` finished steps."""
        ...

    def note(self, message: str) -> None:
        """One visible line: a choice that was made, a fallback that the recipe allowed."""
        ...


class _Silent:
    """Hears nothing. Stateless, so one instance serves everybody."""

    @contextmanager
    def track(self, title: str, total: int, unit: str = "") -> Iterator[Advance]:
        yield lambda n: None

    def note(self, message: str) -> None:
        return None


SILENT: Progress = _Silent()


class Calls:
    """A `Progress` that calls: `step` with a title, the steps done and the steps in all; `note` with a message."""

    def __init__(self, step: Callable[[str, int, int], None], note: Callable[[str], None]) -> None:
        self._step = step
        self.note = note

    @contextmanager
    def track(self, title: str, total: int, unit: str = "") -> Iterator[Advance]:
        done = 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            self._step(title, done, total)

        self._step(title, 0, total)
        yield advance
