"""What was learnt of a repository's commits, which never change: hashes of files, in a file of HF_HOME."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

from .. import hub
from ..base.errors import IntegrityError
from ..base.strict_json import read_object


class Ledger:
    """commit -> file -> hash of one repository; None for a file that the commit lacks. Losing it costs the requests
    again."""

    def __init__(self, repo: str) -> None:
        self._path = hub.kept("hashes") / f"{repo.replace('/', '--')}.json"
        self._hashes: dict[str, dict[str, str | None]] = {}
        with suppress(OSError, IntegrityError, ValueError, TypeError):
            self._hashes = {c: dict(files) for c, files in read_object(self._path).items()}

    def has(self, commit: str, names: tuple[str, ...]) -> bool:
        return set(names) <= set(self._hashes.get(commit, {}))

    def digest(self, commit: str, name: str) -> str | None:
        return self._hashes.get(commit, {}).get(name)

    def add(self, commit: str, digests: Mapping[str, str | None]) -> None:
        self._hashes.setdefault(commit, {}).update(digests)

    def save(self) -> None:
        try:
            hub.write_kept(self._path, json.dumps(self._hashes).encode())
        except OSError:  # a cache that can only be read
            return
