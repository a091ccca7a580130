"""A checkpoint that was found: where its files are, and what is recorded of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..records.manifest import Contents
from .adapter_folder import AdapterFiles


@dataclass(frozen=True)
class Pulled:
    """Where a checkpoint lies. `name` is for publication: of a local folder it is the last part of the path alone.
    `commit` is the hub's, or ``sha256:...`` over configuration and weights elsewhere.

    `weights` are safetensors, `places` the shard that an index gives each tensor (empty for a single file), by the name
    of a file of `weights`. `tokenizer_folder` may be another than `folder`: a revision without a tokenizer has main's.
    `record` is for the manifest: format, hashes, what was compared. With an adapter, `commit` has that of its files
    behind a plus, and `base` is what it is merged into. Of a mean of revisions the files are the last one's, and
    `averaged` has each with its share of 1; its commit is ``mean:...`` over theirs.
    """

    folder: Path
    name: str
    revision: str
    commit: str
    weights: tuple[Path, ...]
    places: dict[str, str] = field(default_factory=dict, repr=False)
    tokenizer_folder: Path | None = None
    record: Contents = field(default_factory=Contents, repr=False)
    adapter: AdapterFiles | None = None
    base: Pulled | None = field(default=None, repr=False)
    averaged: tuple[tuple[float, Pulled], ...] = field(default=(), repr=False)
