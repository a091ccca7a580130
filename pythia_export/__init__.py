"""Pythia checkpoints in, proved ONNX artifacts out. Importing the package costs nothing; its modules do the work."""

from .kernels import kernels_path

__all__ = ["kernels_path"]
__version__ = "0.1.0"
