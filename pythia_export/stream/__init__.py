"""Quantisation, one layer at a time."""

from .allocate import Allocation, allocate
from .journal import Journal
from .loop import quantize_stream
from .sensitivity import Tensors

__all__ = ["Allocation", "Journal", "Tensors", "allocate", "quantize_stream"]
