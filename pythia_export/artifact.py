"""The artifact directory: whole, or absent.

`Staging` writes it: into a hidden sibling, then one rename. Whatever ends the process in between (an exception,
Ctrl-C, SIGTERM, kill -9, a power cut) leaves the name with the old artifact or with the new one. What a killed process
left behind is found by the next `Staging` of the same name.

`Artifact` reads it: the manifest tells the size and the SHA-256 of every other file, so that truncation is found on
opening and a changed byte on `check`.

No torch, no onnx: consumers of an artifact import this module.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from tokenizers import Tokenizer

from .errors import IntegrityError, OutputError, PythiaExportError, ResourceError, SourceError
from .neox import NeoXConfig
from .recipe import Recipe, parse_recipe

try:
    import fcntl
except ImportError:  # Windows can read artifacts; it is not a place to write them
    fcntl = None  # type: ignore[assignment]

SCHEMA = 1
MANIFEST = "manifest.json"
GRAPH = "model.onnx"  # of every layout; what `quantize` writes has none


@dataclass(frozen=True)
class Kind:
    """What a directory of ours is called, the file that describes it, and what it may hold that is not described.

    Only a directory of the same kind is ever replaced.
    """

    noun: str
    manifest: str
    undescribed: frozenset[str] = frozenset()


# A `replace_files` that was killed leaves these without the manifest naming them.
ARTIFACT = Kind("artifact", MANIFEST, frozenset({"parity.json", "report.html", "README.md"}))

_SECTIONS = {"source": dict, "recipe": dict, "layout": dict, "files": dict}
# What a record of any version has.
_PARTS = {"quantization.json": ("method", "bits_per_weight", "linears", "layers"), "parity.json": ("schema",)}
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Staging:
    """Write an artifact (or another `kind` of directory) beside its final name, then give it the name in one rename.

        with Staging(out, overwrite=False) as staging:
            ...                                  # write into staging.folder
            staging.publish({"versions": ..., "source": ..., "recipe": ..., "layout": ...})

    Leaving the context without `publish` removes the directory, on SIGTERM too.

    Raises:
        OutputError: `out` exists (and `overwrite` is not set, or it is not ours and of this kind), is a link or a file,
            or its parent cannot be written.
        ResourceError: the disk is full, here or in the body of the `with`.
    """

    folder: Path

    def __init__(self, out: Path, overwrite: bool = False, kind: Kind = ARTIFACT) -> None:
        self.out = Path(os.path.abspath(out))  # not resolved: a link must be seen as one
        self.overwrite = overwrite
        self.kind = kind
        self._lock: int | None = None
        self._sigterm = unwinding_on_sigterm()
        _check_output(self.out, overwrite, kind)

    def __enter__(self) -> Self:
        with explained(self.out):
            self.out.parent.mkdir(parents=True, exist_ok=True)
            _clean_up(self.out)
            _check_output(self.out, self.overwrite, self.kind)  # again: the clean-up may have put an old artifact back
            self.folder = _sibling(self.out, "tmp")
            self.folder.mkdir()
        self._lock = lock_folder(self.folder)
        self._sigterm.__enter__()
        return self

    def publish(self, manifest: Mapping[str, Any]) -> None:
        """Complete `manifest` (schema, created, size and SHA-256 of every file), write it, and rename.

        Raises:
            OutputError: `out` appeared meanwhile, or is no longer ours to replace; or a staged file is a link.
        """
        with explained(self.out):
            found = _walk(self.folder, self.kind)
            files = {name: _describe(self.folder / name) for name in found}
            whole = {"schema": SCHEMA, "created": _now(), **manifest, "files": files}
            (self.folder / self.kind.manifest).write_bytes(_json_bytes(whole))
            for name in (*files, self.kind.manifest):
                _fsync(self.folder / name)
            for directory, _, _ in os.walk(self.folder):
                _fsync(Path(directory))
            _check_output(self.out, self.overwrite, self.kind)
            old = self._swap()
            _fsync(self.out.parent)
        if old is not None:
            try:
                shutil.rmtree(old)
            except OSError as e:
                raise OutputError(
                    f"{self.out} is published, but what it replaces could not be removed: {old}: {e.strerror}",
                    hint="Remove that directory by hand.",
                ) from e

    def _swap(self) -> Path | None:
        """Rename the staging directory to `out`; return where the old artifact now lies."""
        if not self.out.exists():
            os.rename(self.folder, self.out)
            return None
        if _exchange(self.folder, self.out):
            return self.folder
        # Without an atomic exchange the name is empty for a moment. Killed there, the next run puts the old one back.
        aside = _sibling(self.out, "old")
        try:
            os.rename(self.out, aside)
            os.rename(self.folder, self.out)
        except BaseException:
            if aside.exists() and not self.out.exists():
                os.rename(aside, self.out)
            raise
        return aside

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)  # a leftover is removed by the next run
        if self._lock is not None:
            os.close(self._lock)
        self._sigterm.__exit__(None, None, None)
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            _raise_disk_full(self.out, error)


class Artifact:
    """A published artifact, opened for reading. `manifest` is the whole of manifest.json."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Read the manifest and hold the directory to it by name and size; `check` also re-hashes.

        Raises:
            SourceError: no such directory, no manifest, or a schema that this version does not know.
            IntegrityError: a manifest that is malformed or names a path outside the directory; a file that is
                missing, is a link, or has another size. All of them are named.
        """
        folder = Path(os.path.abspath(path))
        if not folder.is_dir():
            found = "is not a directory" if folder.exists() else "no such directory"
            raise SourceError(f"{folder}: {found}; an artifact is a directory with a {MANIFEST}", hint=_aside(folder))
        try:
            manifest = _parse_json(folder / MANIFEST)
        except FileNotFoundError:
            raise SourceError(
                f"{folder}: no {MANIFEST}, which every artifact has",
                hint="Is this a directory that `pythia-export run` or `export` wrote?",
            ) from None
        _check_manifest(manifest, folder / MANIFEST)
        artifact = cls(folder, manifest)
        artifact._hold(_size_fault)
        return artifact

    def check(self) -> None:
        """Re-hash every file that the manifest names.

        Raises:
            IntegrityError: names every file that is missing, of another size, or whose SHA-256 differs.
        """
        self._hold(_hash_fault)

    def _hold(self, fault: Callable[[Path, str, dict[str, Any]], str | None]) -> None:
        files = self.manifest["files"].items()
        faults = [f"{name}: {problem}" for name, entry in files if (problem := fault(self.folder, name, entry))]
        if faults:
            raise IntegrityError(
                f"{self.folder} is not what its {MANIFEST} says:\n  " + "\n  ".join(faults),
                hint="Copy the artifact again, or export it again.",
            )

    @property
    def has_graph(self) -> bool:
        return GRAPH in self.manifest["files"]

    def require_graph(self) -> None:
        """SourceError where there are weights alone."""
        if not self.has_graph:
            raise SourceError(
                f"{self.folder} has no graph: `quantize` made it",
                hint=f"`pythia-export export {self.folder} --out DIR` builds one.",
            )

    def require_writable(self) -> None:
        """Before a long part whose result goes into the artifact; OutputError where that cannot be written."""
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise OutputError(f"{self.folder} cannot be written", hint="Copy the artifact to where it can be.")

    def file(self, name: str) -> Path:
        """Path of one file that the manifest names; IntegrityError when it names no such file."""
        if name not in self.manifest["files"]:
            raise IntegrityError(
                f"{self.folder / MANIFEST} names no {name}; it has {', '.join(self.manifest['files'])}"
            )
        return self.folder / name

    def read_json(self, name: str) -> Any:
        """The parsed content of one JSON file of the manifest.

        Raises:
            IntegrityError: it is not JSON, or a record of ours that lacks a part.
        """
        found, needed = _parse_json(self.file(name)), _PARTS.get(name, ())
        missing = [part for part in needed if not isinstance(found, dict) or part not in found]
        if missing:
            raise IntegrityError(
                f"{self.folder / name} has no `{missing[0]}`; {', '.join(needed)} were expected",
                hint="Copy the artifact again, or export it again.",
            )
        return found

    @cached_property
    def config(self) -> NeoXConfig:
        return NeoXConfig.from_dict(self.read_json("config.json"), str(self.folder / "config.json"))

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe it was made from; RecipeError when this version of the schema does not accept it."""
        return parse_recipe(self.manifest["recipe"], f"{self.folder / MANIFEST}: recipe")

    def tokenizer(self) -> Tokenizer:
        path = self.file("tokenizer.json")
        try:
            return Tokenizer.from_file(str(path))
        except Exception as e:  # the binding raises bare Exception
            raise IntegrityError(f"{path}: not a tokenizer: {e}") from e

    def replace_files(self, files: Mapping[str, bytes]) -> None:
        """Write or replace files, each atomically, and the manifest with them.

        The manifest first forgets the files, then they change, then it names them again: killed in between, the
        artifact lacks them but never contradicts its manifest.
        """
        for name in files:
            if name == MANIFEST or not _is_inside(name):
                raise ValueError(f"{name!r} cannot be a file of an artifact")
        with explained(self.folder):
            for stale in self.folder.rglob(".*.tmp-*"):
                if _is_stale(stale):
                    stale.unlink()
            kept = {name: entry for name, entry in self.manifest["files"].items() if name not in files}
            if len(kept) < len(self.manifest["files"]):
                self._write_manifest(kept)
            for name, data in files.items():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self.folder / name, data)
            new = {name: {"sha256": hashlib.sha256(d).hexdigest(), "size": len(d)} for name, d in files.items()}
            self._write_manifest(dict(sorted((kept | new).items())))

    def _write_manifest(self, files: dict[str, Any]) -> None:
        manifest = self.manifest | {"files": files}
        write_atomically(self.folder / MANIFEST, _json_bytes(manifest))
        self.manifest = manifest


# What may be replaced


def _check_output(out: Path, overwrite: bool, kind: Kind) -> None:
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
        manifest = _parse_json(out / kind.manifest)
        _check_shape(manifest, out / kind.manifest)
    except (OSError, PythiaExportError) as e:
        raise OutputError(
            f"{out} exists and is no {kind.noun} (no readable {kind.manifest} of ours); it holds {_some(top)}",
            hint=f"--overwrite replaces {kind.noun}s only. Remove the directory yourself, or choose another name.",
        ) from e
    known = {*manifest["files"], kind.manifest, *kind.undescribed}
    found = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_symlink() or not p.is_dir())
    foreign = [n for n in found if n not in known and _owner(Path(n)) is None]
    if foreign:
        raise OutputError(
            f"{out} also holds files which its {kind.manifest} does not name: {_some(foreign)}",
            hint="--overwrite would remove them. Move them elsewhere first.",
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# Hidden siblings: .<name>.tmp-<pid>-<random> is being written, .<name>.old-<pid>-<random> was just replaced


def _sibling(path: Path, kind: str) -> Path:
    return path.parent / f".{path.name}.{kind}-{os.getpid()}-{secrets.token_hex(4)}"


def _siblings(path: Path, kind: str) -> Iterator[Path]:
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{kind}-\d+-[0-9a-f]{{8}}")
    return (p for p in sorted(path.parent.iterdir()) if pattern.fullmatch(p.name))


def _owner(path: Path) -> int | None:
    """Process id in the name of a hidden sibling."""
    match = re.fullmatch(r"\..+\.(?:tmp|old)-(\d+)-[0-9a-f]{8}", path.name)
    return int(match[1]) if match else None


def _clean_up(out: Path) -> None:
    """Undo what processes that were killed left beside `out`."""
    for aside in _siblings(out, "old"):
        if _is_stale(aside):
            if os.path.lexists(out):
                shutil.rmtree(aside)
            else:
                os.rename(aside, out)
    for staging in _siblings(out, "tmp"):
        if _is_stale(staging):
            shutil.rmtree(staging)


def _is_stale(path: Path) -> bool:
    """Whether the process that made it is gone.

    Containers give every run the same few process ids and hide each other's; the lock tells in both cases. A file
    system without locks leaves the process id alone to tell.
    """
    pid = _owner(path)
    if pid is None or (pid != os.getpid() and _is_alive(pid)):
        return False
    if not path.is_dir():
        return pid != os.getpid()
    try:
        lock = lock_folder(path)
    except BlockingIOError:
        return False
    if lock is None:
        return pid != os.getpid()
    os.close(lock)
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it exists and is another user's
        return True
    return True


def lock_folder(folder: Path) -> int | None:
    """Hold `folder` until the descriptor is closed or the process ends; None where locks are not to be had.

    Raises:
        BlockingIOError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _aside(out: Path) -> str:
    old = next(_siblings(out, "old"), None) if out.parent.is_dir() else None
    return f"A run that was interrupted while publishing left the old one in {old}; rename it back." if old else ""


def _exchange(a: Path, b: Path) -> bool:
    """Swap two directories in one step where the system can (Linux: renameat2 with RENAME_EXCHANGE)."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    at_fdcwd, rename_exchange = -100, 2
    return renameat2 is not None and renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0


@contextmanager
def unwinding_on_sigterm() -> Iterator[None]:
    """SIGTERM leaves the body as an exception does. Its default action ends the process without unwinding, and so
    without anything that a `with` or a `finally` would clean up."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, _exit_on_sigterm)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit_on_sigterm(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


# The manifest


def _check_shape(manifest: Any, where: Path) -> None:
    """That this is a manifest of ours, of whatever schema."""
    if not (isinstance(manifest, dict) and isinstance(manifest.get("schema"), int)):
        raise IntegrityError(f"{where}: an object with a number `schema` was expected")
    if not isinstance(manifest.get("files"), dict):
        raise IntegrityError(f"{where}: no object `files`")


def _check_manifest(manifest: Any, where: Path) -> None:
    _check_shape(manifest, where)
    if manifest["schema"] != SCHEMA:
        raise SourceError(
            f"{where}: schema {manifest['schema']}; this version of pythia-export reads schema {SCHEMA}",
            hint="A newer pythia-export may read it.",
        )
    for section, kind in _SECTIONS.items():
        if not isinstance(manifest.get(section), kind):
            raise IntegrityError(f"{where}: no object `{section}`")
    for part in ("name", "commit"):
        if not isinstance(manifest["source"].get(part), str):
            raise IntegrityError(f"{where}: no string `source.{part}`")
    for name, entry in manifest["files"].items():
        if not _is_inside(name):
            raise IntegrityError(f"{where}: names {name!r}, which lies outside the artifact")
        good = isinstance(entry, dict) and isinstance(entry.get("size"), int) and isinstance(entry.get("sha256"), str)
        if not good:
            raise IntegrityError(f"{where}: files.{name} must have a number `size` and a string `sha256`")


def _is_inside(name: str) -> bool:
    """Whether a name of the manifest is a plain relative path, on any system."""
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and path.as_posix() == name
        and not any(c in name for c in "\\:\0")
    )


def _size_fault(folder: Path, name: str, entry: dict[str, Any]) -> str | None:
    path = folder / name
    if any(p.is_symlink() for p in (path, *path.parents) if folder in p.parents):
        return "a symbolic link; an artifact holds its own files"
    if not path.is_file():
        return "missing"
    size = path.stat().st_size
    return None if size == entry["size"] else f"{size:,} bytes; the manifest says {entry['size']:,}"


def _hash_fault(folder: Path, name: str, entry: dict[str, Any]) -> str | None:
    if problem := _size_fault(folder, name, entry):
        return problem
    found = _describe(folder / name)["sha256"]
    return None if found == entry["sha256"] else f"sha256 {found}; the manifest says {entry['sha256']}"


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as f:
        return {"sha256": hashlib.file_digest(f, "sha256").hexdigest(), "size": path.stat().st_size}


def _walk(folder: Path, kind: Kind) -> list[str]:
    names = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise OutputError(f"{path} is a symbolic link to {os.readlink(path)}; an artifact holds its own files")
        if path.is_file() and path != folder / kind.manifest:
            names.append(path.relative_to(folder).as_posix())
    return names


def _parse_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError as e:
        raise IntegrityError(f"{path}: not JSON: {e}") from e


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# The disk


def write_atomically(path: Path, data: bytes) -> None:
    temporary = _sibling(path, "tmp")
    try:
        temporary.write_bytes(data)
        _fsync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explained(out: Path) -> Iterator[None]:
    """Name the place in what the operating system says about it."""
    try:
        yield
    except OSError as e:
        if e.errno in _DISK_FULL:
            _raise_disk_full(out, e)
        raise OutputError(f"{out} cannot be written: {e}", hint="Choose another place.") from e


def _raise_disk_full(out: Path, error: OSError) -> NoReturn:
    free = shutil.disk_usage(next(p for p in out.parents if p.is_dir())).free
    raise ResourceError(
        f"no space left while writing {out} ({free:,} bytes are free there now): {error}",
        hint="Free some space, or choose another place; `pythia-export plan` tells the size in advance.",
    ) from error
