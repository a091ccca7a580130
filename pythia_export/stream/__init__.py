"""Quantisation, one layer at a time."""

from .allocate import Allocation, allocate
from .journal import Journal
from .loop import Output, quantize_stream, quantize_together
from .sensitivity import Sensitivity, Tensors, measure_sensitivity

__all__ = [
    "Allocation", "Journal", "Output", "Sensitivity", "Tensors", "allocate", "measure_sensitivity", "quantize_stream",
    "quantize_together",
]  # fmt: skip
