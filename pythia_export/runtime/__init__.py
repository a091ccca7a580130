"""Run an artifact: ONNX Runtime, numpy and tokenizers; no torch, no onnx."""

from ..machine import peak_memory_bytes
from .generate import StreamDecoder, encode_prompt, generate, generate_batch, generate_text
from .sampling import Sampling
from .session import MODEL, Cache, Session, require_provider, speed_here

__all__ = [
    "MODEL",
    "Cache",
    "Sampling",
    "Session",
    "StreamDecoder",
    "encode_prompt",
    "generate",
    "generate_batch",
    "generate_text",
    "peak_memory_bytes",
    "require_provider",
    "speed_here",
]
