"""Pythia checkpoints in, proved ONNX artifacts out. Importing the package costs nothing; its modules do the work."""

__version__ = "0.1.0"
