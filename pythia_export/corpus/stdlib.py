"""Text that every Python installation carries: the standard library's sources and its documentation topics.

The demo checkpoint was trained on it, so that a first run needs no download. Two disjoint halves are told
apart by name alone, so that every machine agrees about them whatever its Python version:

- ``heldout``: the modules and packages in `HELD_OUT`, and every fourth documentation topic. No
  checkpoint has been trained on them; evaluation reads them.
- ``train``: every other module. Training and calibration read them.

``test/`` is not part of either half (some distributions leave it out); only the training script reads it.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

Split = Literal["train", "heldout"]

HELD_OUT = frozenset(
    (
        *("argparse", "configparser", "difflib", "fractions", "heapq", "html", "ipaddress"),
        *("json", "logging", "random", "shlex", "statistics", "tarfile", "textwrap"),
    )
)

# Generated tables (character maps, build settings) and packages that not every distribution ships.
_SKIPPED = frozenset(
    ("encodings", "test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages", "__pycache__")
)


def _sources(root: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(root.rglob("*.py"), key=lambda p: p.relative_to(root).as_posix()):
        parts = path.relative_to(root).parts
        if _SKIPPED.intersection(parts) or parts[0].startswith(("_sysconfigdata", "config-")):
            continue
        yield "/".join(parts), path


def _is_held_out(name: str) -> bool:
    return name.split("/")[0].removesuffix(".py") in HELD_OUT


def stdlib_documents(split: Split) -> Iterator[tuple[str, str]]:
    """Yield ``(name, text)`` of one half of the running interpreter's standard library, in a fixed order."""
    for name, path in _sources(Path(sysconfig.get_path("stdlib"))):
        # Debian's sitecustomize.py is a link into /etc, and leads nowhere where that was not copied.
        if _is_held_out(name) == (split == "heldout") and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            if text.strip():
                yield name, text
    try:
        from pydoc_data.topics import topics
    except ImportError:  # a distribution may strip it; the modules alone are enough
        return
    for i, key in enumerate(sorted(topics)):
        if (i % 4 == 3) == (split == "heldout"):
            yield f"topics/{key}", topics[key]
