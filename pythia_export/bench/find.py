"""Which modules an interpreter lacks: PYTHON find.py NAME ... prints them as JSON.

Run by its path and with nothing of ours around it: the interpreter may be another's, and older. Its own folder is taken
off the path, where the current one is not.
"""

import sys

del sys.path[: not getattr(sys.flags, "safe_path", False)]

import importlib.util  # noqa: E402
import json  # noqa: E402


def missing(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is None
    except ModuleNotFoundError:
        return True


if __name__ == "__main__":
    print(json.dumps([name for name in sys.argv[1:] if missing(name)]))
