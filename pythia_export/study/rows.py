"""The table of results as arrays, and what the report calls a line, a setting and a checkpoint.

line        runs that are one curve: `160m`, `160m deduped`, `160m seeds` (several runs, one a seed)
setting     a quantisation without its bits, `group 128` or `row rtn`: what is comparable across bits
checkpoint  a run at one revision: its quantisations share its noise
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """columns: of one length; numbers as float64 with NaN for null, words as objects with None for null."""

    columns: dict[str, Array]

    @classmethod
    def of(cls, table: pa.Table) -> Rows:
        columns = {name: _array(table[name]) for name in table.column_names}
        if {"name", "quantization", "revision"} <= columns.keys():
            columns["line"] = _mapped(columns["name"], line)
            columns["setting"] = _mapped(columns["quantization"], setting)
            columns["checkpoint"] = columns["name"] + "@" + columns["revision"]
        return cls(columns)

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def where(self, mask: Array) -> Rows:
        """Rows that a mask keeps, or by their positions in that order."""
        return Rows({name: values[mask] for name, values in self.columns.items()})

    def known(self, *names: str) -> Rows:
        """Rows in which these numbers are known."""
        return self.where(np.logical_and.reduce([np.isfinite(self[name]) for name in names]))

    def each(self, name: str) -> Iterator[tuple[Any, Rows]]:
        """Rows by the values of a column, in the order of their first row."""
        for value in dict.fromkeys(self[name].tolist()):
            yield value, self.where(self[name] == value)

    def distinct(self, name: str) -> int:
        """How many values a column has, unknown ones aside."""
        values = self[name]
        return len({v for v in values.tolist() if v is not None and v == v})


def line(name: str) -> str:
    """``pythia-160m-seed3`` is one of the runs of ``160m seeds``."""
    return re.sub(r"seed[-_]?\d+$", "seeds", name.removeprefix("pythia-")).replace("-", " ")


def setting(quantization: str) -> str:
    return re.sub(r"^int\d+ ", "", quantization)


def lines(rows: Rows) -> list[str]:
    """By size, then by name."""
    sizes: dict[str, float] = {}
    for name, size in zip(rows["line"].tolist(), rows["non_embedding_parameters"].tolist(), strict=True):
        sizes[name] = max(sizes.get(name, 0.0), size if size == size else 0.0)
    return sorted(sizes, key=lambda name: (sizes[name], name))


def quantizations(rows: Rows) -> list[str]:
    """By setting, in the order of the rows, then by bits."""
    settings = list(dict.fromkeys(rows["setting"].tolist()))
    bits = dict(zip(rows["quantization"].tolist(), rows["bits"].tolist(), strict=True))
    return sorted(bits, key=lambda q: (settings.index(setting(q)), bits[q] if bits[q] == bits[q] else 0.0))


def quoted(name: str) -> str:
    """Return a name of a model, a setting or a quantisation as a sentence quotes it."""
    return f"“{name}”"


def amount(x: float) -> str:
    """``2.1 M``, ``300 B``: tokens or parameters."""
    if x <= 0:
        return "0"
    for unit, word in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " K")):
        if x >= 0.9995 * unit:
            return f"{x / unit:.3g}{word}"
    return f"{x:.3g}"


def joined(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _mapped(values: Array, word: Any) -> Array:
    meaning = {value: word(value) for value in dict.fromkeys(values.tolist())}
    return np.array([meaning[value] for value in values.tolist()], dtype=object)


def _array(column: pa.ChunkedArray) -> Array:
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
    return np.array(column.to_pylist(), dtype=object)
