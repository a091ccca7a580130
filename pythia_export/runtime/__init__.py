"""Run an artifact: ONNX Runtime, numpy and tokenizers; no torch, no onnx."""

from ..base.machine import peak_memory_bytes
from .cache import Cache
from .generation import Piece, continued, generate, generate_batch, generate_text, generate_texts
from .onnxruntime import require_provider
from .sampling import Sampling
from .scoring import score_rows
from .session import Session, check_graph, check_runnable
from .speculation import Draft, require_same_tokens
from .speed import MODEL, speed_here
from .taps import TapSession
from .text import StreamDecoder, encode_prompt

__all__ = [
    "MODEL",
    "Cache",
    "Draft",
    "Piece",
    "Sampling",
    "Session",
    "StreamDecoder",
    "TapSession",
    "check_graph",
    "check_runnable",
    "continued",
    "encode_prompt",
    "generate",
    "generate_batch",
    "generate_text",
    "generate_texts",
    "peak_memory_bytes",
    "require_provider",
    "require_same_tokens",
    "score_rows",
    "speed_here",
]
