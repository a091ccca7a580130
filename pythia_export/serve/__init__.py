"""A page on this machine that runs artifacts in the browser itself, by WebAssembly.

There is no inference here: a small server on 127.0.0.1 hands out the page, ONNX Runtime Web, and for each artifact a
graph and its weights. The page does the rest, and its policy lets it ask no other address.
"""

from .modules import fetch_modules
from .prepare import Ready, ready, require_comparable
from .server import Server, routes

__all__ = ["Ready", "Server", "fetch_modules", "ready", "require_comparable", "routes"]
