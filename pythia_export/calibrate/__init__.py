"""Quantisation, one layer at a time."""

from ..records.quantization import Allocation
from .bit_budget import allocate, require_budget
from .journal import Journal, Publication, differences, published, remove_work, require_begun
from .loop import quantize_stream, quantize_together
from .placed import Tensors
from .sensitivity import Sensitivity, measure_sensitivity

__all__ = [
    "Allocation", "Journal", "Publication", "Sensitivity", "Tensors", "allocate", "differences",
    "measure_sensitivity", "published", "quantize_stream", "quantize_together", "remove_work", "require_begun",
    "require_budget",
]  # fmt: skip
