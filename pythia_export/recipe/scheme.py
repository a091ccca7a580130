"""How the weights of one linear are stored: one value, from the recipe to the bytes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .section import Section

Bits = Literal[2, 3, 4, 8]
GroupSize = Literal[16, 32, 64, 128, 256, -1]


class Scheme(Section):
    """How one linear is rounded."""

    bits: Bits = 4
    group_size: GroupSize = Field(128, description="inputs of a row that share a scale; -1 is the whole row")
    symmetric: bool = True

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @property
    def middle(self) -> int:
        """The zero point of a symmetric grid, which is not stored."""
        return 1 << (self.bits - 1)

    def columns(self, fan_in: int) -> int:
        """Return how many columns of a row of `fan_in` share a scale; the last group may be shorter."""
        return self.group_size if self.group_size > 0 else fan_in
