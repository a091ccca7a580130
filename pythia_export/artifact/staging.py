"""A directory in the making, beside its final name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from ..disk.lock import lock_folder
from ..disk.siblings import sibling
from ..disk.write import explained
from ..records.manifest import FileEntry
from ..records.record import Record
from .publish import ARTIFACT, Kind, Publisher


class Staging:
    """Write an artifact (or another `kind` of directory) beside its final name, then give it the name in one rename.

        with Staging(out, overwrite=False) as staging:
            ...                                  # write into staging.folder
            staging.publish(Origin(versions=..., source=..., recipe=..., layout=...))

    Leaving the context without `publish` removes the directory, on SIGTERM too. Raises as `Publisher` does.
    """

    folder: Path

    def __init__(self, out: Path, overwrite: bool = False, kind: Kind = ARTIFACT) -> None:
        self._publisher = Publisher(out, overwrite, kind)
        self.out = self._publisher.out

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.push(self._publisher.__enter__().__exit__)
            with explained(self.out):
                self.folder = sibling(self.out, "tmp")
                self.folder.mkdir()
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)  # a leftover is removed by the next run
            lock = lock_folder(self.folder)
            if lock is not None:
                stack.callback(os.close, lock)
            self._stack = stack.pop_all()
        return self

    def publish(self, origin: Record, hashed: Mapping[str, FileEntry] = MappingProxyType({})) -> None:
        """As `Publisher.publish`."""
        self._publisher.publish(self.folder, origin, hashed=hashed)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)
