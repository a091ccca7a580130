"""Which extra of this package brings a module that is missing."""

from __future__ import annotations

import re
from importlib import metadata

_PACKAGE = "pythia-export"
_EXTRA = re.compile(r"""extra\s*==\s*['"]([\w-]+)['"]""")


def install_command(module: str, wanted: str = "") -> str:
    """Return the pip command that brings `module`, by the package's own metadata.

    Where several extras bring it, that called `wanted` is named if it is one of them. A module of none belongs to the
    package itself, whose installation is not whole then.
    """
    of = extras_with(module)
    if not of:
        return f"pip install {_PACKAGE}, in a virtual environment of its own."
    return f"pip install '{_PACKAGE}[{wanted if wanted in of else of[0]}]'"


def install(extra: str) -> str:
    """Return the hint for an extra that a command needs, whether the package came from a wheel or is a checkout."""
    return f"pip install '{_PACKAGE}[{extra}]', or in a checkout pip install -e '.[{extra}]'"


def extras_with(module: str) -> list[str]:
    """Return the extras whose own requirements have the distribution that is called like the module, `dev` last."""
    name = _normal(module.partition(".")[0])
    try:
        lines = metadata.requires(_PACKAGE) or []
    except metadata.PackageNotFoundError:  # run from its sources, without an installation
        return []
    found = []
    for line in lines:
        required, _, marker = line.partition(";")
        extra = _EXTRA.search(marker)
        if extra and _normal(re.split(r"[^\w.-]", required.strip(), maxsplit=1)[0]) == name:
            found.append(extra[1])
    return sorted(dict.fromkeys(found), key=lambda extra: extra == "dev")


def _normal(name: str) -> str:
    """PEP 503's form of a name."""
    return re.sub(r"[-_.]+", "-", name).lower()
