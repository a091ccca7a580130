"""What is to be settled of a layer, in order.

Whoever takes a step answers by leaving in the layer's weights what the artifact will compute with: the block reads them
from there, so that later steps are about what was really stored.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..model.block import Block
from .observe import Observed
from .parallel import in_parallel
from .problem import Step
from .sequential import in_sequence


def steps(observed: Observed, block: Block) -> Iterator[Step]:
    """Yield each LayerNorm, and each linear with its problem, of a layer whose weights are still the original ones.

    `Observed.propagate` then takes the text past the layer.

    Raises:
        NumericsError: activations hold a NaN or an infinity, or no damping makes the Hessian of 4h_to_h positive
            definite; names the layer.
    """
    return in_parallel(observed, block) if block.config.parallel_residual else in_sequence(observed, block)
