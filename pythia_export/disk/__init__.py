"""Files that are whole or absent: written beside and renamed, locked by one writer, cleaned up after a kill."""

from __future__ import annotations

from .copy import copy_weights
from .lock import held, lock_folder
from .siblings import clean_up, is_alive, is_stale, owner, sibling, siblings
from .sigterm import unwinding_on_sigterm
from .write import DISK_FULL, exchange, explained, fsync, raise_disk_full, write_atomically

__all__ = [
    "DISK_FULL",
    "clean_up",
    "copy_weights",
    "exchange",
    "explained",
    "fsync",
    "held",
    "is_alive",
    "is_stale",
    "lock_folder",
    "owner",
    "raise_disk_full",
    "sibling",
    "siblings",
    "unwinding_on_sigterm",
    "write_atomically",
]
