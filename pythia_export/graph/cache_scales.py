"""The fixed scales of an int8 cache, as GroupQueryAttention reads them: one for each channel of each head.

They are the graph's own constants and no part of the weights: which scales a cache needs is measured on the finished
graph, and another graph over the same weights may have none.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from ..base.errors import IntegrityError
from ..model.neox import NeoXConfig

PARTS = ("key", "value")
CacheScales = dict[str, np.ndarray]  # by `name_of`: [heads, head_dim] float32


def name_of(layer: int, part: str) -> str:
    """Return the name of a constant of the graph; `part` is key or value."""
    return f"cache.{layer}.{part}_scale"


def unit_scales(config: NeoXConfig) -> CacheScales:
    """Return scales of 1, for a graph whose size is all that is asked."""
    ones = np.ones((config.num_heads, config.head_dim), np.float32)
    return {name_of(layer, part): ones for layer in range(config.num_layers) for part in PARTS}


def scales_of(model: onnx.ModelProto, config: NeoXConfig) -> CacheScales:
    """Return the scales that a graph holds.

    Raises:
        IntegrityError: it lacks some, or they are not [1, heads, 1, head_dim] float32.
    """
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    found: CacheScales = {}
    for name, like in unit_scales(config).items():
        array = numpy_helper.to_array(held[name]) if name in held else None
        if array is None or array.dtype != like.dtype or array.shape != like[None, :, None, :].shape:
            raise IntegrityError(
                f"the graph's {name}: float32 [1, {', 1, '.join(map(str, like.shape))}] was expected",
                hint="`pythia-export export` builds the graph anew over the same weights.",
            )
        found[name] = array[0, :, 0, :]
    return found


def read_scales(path: Path, config: NeoXConfig) -> CacheScales:
    """Return the scales that a graph's file holds; raises as `scales_of`."""
    return scales_of(onnx.load(path, load_external_data=False), config)
