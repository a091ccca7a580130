"""A checkpoint: found, pinned to a commit, checked against its configuration, and read one tensor at a time."""

from .open import Checkpoint, Opened, open_checkpoint, stored_tensors
from .pull import Accept, Pulled, demo_folder, evict, pull, tokenizer_of
from .same import moved, require_recorded

__all__ = [
    "Accept", "Checkpoint", "Opened", "Pulled", "demo_folder", "evict", "moved", "open_checkpoint", "pull",
    "require_recorded", "stored_tensors", "tokenizer_of",
]  # fmt: skip
