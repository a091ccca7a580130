"""Values from inside the model for many texts: read in batches, given text by text. No torch."""

from .texts import TextTrace, trace_texts

__all__ = ["TextTrace", "trace_texts"]
