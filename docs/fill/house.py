"""The rooms of the package and their floors, from the list that tests/test_house.py enforces."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from .markdown import code, table

ROOT = Path(__file__).parents[2]


def floors() -> str:
    """Return a table of all rooms, the highest floor first, each with the first sentence of its docstring."""
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        from test_house import FLOORS
    finally:
        sys.path.pop(0)
    numbered = list(enumerate(FLOORS))
    rows = [[str(floor), code(room), _says(room)] for floor, rooms in reversed(numbered) for room in rooms]
    return table(["floor", "room", "what is in it"], rows)


def _says(room: str) -> str:
    package = ROOT / "pythia_export" / room
    file = package / "__init__.py" if package.is_dir() else package.with_suffix(".py")
    said = ast.get_docstring(ast.parse(file.read_text())) or ""
    return said.split("\n\n")[0].replace("\n", " ").replace("``", "`")
