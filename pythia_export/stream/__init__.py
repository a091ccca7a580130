"""Quantisation, one layer at a time."""

from .journal import Journal
from .loop import Tensors, quantize_stream

__all__ = ["Journal", "Tensors", "quantize_stream"]
