"""Classes and functions of the package, from their signatures and docstrings."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from typing import Any


def described(name: str, *members: str) -> str:
    """Return one object by its dotted name; of a class the named members, and its public ones where none is named."""
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(module), attribute)
    parts = [f"## {attribute}", *_signed(found, attribute)]
    if inspect.isclass(found):
        for member in members or [m for m in vars(found) if not m.startswith("_")]:
            raw = inspect.getattr_static(found, member)
            value = getattr(found, member)
            if isinstance(raw, classmethod | staticmethod) or inspect.isfunction(raw):
                parts += [f"### {attribute}.{member}", *_signed(value, f"{attribute}.{member}")]
            elif _doc(raw):
                parts += [f"### {attribute}.{member}", _doc(raw)]
    return "\n\n".join(parts)


def _signed(found: Any, name: str) -> list[str]:
    signature = [] if inspect.isclass(found) else [f"```python\n{name}{_signature(found)}\n```"]
    return [*signature, _doc(found)]


def _signature(found: Any) -> str:
    """Return the parameters, one a line where they are many; `self` is left out."""
    signature = inspect.signature(found)
    parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    shown = re.sub(r"(: |-> )(['\"])(.*?)\2", r"\1\3", str(signature.replace(parameters=parameters)))
    if len(shown) < 80:
        return shown
    inside, _, returned = shown.rpartition(" -> ")
    lines, depth, last = [], 0, 1
    for i, letter in enumerate(inside):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or i == len(inside) - 1:
            lines.append(f"    {inside[last:i].strip()},")
            last = i + 1
    return "(\n" + "\n".join(lines) + f"\n) -> {returned}"


def _doc(found: Any) -> str:
    """Return a docstring as Markdown: its errors as a list."""
    text = inspect.getdoc(found) or ""
    before, raises, errors = text.partition("Raises:\n")
    said = before.strip().replace("``", "`")
    if not raises:
        return said
    lines = re.sub(r"\n +", " ", textwrap.dedent(errors)).strip().splitlines()
    listed = [re.sub(r"^([\w, ]+): ", lambda m: f"{_names(m[1])}: ", line) for line in lines]
    return said + "\n\nRaises:\n\n" + "\n".join(f"- {line}" for line in listed if line)


def _names(listed: str) -> str:
    return ", ".join(f"`{name.strip()}`" for name in listed.split(","))
