"""Quantisation, one layer at a time."""

from .allocate import Allocation, allocate
from .journal import Journal
from .loop import quantize_stream
from .sensitivity import Sensitivity, Tensors, measure_sensitivity

__all__ = [
    "Allocation", "Journal", "Sensitivity", "Tensors", "allocate", "measure_sensitivity", "quantize_stream",
]  # fmt: skip
