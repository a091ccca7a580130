"""TOML: read for recipes and sweeps, bounded, every fault reported as one of the file; and a recipe written as one."""

from __future__ import annotations

import json
import os
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..base.errors import RecipeError
from ..base.strict_json import shown
from .schema import Recipe

LARGEST = 1_000_000  # bytes; the longest recipe that is shipped has two thousand


def read_toml(path: Path, hint: str) -> dict[str, Any]:
    """Return the tables of a file; `hint` says what to do where there is none.

    Raises:
        RecipeError: no such file, larger than a million bytes, not TOML, nested without end.
    """
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or _is_pipe_of_a_shell(path, mode)):
            raise RecipeError(f"{path}: a plain file was expected")  # a named pipe is waited for, a device has no end
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise RecipeError(f"{path}: more than {LARGEST:,} bytes, which are the most that is read")
        return tomllib.loads(data.decode("utf-8-sig"))  # editors on Windows write a mark
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file", hint=hint) from None
    except (OSError, UnicodeDecodeError) as e:
        raise RecipeError(f"{shown(str(path))}: cannot be read: {getattr(e, 'strerror', None) or e}") from e
    except RecursionError:
        raise RecipeError(f"{path}: not TOML that is read here: nested too deeply") from None
    except ValueError as e:  # TOMLDecodeError is one, as is what Python says of a number of thousands of digits
        raise RecipeError(f"{shown(str(path))}: not TOML: {e}") from e


def as_toml(recipe: Recipe) -> str:
    """Return a recipe as a file: what differs from the defaults of its keys, and what says at a glance what it is."""
    said = recipe.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    for name, keys in _AT_A_GLANCE.items():
        section = getattr(recipe, name)
        if section is not None:
            shown_too = {key: value for key in keys if (value := getattr(section, key)) is not None}
            found = said.get(name, {}) | shown_too
            said[name] = {key: found[key] for key in type(section).model_fields if key in found}
    ordered = {name: said[name] for name in Recipe.model_fields if name in said}
    return "\n".join(_tables(ordered, ())).lstrip("\n") + "\n"


# Written though they are the defaults: those may change, and a reader looks for them.
_AT_A_GLANCE = {
    "calibration": ("eos", "sequence_length", "samples"),
    "quantize": ("method", "bits", "group_size"),
    "export": ("target", "accuracy_level"),
    "verify": ("eos", "sequence_length", "tokens"),
}


def _tables(table: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Yield the lines of a table: its values, then its tables, each under a heading of its own."""
    inner = {key: value for key, value in table.items() if isinstance(value, dict)}
    values = {key: value for key, value in table.items() if key not in inner}
    if path and (values or not inner):
        yield f"\n[{'.'.join(path)}]"
    yield from (f"{key} = {_value(value)}" for key, value in values.items())
    for key, value in inner.items():
        yield from _tables(value, (*path, key))


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):  # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def _is_pipe_of_a_shell(path: Path, mode: int) -> bool:
    """Whether it is `<(...)` or /dev/stdin of a pipe: one whose writer is there, and that has no name on a disk."""
    return stat.S_ISFIFO(mode) and not os.path.exists(os.path.realpath(path))
