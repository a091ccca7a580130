"""What `bench` returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .figures import Figures


@dataclass(frozen=True)
class Text:
    """The text that was scored."""

    source: str
    tokens: int
    windows: int


@dataclass(frozen=True)
class NoText:
    """Why none was."""

    why: str


@dataclass(frozen=True)
class Row:
    """A contestant that was measured: medians, versions of its packages, and every round."""

    name: str
    medians: Figures
    versions: dict[str, str]
    rounds: list[Figures]

    def to_json(self) -> dict[str, Any]:
        rounds = [figures.to_json() for figures in self.rounds]
        return {"name": self.name} | self.medians.to_json() | {"versions": self.versions, "rounds": rounds}


@dataclass(frozen=True)
class Absent:
    """A contestant that was not, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class Result:
    """`contexts` are the tokens that are cached when decoding begins. `speed` is what our own artifact runs at here
    (native, function or stock), `why` the reason."""

    machine: str
    threads: int
    prompt_tokens: int
    new_tokens: int
    contexts: list[int]
    text: Text | NoText
    repeats: int
    speed: str
    why: str
    rows: list[Row]
    absent: list[Absent]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"rows": [row.to_json() for row in self.rows]}
