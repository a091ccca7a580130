"""Quantisation, one layer at a time."""

from .allocate import Allocation, allocate, require_budget
from .journal import Journal, require_begun
from .loop import Output, quantize_stream, quantize_together
from .sensitivity import Sensitivity, Tensors, measure_sensitivity

__all__ = [
    "Allocation", "Journal", "Output", "Sensitivity", "Tensors", "allocate", "measure_sensitivity", "quantize_stream",
    "quantize_together", "require_begun", "require_budget",
]  # fmt: skip
