"""Reading: the manifest tells the size and the SHA-256 of every other file, so that truncation is found on opening and
a changed byte on `check`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer

from ..errors import IntegrityError, OutputError, SourceError
from ..generation import GENERATION, Generation, read_generation
from ..neox import NeoXConfig
from ..recipe import Recipe, parse_recipe
from ..strict_json import read_json
from ..tokenizer import SETTINGS, read_tokenizer
from .disk import explained, write_atomically
from .manifest import MANIFEST, check_manifest, hash_fault, is_inside, json_bytes, size_fault
from .siblings import is_stale, siblings

GRAPH = "model.onnx"  # of every layout; what `quantize` writes has none

# What a record of any version has.
_PARTS = {"quantization.json": ("method", "bits_per_weight", "linears", "layers"), "parity.json": ("schema",)}


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
            manifest = read_json(folder / MANIFEST)
        except FileNotFoundError:
            raise SourceError(
                f"{folder}: no {MANIFEST}, which every artifact has",
                hint="Is this a directory that `pythia-export run` or `export` wrote?",
            ) from None
        check_manifest(manifest, folder / MANIFEST)
        artifact = cls(folder, manifest)
        artifact._hold(size_fault)
        return artifact

    def check(self) -> None:
        """Re-hash every file that the manifest names.

        Raises:
            IntegrityError: names every file that is missing, of another size, or whose SHA-256 differs.
        """
        self._hold(hash_fault)

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
        found, needed = read_json(self.file(name)), _PARTS.get(name, ())
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
        """Write or replace files, each atomically, and the manifest with them.

        The manifest first forgets the files, then they change, then it names them again: killed in between, the
        artifact lacks them but never contradicts its manifest.
        """
        for name in files:
            if name == MANIFEST or not is_inside(name):
                raise ValueError(f"{name!r} cannot be a file of an artifact")
        with explained(self.folder):
            for stale in self.folder.rglob(".*.tmp-*"):
                if is_stale(stale):
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
        write_atomically(self.folder / MANIFEST, json_bytes(manifest))
        self.manifest = manifest


def _aside(out: Path) -> str:
    old = next(siblings(out, "old"), None) if out.parent.is_dir() else None
    return f"A run that was interrupted while publishing left the old one in {old}; rename it back." if old else ""
