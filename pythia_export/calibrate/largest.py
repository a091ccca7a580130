"""Whose fault an overflow is: the tensor with the largest values shows it, the product that overflowed need not.

A huge weight of 4h_to_h makes the error of dense overflow, which counts on it, or the next layer's LayerNorm.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from ..base.errors import NumericsError
from ..model.neox import NeoXConfig
from .placed import Tensors

UNUSUAL = 65504.0  # float16's largest: what checkpoints of this family are published in


class Largest:
    """The tensors of `source`, and which of those read so far holds the largest value."""

    def __init__(self, source: Tensors) -> None:
        self.config: NeoXConfig = source.config
        self._source = source
        self._name, self._value = "", 0.0

    def tensor(self, name: str) -> Tensor:
        found = self._source.tensor(name)
        low, high = found.aminmax()
        value = max(-float(low), float(high))
        if value > self._value:  # a NaN is told where it is computed with
            self._name, self._value = name, value
        return found

    @contextmanager
    def named(self) -> Iterator[None]:
        """Name the tensor in an error of numbers that its values explain.

        Raises:
            NumericsError: in place of one that names another tensor, or none.
        """
        try:
            yield
        except NumericsError as e:
            name = self._name.removesuffix(".weight")
            if self._value <= UNUSUAL or (name in str(e) and f"{self._value:.3g}" in str(e)):
                raise
            found = str(e).removeprefix(f"{name}: ")
            raise NumericsError(
                f"{name}: values as large as {self._value:.3g} overflow what is computed with them: {found}",
                hint="Most often this is what training leaves behind when it diverges: look at the checkpoint.",
            ) from e
