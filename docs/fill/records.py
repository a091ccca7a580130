"""The types of pythia_export/records: their fields, kinds, and the sentence under each in the source."""

from __future__ import annotations

import ast
import inspect
from functools import cache
from types import ModuleType

from . import markdown
from .kinds import words
from .markdown import code


def table(name: str, *options: str) -> str:
    """Return the fields of one type. With `own`, those alone that its base lacks."""
    kind = next(found for module in _modules() if (found := getattr(module, name, None)))
    inherited = set(kind.__base__.model_fields) if "own" in options else set()
    rows = [
        [code(field.alias or key), words(field.annotation), _sentence(kind, key)]
        for key, field in kind.model_fields.items()
        if key not in inherited
    ]
    return markdown.table(["field", "value", "what it says"], rows)


def _sentence(kind: type, key: str) -> str:
    return next((said for c in kind.__mro__ if (said := _sentences().get((c.__name__, key)))), "")


def _modules() -> tuple[ModuleType, ...]:
    from pythia_export.records import manifest, parity, quantization

    return manifest, quantization, parity


@cache
def _sentences() -> dict[tuple[str, str], str]:
    """Return what stands under the fields in the source, as a docstring would: pydantic need not read it at import."""
    found = {}
    for kind in (kind for module in _modules() for kind in ast.parse(inspect.getsource(module)).body):
        body = kind.body if isinstance(kind, ast.ClassDef) else []
        for field, below in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                found[kind.name, field.target.id] = str(ast.literal_eval(below.value))
    return found
