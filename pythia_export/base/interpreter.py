"""Interpreters import from where packages are installed, and never from the folder that somebody happens to stand in.

`python -m`, `python -c` and `python -` look there first: with a `torch.py` or a `json.py` in it, that file would be
executed. So what we start gets an environment that forbids it (PYTHONSAFEPATH, https://docs.python.org/3/using/cmdline.html)
to it and to all that it starts in turn, submitit's controllers among them; and scripts of ours are named by their path.
"""

from __future__ import annotations

import os
import sys


def isolated_environment() -> dict[str, str]:
    """The environment for an interpreter that we start. An empty part of PYTHONPATH, which a `:` too many leaves, would
    be the current folder too; what else that variable names is the user's own word and stays."""
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    if named := _named(environment.get("PYTHONPATH", "")):
        environment["PYTHONPATH"] = os.pathsep.join(named)
    else:
        environment.pop("PYTHONPATH", None)
    return environment


def leave_current_folder() -> None:
    """Do the same for this process, from now on, and for all that it starts: the command's first act.

    `python -m pythia_export` has put the current folder in front before a line of ours runs, and may have imported a
    module or two from there; the `pythia-export` command does not.
    """
    here, named = os.getcwd(), os.environ.get("PYTHONPATH", "")
    times = (not getattr(sys.flags, "safe_path", False)) and sys.path[:1] in ([here], [""])
    for _ in range(times + (named.split(os.pathsep).count("") if named else 0)):
        found = next((i for i, entry in enumerate(sys.path) if entry in ("", here)), None)
        if found is not None:
            del sys.path[found]
    os.environ.update(environment := isolated_environment())
    if "PYTHONPATH" not in environment:
        os.environ.pop("PYTHONPATH", None)


def fill_standard_streams() -> None:
    """Put /dev/null where stdin, stdout or stderr was closed by whoever started the command. The next file to be opened
    would take the number, and what a library prints would be written into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _named(pythonpath: str) -> list[str]:
    return [entry for entry in pythonpath.split(os.pathsep) if entry]
