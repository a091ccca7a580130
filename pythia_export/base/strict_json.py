"""JSON from outside: read in one place, with bounds, so that what comes back can be computed with and written again.

Python's own reader takes more than JSON is: `NaN`, `Infinity`, 1e999 as an infinity, a key twice, half of a character
(a lone surrogate) that no file and no terminal can hold, nesting down to the end of the stack, numbers of any length.
Everything that this package reads goes through here: manifests, configurations, records, journals, headers.
"""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path
from typing import Any

from .errors import IntegrityError, PythiaExportError

LARGEST = 100_000_000  # bytes, as safetensors allows of a header; the records of a real artifact have a few million
DEEPEST = 64  # levels of arrays and objects; ours have eight
LONGEST_NUMBER = 64  # characters; tokenizers write a length of 31 digits that stands for "no limit"


def read_json(
    path: Path, *, error: type[PythiaExportError] = IntegrityError, hint: str = "", largest: int = LARGEST
) -> Any:
    """Return the parsed content of one file.

    Raises:
        FileNotFoundError: there is none; what that means is for the caller to say.
        PythiaExportError: `error`: it is no plain file, larger than `largest`, or not JSON as this module takes it.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise error(f"{path}: a plain file was expected", hint=hint)
        if found.st_size > largest:
            raise error(f"{path}: {found.st_size:,} bytes of JSON; {largest:,} are the most that is read", hint=hint)
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as e:  # ValueError: a name that no file system has
        raise error(f"{path}: cannot be read: {getattr(e, 'strerror', None) or e}", hint=hint) from e
    return parse_json(data, str(path), error=error, hint=hint)


def read_object(
    path: Path, *, error: type[PythiaExportError] = IntegrityError, hint: str = "", largest: int = LARGEST
) -> dict[str, Any]:
    """Return the object that a file holds; raises as `read_json`, and where it holds anything else."""
    found = read_json(path, error=error, hint=hint, largest=largest)
    if not isinstance(found, dict):
        raise error(f"{path}: {shown(found)}; an object was expected", hint=hint)
    return found


def parse_json(
    data: bytes | str, where: str, *, error: type[PythiaExportError] = IntegrityError, hint: str = ""
) -> Any:
    """Return the value that `data` spells; a byte order mark before it is skipped. `where` is for the message.

    Raises:
        PythiaExportError: `error`: not UTF-8, not JSON, a key twice in one object, a number that is not finite or has
            more than 64 characters, half of a character, more than 64 levels of nesting.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data.removeprefix("\ufeff")
        found = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int
        )
        # Bytes were decoded: only an escape can spell half of a character.
        _require_sound(found, strings="\\ud" in text or "\\uD" in text or isinstance(data, str))
    except RecursionError:
        raise error(f"{where}: not JSON that is read here: nested deeper than {DEEPEST} levels", hint=hint) from None
    except ValueError as e:  # of json, of the decoder, and those below
        raise error(f"{where}: not JSON: {e}", hint=hint) from e
    return found


def shown(value: object) -> str:
    """Return a value as a message quotes it: short, on one line, as JSON spells it."""
    if isinstance(value, dict):
        return f"an object of {len(value)} keys"
    if isinstance(value, list | tuple):
        return f"an array of {len(value)}"
    if isinstance(value, str):
        return repr(value) if len(value) <= 80 else f"{value[:60]!r}... ({len(value):,} characters)"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    try:
        text = str(value)
    except ValueError:  # an integer past Python's own limit of digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"it names {shown(twice)} twice in one object")
    return found


def _constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _float(text: str) -> float:
    found = float(text)
    if not math.isfinite(found):
        raise ValueError(f"{shown(text)} is beyond what a float holds")
    return found


def _int(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def _require_sound(value: Any, strings: bool) -> None:
    """Nesting, and, where the text has escapes of them, halves of characters."""
    level, depth = [value], 0
    while level:
        below: list[Any] = []
        deeper = False
        for item in level:
            if isinstance(item, dict):
                deeper = True
                if strings:
                    for name in item:
                        _require_whole(name)
                below += item.values()
            elif isinstance(item, list):
                deeper = True
                below += item
            elif strings and isinstance(item, str):
                _require_whole(item)
        level, depth = below, depth + deeper
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST} levels")


def _require_whole(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise ValueError(f"{shown(text)} holds half of a character at {e.start}") from None
