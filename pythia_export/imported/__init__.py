"""Checkpoints that another quantiser made: what each format stores, in one form for all of them.

A format is a module: the configuration that a tool wrote in, and for each linear codes, scales and zero points out.
`open_imported` recognises the format and checks every tensor against it; `write_imported` puts the codes, in the order
of the columns, where ONNX Runtime's MatMulNBits reads them. Nothing is rounded that fits.
"""

from .open import Imported, open_imported
from .write import write_imported

__all__ = ["Imported", "open_imported", "write_imported"]
