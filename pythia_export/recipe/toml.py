"""TOML from outside, for recipes and sweeps: bounded, and every fault told as one of the file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ..base.errors import RecipeError
from ..base.strict_json import shown

LARGEST = 1_000_000  # bytes; the longest recipe that is shipped has two thousand


def read_toml(path: Path, hint: str) -> dict[str, Any]:
    """Return the tables of a file; `hint` says what to do where there is none.

    Raises:
        RecipeError: no such file, larger than a million bytes, not TOML, nested without end.
    """
    try:
        if path.is_file() and path.stat().st_size > LARGEST:
            raise RecipeError(f"{path}: {path.stat().st_size:,} bytes; {LARGEST:,} are the most that is read")
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows write a mark
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file", hint=hint) from None
    except (OSError, UnicodeDecodeError) as e:
        raise RecipeError(f"{shown(str(path))}: cannot be read: {getattr(e, 'strerror', None) or e}") from e
    except RecursionError:
        raise RecipeError(f"{path}: not TOML that is read here: nested too deeply") from None
    except ValueError as e:  # TOMLDecodeError is one, as is what Python says of a number of thousands of digits
        raise RecipeError(f"{shown(str(path))}: not TOML: {e}") from e
