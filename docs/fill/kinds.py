"""The type of a field, in words that need no Python."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from .markdown import code

WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "null"}


def words(annotation: Any) -> str:
    """Return `number or null`, `list of text`, a value list of a Literal, a link to the heading of a record."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(words(part) for part in inside))
    if origin is Annotated:
        return words(inside[0])
    if origin is Literal:
        return ", ".join(code(toml(value)) for value in inside)
    if origin in (list, tuple):
        return f"list of {words(inside[0])}"
    if origin is dict:
        return "object"
    if hasattr(annotation, "model_fields"):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return WORDS.get(annotation) or {"Path": "path"}.get(annotation.__name__, annotation.__name__)


def toml(value: Any) -> str:
    """Return a value as TOML and JSON write it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
