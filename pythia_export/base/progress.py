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
