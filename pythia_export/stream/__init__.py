"""Quantisation, one layer at a time."""

from .loop import Tensors, quantize_stream

__all__ = ["Tensors", "quantize_stream"]
