"""Values from inside the model for many texts: read in batches, given text by text. No torch."""

from .store import Dtype, Traces, write_traces
from .texts import TextTrace, require_fit, trace_texts

__all__ = ["Dtype", "TextTrace", "Traces", "require_fit", "trace_texts", "write_traces"]
