"""Whether two revisions hold the same tensors though their files differ: in another order, shards or form.

A file's hash says nothing of that, and the hub tells no other. The fingerprint of what was pulled is kept beside the
hub's cache, so of the revisions that this machine has pulled, each is compared with all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from .. import hub
from ..base.errors import IntegrityError
from ..base.strict_json import read_object
from ..hub import Listing
from .header import read_header
from .names import by_table_name

SAMPLE = 4096  # bytes of each tensor, of its start: training changes all of them


def fingerprint(weights: tuple[Path, ...], where: str) -> str:
    """A hash over names, types, shapes and the first bytes of all tensors, wherever they lie in which file.

    Raises:
        IntegrityError: a malformed file.
        SourceError: names of several models.
    """
    found = {name: (path, entry) for path in weights for name, entry in read_header(path).items()}
    digest = hashlib.sha256()
    for table, name in sorted(by_table_name(found, where).items()):
        path, entry = found[name]
        with path.open("rb") as f:
            f.seek(entry.offset)
            start = f.read(min(entry.nbytes, SAMPLE))
        digest.update(f"{table} {entry.dtype} {entry.shape} ".encode() + start)
    return digest.hexdigest()


def same_tensors(listing: Listing, others: Mapping[str, str], own: str) -> list[str]:
    """The names among `others`, revision -> commit, whose tensors were seen to be those of `own`, which is kept."""
    path = hub.kept("fingerprints") / f"{listing.repo.replace('/', '--')}.json"
    known: dict[str, object] = {}
    with suppress(OSError, IntegrityError):
        known = read_object(path)
    if known.get(listing.commit) != own:
        with suppress(OSError):  # a cache that can only be read
            hub.write_kept(path, json.dumps({**known, listing.commit: own}).encode())
    return sorted(name for name, commit in others.items() if known.get(commit) == own)
