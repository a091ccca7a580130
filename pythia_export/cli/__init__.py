"""The command line: each command parses, calls one function and prints what it returned.

torch, transformers and ONNX Runtime are imported inside the commands that need them, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
import traceback

from . import make, compare, use, generate, serve, sweep, lists  # isort: skip  # noqa: F401 (they register their commands, in this order)
from ..base.errors import PythiaExportError
from .shared import app, say, say_error

__all__ = ["app", "main"]


def main() -> None:
    """Entry point. What no class of errors foresaw is our fault: say so, without a page of traceback."""
    try:
        app()
    except PythiaExportError as e:  # of --version, which ends before there is a command
        say_error(e)
        sys.exit(e.exit_code)
    except Exception as e:
        if "--debug" in sys.argv:
            traceback.print_exc()
        lines = str(e).strip().splitlines() or [""]
        say(f"Unexpected {type(e).__name__}: {lines[0]}\n  The same command with --debug shows where.")
        sys.exit(1)
