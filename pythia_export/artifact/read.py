"""Reading: the manifest tells the size and the SHA-256 of every other file, so that truncation is found on opening and
a changed byte on `check`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer

from ..errors import IntegrityError, OutputError, PythiaExportError, SourceError
from ..generation import GENERATION, Generation, read_generation
from ..neox import NeoXConfig
from ..recipe import Recipe, parse_recipe
from ..strict_json import read_json
from ..tokenizer import SETTINGS, read_tokenizer
from .disk import explained, fsync, write_atomically
from .manifest import MANIFEST, check_manifest, hash_fault, is_inside, json_bytes, size_fault
from .pending import current, give_names, pending, remove_strays
from .siblings import is_stale, siblings
from .snapshot import is_snapshot

GRAPH = "model.onnx"  # of every layout; what `quantize` writes has none

# What a record of any version has.
_PARTS = {"quantization.json": ("method", "bits_per_weight", "linears", "layers"), "parity.json": ("schema",)}


Fault = Callable[[Path, str, dict[str, Any]], str | None]


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
        artifact = cls(folder, _read_manifest(folder))
        artifact._hold(size_fault)
        with suppress(OSError):  # where nothing can be written, they are read where they are
            give_names(folder, artifact.manifest["files"])
        return artifact

    def check(self) -> None:
        """Re-hash every file that the manifest names. One that was replaced meanwhile is checked as it is then.

        Raises:
            IntegrityError: names every file that is missing, of another size, or whose SHA-256 differs.
        """
        self._hold(hash_fault)

    def _hold(self, fault: Fault) -> None:
        """Raise IntegrityError where a file has a fault, unless another process replaced it while it was read."""
        while faulty := self._faults(fault, self.manifest["files"]):
            now = _read_manifest(self.folder)
            if now == self.manifest and (faulty := self._faults(fault, faulty)):
                raise IntegrityError(
                    f"{self.folder} is not what its {MANIFEST} says:\n  "
                    + "\n  ".join(f"{name}: {problem}" for name, problem in faulty.items()),
                    hint="Copy the artifact again, or export it again.",
                )
            self.manifest = now
            for read_before in ("config", "generation", "recipe", "tokenizer_settings"):
                self.__dict__.pop(read_before, None)

    def _faults(self, fault: Fault, names: Iterable[str]) -> dict[str, str]:
        found = {}
        for name in names:
            try:
                problem = fault(self.folder, name, self.manifest["files"][name])
            except FileNotFoundError:
                problem = "missing"
            if problem is not None:
                found[name] = problem
        return found

    def require_unchanged(self) -> None:
        """After a long part that read its files: that they are still those of the manifest that was opened.

        Raises:
            SourceError: another process replaced the artifact or its reports meanwhile.
        """
        if not self._is_unchanged():
            raise SourceError(f"{self.folder} was replaced while it was read", hint="Start again, with what is there.")

    def _is_unchanged(self) -> bool:
        try:
            return _read_manifest(self.folder) == self.manifest
        except PythiaExportError:
            return False

    @property
    def is_snapshot(self) -> bool:
        """Whether it lies in the hub's cache, where nothing may be written."""
        return is_snapshot(self.folder)

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
        if self.is_snapshot:
            raise OutputError(
                f"{self.folder} lies in the hub's cache, which is not written to",
                hint=f"`cp -rL {self.folder} DIR` makes a copy that is yours.",
            )
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise OutputError(f"{self.folder} cannot be written", hint="Copy the artifact to where it can be.")

    def file(self, name: str) -> Path:
        """Path of one file that the manifest names; IntegrityError when it names no such file."""
        if name not in self.manifest["files"]:
            raise IntegrityError(
                f"{self.folder / MANIFEST} names no {name}; it has {', '.join(self.manifest['files'])}"
            )
        return current(self.folder, name, self.manifest["files"][name]["sha256"])

    def read_json(self, name: str) -> Any:
        """The parsed content of one JSON file of the manifest.

        Raises:
            IntegrityError: it is not JSON, or a record of ours that lacks a part.
        """
        try:
            found = read_json(self.file(name))
        except FileNotFoundError:  # it got its name between our two calls
            found = read_json(self.file(name))
        needed = _PARTS.get(name, ())
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
    def generation(self) -> Generation:
        """When a text ends and how tokens are drawn, by its generation_config.json."""
        raw = self.read_json(GENERATION) if GENERATION in self.manifest["files"] else None
        return read_generation(raw, self.config, self.read_json("config.json"), self.folder)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe it was made from; RecipeError when this version of the schema does not accept it."""
        return parse_recipe(self.manifest["recipe"], f"{self.folder / MANIFEST}: recipe")

    def tokenizer(self) -> Tokenizer:
        """Text to token ids, without truncation and padding; IntegrityError where the file is no tokenizer."""
        return read_tokenizer(self.file("tokenizer.json"))

    def special_token(self, role: str) -> int | None:
        """Return the id of the token that tokenizer_config.json gives a role, such as `eos_token`; None for none."""
        named = self.tokenizer_settings.get(role)
        text = named.get("content") if isinstance(named, dict) else named
        return self.tokenizer().token_to_id(text) if isinstance(text, str) else None

    @cached_property
    def tokenizer_settings(self) -> dict[str, Any]:
        """tokenizer_config.json; empty where there is none."""
        found = self.read_json(SETTINGS) if SETTINGS in self.manifest["files"] else {}
        return found if isinstance(found, dict) else {}

    def replace_files(self, files: Mapping[str, bytes]) -> None:
        """Write or replace files and name them in the manifest. The caller holds the artifact (`held`).

        What was there stays until all that is new is on the disk. Killed at any step, or on a full disk, the artifact
        has the old files or the new ones, all of them, and agrees with its manifest.

        Raises:
            OutputError: the artifact was replaced since it was opened, or cannot be written; nothing has changed.
            ResourceError: the disk is full; nothing has changed.
        """
        for name in files:
            if name == MANIFEST or not is_inside(name):
                raise ValueError(f"{name!r} cannot be a file of an artifact")
        if self.is_snapshot:
            self.require_writable()
        if not self._is_unchanged():
            raise OutputError(
                f"{self.folder} was replaced since it was opened; nothing was written into it",
                hint="Start again, with what is there now.",
            )
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        new = {name: {"sha256": digests[name], "size": len(data)} for name, data in files.items()}
        manifest = self.manifest | {"files": dict(sorted((self.manifest["files"] | new).items()))}
        with explained(self.folder):
            self._tidy()
            try:
                for name, data in files.items():
                    waiting = pending(self.folder, name, digests[name])
                    waiting.parent.mkdir(parents=True, exist_ok=True)
                    waiting.write_bytes(data)
                    fsync(waiting)
                    fsync(waiting.parent)
                write_atomically(self.folder / MANIFEST, json_bytes(manifest))
                self.manifest = manifest
                give_names(self.folder, manifest["files"])
            except BaseException:
                with suppress(OSError, PythiaExportError):
                    self._tidy()
                raise

    def _tidy(self) -> None:
        """Finish or undo what a process began that was killed here."""
        files = _read_manifest(self.folder)["files"]
        give_names(self.folder, files)
        remove_strays(self.folder, files)
        for stale in self.folder.rglob(".*.tmp-*"):
            if is_stale(stale):
                stale.unlink()


def _read_manifest(folder: Path) -> dict[str, Any]:
    """
    Raises:
        SourceError, IntegrityError: as `Artifact.open`.
    """
    if not folder.is_dir():
        found = "is not a directory" if folder.exists() else "no such directory"
        raise SourceError(f"{folder}: {found}; an artifact is a directory with a {MANIFEST}", hint=_aside(folder))
    try:
        manifest: dict[str, Any] = read_json(folder / MANIFEST)
    except FileNotFoundError:
        raise SourceError(
            f"{folder}: no {MANIFEST}, which every artifact has",
            hint="Is this a directory that `pythia-export run` or `export` wrote?",
        ) from None
    check_manifest(manifest, folder / MANIFEST)
    return manifest


def _aside(out: Path) -> str:
    old = next(siblings(out, "old"), None) if out.parent.is_dir() else None
    return f"A run that was interrupted while publishing left the old one in {old}; rename it back." if old else ""
