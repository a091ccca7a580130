"""Publishing: a finished directory gets its name in one rename. Only a directory of the same kind is ever replaced."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from ..base.errors import OutputError, PythiaExportError
from ..base.machine import now
from ..base.strict_json import read_json
from ..disk.lock import held
from ..disk.siblings import clean_up, owner, sibling
from ..disk.sigterm import unwinding_on_sigterm
from ..disk.write import DISK_FULL, exchange, explained, fsync, raise_disk_full
from ..records.manifest import MANIFEST, MANIFEST_SCHEMA, FileEntry
from ..records.record import Record
from .manifest import check_shape, describe, json_bytes
from .pending import is_pending


@dataclass(frozen=True)
class Kind:
    """What a directory of ours is called, the file that describes it, and what it may hold that is not described.

    Only a directory of the same kind is ever replaced.
    """

    noun: str
    manifest: str
    undescribed: frozenset[str] = frozenset()


# An older version's `verify` that was killed left these without the manifest naming them.
ARTIFACT = Kind("artifact", MANIFEST, frozenset({"parity.json", "report.html", "README.md"}))

Sealed = Callable[[Mapping[str, FileEntry], str], None]  # the described files, and the SHA-256 of the manifest


class Publisher:
    """The right to publish under the name `out`. One process has it at a time, from entering the context to its end.

        with Publisher(out, overwrite=True) as publisher:
            ...                                  # write a folder on the same file system
            publisher.publish(folder, Origin(versions=..., source=..., recipe=..., layout=...))

    Killed at any step, the name carries what it carried before, or what was to be published, whole.

    Raises:
        OutputError: `out` exists (and `overwrite` is not set, or it is not ours and of this kind), is a link or a file,
            its parent cannot be written, or another process writes there.
        ResourceError: the disk is full, here or in the body of the `with`.
    """

    def __init__(self, out: Path, overwrite: bool = False, kind: Kind = ARTIFACT) -> None:
        self.out = Path(os.path.abspath(out))  # not resolved: a link must be seen as one
        self.overwrite = overwrite
        self.kind = kind
        check_output(self.out, overwrite, kind)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            with explained(self.out):
                self.out.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(held(self.out))
                clean_up(self.out)
                # Again: another process may have published meanwhile, or the clean-up put an old artifact back.
                check_output(self.out, self.overwrite, self.kind)
            stack.enter_context(unwinding_on_sigterm())
            self._stack = stack.pop_all()
        return self

    def publish(
        self,
        folder: Path,
        origin: Record,
        sealed: Sealed | None = None,
        hashed: Mapping[str, FileEntry] = MappingProxyType({}),
    ) -> None:
        """Complete `origin` to a manifest (schema, created, size and SHA-256 of every file), write it, and give
        `folder` the name.

        `sealed` is called when all of `folder` is on the disk and the rename is next. What was replaced is removed.
        Files in `hashed` are not hashed again: whoever wrote them did.

        Raises:
            OutputError: `out` appeared meanwhile, or is no longer ours to replace; or a file is a link, or has a
                second name by which its bytes could be changed.
        """
        with explained(self.out):
            files = _synced(folder, _walk(folder, self.kind), hashed)
            described = {"files": {name: entry.to_json() for name, entry in files.items()}}
            written = json_bytes({"schema": MANIFEST_SCHEMA, "created": now(), **origin.to_json(), **described})
            (folder / self.kind.manifest).write_bytes(written)
            fsync(folder / self.kind.manifest)
            for directory, _, _ in os.walk(folder):
                fsync(Path(directory))
            if sealed is not None:
                sealed(files, hashlib.sha256(written).hexdigest())
            check_output(self.out, self.overwrite, self.kind)
            old = self._swap(folder)
            fsync(self.out.parent)
        if old is not None:
            try:
                shutil.rmtree(old)
            except OSError as e:
                raise OutputError(
                    f"{self.out} is published, but what it replaces could not be removed: {old}: {e.strerror}",
                    hint="Remove that directory by hand.",
                ) from e

    def _swap(self, folder: Path) -> Path | None:
        """Rename `folder` to `out`; return where the old artifact now lies."""
        if not self.out.exists():
            os.rename(folder, self.out)
            return None
        if exchange(folder, self.out):
            return folder
        # Without an atomic exchange the name is empty for a moment. Killed there, the next run puts the old one back.
        aside = sibling(self.out, "old")
        try:
            os.rename(self.out, aside)
            os.rename(folder, self.out)
        except BaseException:
            if aside.exists() and not self.out.exists():
                os.rename(aside, self.out)
            raise
        return aside

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise_disk_full(self.out, error)


# What may be replaced


def check_output(out: Path, overwrite: bool, kind: Kind) -> None:
    if not out.name:
        raise OutputError(f"{out} cannot be an output directory")
    if out.is_symlink():
        raise OutputError(
            f"{out} is a symbolic link to {os.readlink(out)}; the rename would replace the link and not its target",
            hint="Give the target itself, or remove the link.",
        )
    if out.exists():
        if not out.is_dir():
            raise OutputError(f"{out} exists and is a file; a directory is to be written", hint="Choose another name.")
        if not overwrite:
            raise OutputError(f"{out} exists", hint=f"--overwrite replaces it once the new {kind.noun} is whole.")
        _check_ours(out, kind)
    above = next(p for p in out.parents if os.path.lexists(p))
    if not above.is_dir():
        raise OutputError(f"{above} is not a directory, so {out} cannot be made", hint="Choose another place.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(f"{above} cannot be written, so {out} cannot be made", hint="Choose another place.")


def _check_ours(out: Path, kind: Kind) -> None:
    """Replacing removes, so only a directory of the same kind, or an empty one, may be replaced."""
    top = sorted(p.name for p in out.iterdir())
    if not top:
        return
    try:
        manifest = read_json(out / kind.manifest)
        check_shape(manifest, out / kind.manifest)
    except (OSError, PythiaExportError) as e:
        raise OutputError(
            f"{out} exists and is no {kind.noun} (no readable {kind.manifest} of ours); it holds {_some(top)}",
            hint=f"--overwrite replaces {kind.noun}s only. Remove the directory yourself, or choose another name.",
        ) from e
    known = {*manifest["files"], kind.manifest, *kind.undescribed}
    found = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_symlink() or not p.is_dir())
    foreign = [n for n in found if n not in known and owner(Path(n)) is None and not is_pending(Path(n))]
    if foreign:
        raise OutputError(
            f"{out} also holds files which its {kind.manifest} does not name: {_some(foreign)}",
            hint="--overwrite would remove them. Move them elsewhere first.",
        )


def _synced(folder: Path, names: list[str], hashed: Mapping[str, FileEntry]) -> dict[str, FileEntry]:
    """Have files on the disk; return the size and SHA-256 of each. While this waits for the disk, a thread hashes."""
    beside = ThreadPoolExecutor(1)
    try:
        described = {name: beside.submit(describe, folder / name) for name in names if name not in hashed}
        for name in names:
            fsync(folder / name)
        return {name: described[name].result() if name in described else hashed[name] for name in names}
    finally:
        beside.shutdown(wait=False, cancel_futures=True)  # whoever ends the process does not wait for a hash


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _walk(folder: Path, kind: Kind) -> list[str]:
    names = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise OutputError(f"{path} is a symbolic link to {os.readlink(path)}; an artifact holds its own files")
        if path.is_file() and path != folder / kind.manifest:
            if path.stat().st_nlink > 1:  # whoever writes through the other name would change what is published
                raise OutputError(f"{path} has a second name (a hard link); an artifact holds its own files")
            names.append(path.relative_to(folder).as_posix())
    return names
