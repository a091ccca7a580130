"""A checkpoint: found, pinned to a commit, held to its configuration, and read one tensor at a time."""

from .open import Checkpoint, open_checkpoint
from .pull import Accept, Pulled, demo_folder, evict, pull, tokenizer_of

__all__ = [
    "Accept", "Checkpoint", "Pulled", "demo_folder", "evict", "open_checkpoint", "pull", "tokenizer_of",
]  # fmt: skip
