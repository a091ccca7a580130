"""Changes to a recipe, as `--set SECTION.KEY=VALUE` makes them: read, and merged into the tables of a file."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..base.errors import RecipeError
from ..base.strict_json import shown

Raw = dict[str, Any]  # the tables of a recipe, not yet checked
Changes = Mapping[str, Any]  # by dotted keys: {"quantize.beam": 1}; None takes a key out

PATHS = ("model.path", "model.adapter", "calibration.path", "verify.path")
_WHERE_FROM = ("dataset", "file", "path", "batches", "subsets", "eos")  # of a text: they belong to its source


def changes_called(given: Iterable[str], keys: Iterable[str]) -> dict[str, Any]:
    """Return the changes that `SECTION.KEY=VALUE` say; `keys` are all there are, for guesses.

    A value is TOML. A bare word is text too, and nothing at all takes the key out.

    Raises:
        RecipeError: not of this form, or a value that is no TOML.
    """
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or "." not in key or not all(key.split(".")):
            near = [k for k in keys if k.rpartition(".")[2] == key.rpartition(".")[2]]
            near = near or difflib.get_close_matches(key, list(keys), n=2)
            hint = " or ".join(f"{k}={value or '...'}" for k in near[:3])
            raise RecipeError(
                f"--set {shown(text)}: SECTION.KEY=VALUE was expected",
                hint=f"Did you mean {hint}?" if hint else "For example: --set verify.seed=1",
            )
        found[key] = _value(key, value)
    return found


def _value(key: str, text: str) -> Any:
    if not text:
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as e:
        if text[0] in "[{\"'" or "\n" in text:
            raise RecipeError(f"--set {key}: {shown(text)} is not TOML: {e}") from None
        return text  # quotes are the shell's


def nested(changes: Changes) -> Raw:
    """Return the changes as tables; relative paths begin at the current folder, not at the recipe's.

    Raises:
        RecipeError: one key is a value and a table.
    """
    tables: Raw = {}
    for dotted, value in changes.items():
        *sections, key = dotted.split(".")
        inner = tables
        for name in sections:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise RecipeError(f"`{dotted}` and `{'.'.join(sections)}` are both given")
        if dotted in PATHS and isinstance(value, str | Path):
            value = str(Path(value).absolute()) if not str(value).startswith("~") else str(value)
        inner[key] = value
    return tables


def merged(raw: Raw, changes: Raw) -> Raw:
    """Return `raw` with what `changes` say in its place, table by table; a None takes a key out.

    Another source of text, and another checkpoint, leave behind what belonged to the one before.
    """
    found = dict(raw)
    for name, change in changes.items():
        before = found.get(name)
        if isinstance(change, dict):
            before = dict(before) if isinstance(before, dict) else {}
            for key in _left_behind(name, change):
                before.pop(key, None)
            found[name] = merged(before, change)
        elif change is None:
            found.pop(name, None)
        else:
            found[name] = change
    return found


def _left_behind(section: str, change: Raw) -> tuple[str, ...]:
    if section in ("calibration", "verify") and change.get("source") is not None:
        return _WHERE_FROM
    if section == "model" and {"id", "path"} & change.keys():
        return ("id", "path", "revision", "adapter")
    return ()
