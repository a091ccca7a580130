"""What is measured of one contestant. Nothing but the standard library: see `process`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Figures:
    """Figures of one round, or medians of several. Speed of decoding is by the tokens that are cached when it begins;
    perplexity is None where no text was scored."""

    import_seconds: float
    load_seconds: float
    first_token_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: dict[str, float]
    peak_memory_bytes: int
    size_bytes: int
    perplexity: float | None = None

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        return found if self.perplexity is not None else {k: x for k, x in found.items() if k != "perplexity"}


@dataclass(frozen=True)
class Measured:
    """One round of a contestant, and the versions of its packages."""

    figures: Figures
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return {"figures": self.figures.to_json(), "versions": self.versions}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Measured:
        return cls(Figures(**raw["figures"]), raw["versions"])


def medians(rounds: Sequence[Figures]) -> Figures:
    """Return the median of each figure; of what not every round has, of the rounds that do."""
    return Figures(**_medians([figures.to_json() for figures in rounds]))


def _medians(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for measured in rounds for key in measured):
        values = [measured[key] for measured in rounds if key in measured]
        found[key] = _medians(values) if isinstance(values[0], Mapping) else _median(values)
    return found


def _median(values: list[float]) -> float:
    """Bytes stay whole numbers."""
    median = statistics.median(values)
    return round(median) if all(isinstance(value, int) for value in values) else median
