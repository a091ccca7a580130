"""The hub, through its own client: what a revision holds, files fetched into the shared cache and checked, ranges read.

HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they mean everywhere. One listing tells commit, sizes and
hashes of all files; each fetched file is checked against its hash before anybody reads it. Transient errors (a cut
connection, 429, 500) are retried, and each wait is reported.
"""

from .faults import again, told
from .fetch import evict, fetch, in_cache
from .kept import kept, write_kept
from .listing import HubFile, Kind, Listing, branches, digest_of, list_revision, not_cached, offline
from .ranges import RemoteFile, read_part, read_range

__all__ = [
    "again", "HubFile", "Kind", "Listing", "RemoteFile", "branches", "digest_of", "evict", "fetch", "in_cache", "kept",
    "list_revision", "not_cached", "offline", "read_part", "read_range", "told", "write_kept",
]  # fmt: skip
