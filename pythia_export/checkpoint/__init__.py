"""A checkpoint: found, pinned to a commit, checked against its configuration, and read one tensor at a time."""

from .mean import commit_of_mean
from .open import Checkpoint, Opened, dtype_of, held, open_checkpoint, settle_tied_head, stored_tensors
from .pull import Accept, demo_folder, evict, pull, tokenizer_of, with_hashes
from .pulled import Pulled
from .same import moved, require_recorded

__all__ = [
    "Accept", "Checkpoint", "Opened", "Pulled", "commit_of_mean", "demo_folder", "dtype_of", "evict", "held", "moved",
    "open_checkpoint", "pull", "require_recorded", "settle_tied_head", "stored_tensors",
    "tokenizer_of", "with_hashes",
]  # fmt: skip
