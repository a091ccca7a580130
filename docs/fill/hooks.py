"""The places inside the model, from the table that the package has of them."""

from __future__ import annotations

from pythia_export.model.hooks import GROUPS, SHAPES, TAPS

from .markdown import code, table


def taps() -> str:
    """Return a table of all kinds of places: our name, TransformerLens's two, shape and meaning."""
    rows = [
        [
            code(tap.name), code(tap.hook.format("i")), code(tap.older.format("i")),
            code(SHAPES[tap.shape]), tap.meaning,
        ]
        for tap in TAPS
    ]  # fmt: skip
    rows += [[code(name), "", "", "", said] for name, said in GROUPS.items()]
    return table(["tap", "TransformerLens 4", "HookedTransformer", "shape in a batch", "what it is"], rows)
