"""Ctrl-C between layers: the first finishes the layer at hand and keeps it, the second ends at once.

SIGTERM ends at once as well: whoever sends it (Slurm, systemd, a container) kills seconds later, and a layer of a large
model takes minutes.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..base.errors import Interrupted
from ..base.progress import Progress


@contextmanager
def finishing_layers(progress: Progress) -> Iterator[Callable[[int, int], None]]:
    """Yields `check(done, layers)`, to be called when a layer is on the disk.

    Where a program has a handler of its own for SIGINT, or this is not its main thread, nothing is changed.

    Raises:
        Interrupted: by `check`, after a first Ctrl-C.
        KeyboardInterrupt: at the second.
    """
    asked = False

    def note(*_: object) -> None:
        nonlocal asked
        signal.signal(signal.SIGINT, signal.default_int_handler)
        asked = True
        progress.note("Ctrl-C: this layer is finished and kept first; a second one ends at once.")

    def check(done: int, layers: int) -> None:
        if asked:
            raise Interrupted(
                f"Interrupted: {done} of {layers} layers are done and kept. What was there before is intact.",
                hint="The same command with --resume goes on from there.",
            )

    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) == signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
