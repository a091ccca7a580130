"""A page on this machine that runs artifacts in the browser itself, and looks inside them.

A small server on 127.0.0.1 hands out the page, ONNX Runtime Web, and for each artifact a graph and its weights. The
page writes text by itself, and its policy lets it ask no other address. What happens inside (inside.py) our own runtime
computes here, when the page asks.
"""

from .modules import fetch_modules
from .prepare import Ready, ready, require_comparable
from .server import Server, routes

__all__ = ["Ready", "Server", "fetch_modules", "ready", "require_comparable", "routes"]
