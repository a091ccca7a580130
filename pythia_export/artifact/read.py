"""Reading: the manifest tells the size and the SHA-256 of every other file, so that truncation is found on opening and
a changed byte on `check`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tokenizers import Tokenizer

from ..base.errors import IntegrityError, OutputError, PythiaExportError, RecipeError, SourceError
from ..base.strict_json import read_json, shown
from ..disk.siblings import is_stale, siblings
from ..disk.write import explained, fsync, write_atomically
from ..model.generation import GENERATION, Generation, read_generation
from ..model.neox import NeoXConfig
from ..recipe import Recipe, parse_recipe
from ..records.manifest import MANIFEST, FileEntry, Manifest
from ..records.parity import PARITY, PARITY_SCHEMA, Parity
from ..records.quantization import QUANTIZATION, QUANTIZATION_SCHEMA, Quantization
from ..records.record import Json, checked
from ..tokenizer import SETTINGS, read_tokenizer, render_chat
from ..weights.layout import Layout, layout_of
from ..weights.names import data_name
from .manifest import checked_manifest, hash_fault, is_inside, json_bytes, size_fault
from .pending import current, give_names, pending, remove_strays
from .snapshot import is_snapshot

if TYPE_CHECKING:
    from ..weights.reader import WeightsReader

GRAPH = "model.onnx"  # of every layout; what `quantize` writes has none

FEWEST_BITS = 2  # of any weight that is stored


Fault = Callable[[Path, str, FileEntry], str | None]


class Artifact:
    """A published artifact, opened for reading. `manifest` is manifest.json."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
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
            give_names(folder, artifact.manifest.files)
        return artifact

    def check(self) -> None:
        """Re-hash every file that the manifest names. One that was replaced meanwhile is checked as it is then.

        Raises:
            IntegrityError: names every file that is missing, of another size, or whose SHA-256 differs.
        """
        self._hold(hash_fault)

    def _hold(self, fault: Fault) -> None:
        """Raise IntegrityError where a file has a fault, unless another process replaced it while it was read."""
        while faulty := self._faults(fault, self.manifest.files):
            now = _read_manifest(self.folder)
            if now == self.manifest and (faulty := self._faults(fault, faulty)):
                raise IntegrityError(
                    f"{self.folder} is not what its {MANIFEST} says:\n  "
                    + "\n  ".join(f"{name}: {problem}" for name, problem in faulty.items()),
                    hint="Copy the artifact again, or export it again.",
                )
            self.manifest = now
            for read_before in ("config", "quantization", "generation", "recipe", "layout", "tokenizer_settings"):
                self.__dict__.pop(read_before, None)

    def _faults(self, fault: Fault, names: Iterable[str]) -> dict[str, str]:
        found = {}
        for name in names:
            try:
                problem = fault(self.folder, name, self.manifest.files[name])
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
        return GRAPH in self.manifest.files

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
        if name not in self.manifest.files:
            raise IntegrityError(f"{self.folder / MANIFEST} names no {name}; it has {', '.join(self.manifest.files)}")
        return current(self.folder, name, self.manifest.files[name].sha256)

    @cached_property
    def layout(self) -> Layout:
        """Where each of its weights is stored.

        Raises:
            IntegrityError: its weights file is too small for what recipe and config.json lay out.
        """
        found, name = layout_of(self.recipe, self.config), data_name(self.recipe)
        entry = self.manifest.files.get(name)
        if entry is None or entry.size < found.nbytes:
            size = shown(None if entry is None else entry.size)
            raise IntegrityError(
                f"{self.folder / name}: {size} bytes; its recipe and config.json lay out {found.nbytes:,}",
                hint="Copy the artifact again, or export it again.",
            )
        return found

    @property
    def weights_file(self) -> Path:
        """Path of the file with its weights."""
        return self.file(data_name(self.recipe))

    def weights(self) -> WeightsReader:
        """Return its stored weights, readable one by one as float32 tensors; raises as `layout`."""
        from ..weights.reader import WeightsReader  # with torch, which nothing else here needs

        return WeightsReader(self.weights_file, self.layout)

    def read_json(self, name: str) -> Any:
        """The parsed content of one JSON file of the manifest.

        Raises:
            IntegrityError: it is not JSON as `strict_json` takes it.
        """
        try:
            return read_json(self.file(name), hint="Copy the artifact again, or export it again.")
        except FileNotFoundError:  # it got its name between our two calls
            return read_json(self.file(name), hint="Copy the artifact again, or export it again.")

    @cached_property
    def config(self) -> NeoXConfig:
        """The model's configuration.

        Raises:
            IntegrityError: it is none, or describes more weights than the artifact's files can hold.
        """
        where = self.folder / "config.json"
        try:
            config = NeoXConfig.from_dict(self.read_json("config.json"), str(where))
        except SourceError as e:  # of a checkpoint; here it is the artifact that is damaged
            raise IntegrityError(str(e), hint=e.hint) from e
        least, held = config.parameters * FEWEST_BITS // 8, sum(e.size for e in self.manifest.files.values())
        if least > held:
            raise IntegrityError(
                f"{where}: {config.num_layers:,} layers of these sizes have {config.parameters:,} parameters, "
                f"which take {least:,} bytes or more; the artifact's files have {held:,}",
                hint="Copy the artifact again, or export it again.",
            )
        return config

    @cached_property
    def quantization(self) -> Quantization:
        """How the weights were rounded, by quantization.json.

        Raises:
            IntegrityError: it is not there, lacks a field, or is of another number of layers than config.json.
            SourceError: it is of a newer schema.
        """
        where, raw = self.folder / QUANTIZATION, self.read_json(QUANTIZATION)
        schema = _schema(raw, where)
        if schema > QUANTIZATION_SCHEMA:
            raise SourceError(
                f"{where}: schema {shown(schema)}; this version of pythia-export reads schema {QUANTIZATION_SCHEMA}",
                hint="A newer pythia-export may read it.",
            )
        found = checked(Quantization, raw, where)
        told, there = sorted(x.layer for x in found.layers), self.config.num_layers
        beyond = [x.name for x in found.linears if x.layer is not None and x.layer >= there]
        if told != list(range(there)) or beyond:
            what = f"names {beyond[0]}" if beyond else f"tells of {len(told):,} layers"
            raise IntegrityError(
                f"{where}: {what}; config.json has {there:,} layers",
                hint="Copy the artifact again, or export it again.",
            )
        return found

    @property
    def parity_schema(self) -> int | None:
        """The schema of what was proved; None where nothing was.

        Raises:
            IntegrityError: parity.json has none.
        """
        if PARITY not in self.manifest.files:
            return None
        return _schema(self.read_json(PARITY), self.folder / PARITY)

    @property
    def parity(self) -> Parity | None:
        """What was proved; None where nothing was, or by a version of another `parity_schema`.

        Raises:
            IntegrityError: parity.json lacks a field, or holds something else in one.
        """
        if PARITY not in self.manifest.files:
            return None
        where, raw = self.folder / PARITY, self.read_json(PARITY)
        return checked(Parity, raw, where) if _schema(raw, where) == PARITY_SCHEMA else None

    @cached_property
    def generation(self) -> Generation:
        """When a text ends and how tokens are drawn, by its generation_config.json.

        Raises:
            IntegrityError: an end token that the model does not have, or a setting of another type.
        """
        raw = self.read_json(GENERATION) if GENERATION in self.manifest.files else None
        try:
            return read_generation(raw, self.config, self.read_json("config.json"), self.folder)
        except SourceError as e:  # of a checkpoint; here it is the artifact that is damaged
            raise IntegrityError(str(e), hint=e.hint) from e

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe it was made from; RecipeError when this version of the schema does not accept it.

        Artifacts whose recipe does not say `balance` are older than it: their weights have the checkpoint's own units.
        """
        raw, quantize = self.manifest.recipe, self.manifest.recipe.get("quantize")
        if isinstance(quantize, dict):
            raw = raw | {"quantize": {"balance": False, **quantize}}
        return parse_recipe(raw, f"{self.folder / MANIFEST}: recipe")

    def tokenizer(self) -> Tokenizer:
        """Text to token ids, without truncation and padding; IntegrityError where the file is no tokenizer."""
        return read_tokenizer(self.file("tokenizer.json"))

    def special_token(self, role: str) -> int | None:
        """Return the id of the token that tokenizer_config.json gives a role, such as `eos_token`; None for none."""
        named = self.tokenizer_settings.get(role)
        text = named.get("content") if isinstance(named, dict) else named
        return self.tokenizer().token_to_id(text) if isinstance(text, str) else None

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Return a conversation, messages of a `role` and a `content`, in the checkpoint's chat template.

        Raises:
            RecipeError: the checkpoint has no template, or its template refuses the messages.
            IntegrityError: the template cannot be read.
        """
        settings = self.tokenizer_settings
        template = settings.get("chat_template")
        if not isinstance(template, str):
            raise RecipeError(
                f"{self.folder} has no chat template: this model continues texts",
                hint="Leave --chat out, and give a text that its answer would follow.",
            )
        named = {role: value for role, value in settings.items() if role.endswith(("_token", "_tokens"))}
        tokens = {role: v.get("content") if isinstance(v, dict) else v for role, v in named.items()}
        return render_chat(template, messages, tokens)

    @cached_property
    def tokenizer_settings(self) -> dict[str, Any]:
        """tokenizer_config.json; empty where there is none."""
        found = self.read_json(SETTINGS) if SETTINGS in self.manifest.files else {}
        return found if isinstance(found, dict) else {}

    def replace_files(self, files: Mapping[str, bytes], recipe: Json | None = None) -> None:
        """Write or replace files and name them in the manifest. The caller holds the artifact (`held`). With `recipe`
        the manifest says that the artifact is made from that one.

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
        new = {name: FileEntry(sha256=digests[name], size=len(data)) for name, data in files.items()}
        named = dict(sorted((self.manifest.files | new).items()))
        said = {} if recipe is None else {"recipe": recipe}
        manifest = self.manifest.model_copy(update={"files": named, **said})
        with explained(self.folder):
            self._tidy()
            try:
                for name, data in files.items():
                    waiting = pending(self.folder, name, digests[name])
                    waiting.parent.mkdir(parents=True, exist_ok=True)
                    waiting.write_bytes(data)
                    fsync(waiting)
                    fsync(waiting.parent)
                write_atomically(self.folder / MANIFEST, json_bytes(manifest.to_json()))
                self.manifest = manifest
                give_names(self.folder, manifest.files)
            except BaseException:
                with suppress(OSError, PythiaExportError):
                    self._tidy()
                raise

    def _tidy(self) -> None:
        """Finish or undo what a process began that was killed here."""
        files = _read_manifest(self.folder).files
        give_names(self.folder, files)
        remove_strays(self.folder, files)
        for stale in self.folder.rglob(".*.tmp-*"):
            if is_stale(stale):
                stale.unlink()


def _read_manifest(folder: Path) -> Manifest:
    """
    Raises:
        SourceError, IntegrityError: as `Artifact.open`.
    """
    try:
        there = folder.is_dir()
    except (OSError, ValueError) as e:  # a name too long, or of no file system
        raise SourceError(f"{shown(str(folder))}: {getattr(e, 'strerror', None) or e}") from e
    if not there:
        found = "is not a directory" if folder.exists() else "no such directory"
        raise SourceError(f"{folder}: {found}; an artifact is a directory with a {MANIFEST}", hint=_aside(folder))
    try:
        raw = read_json(folder / MANIFEST)
    except FileNotFoundError:
        raise SourceError(
            f"{folder}: no {MANIFEST}, which every artifact has",
            hint="Is this a directory that `pythia-export run` or `export` wrote?",
        ) from None
    return checked_manifest(raw, folder / MANIFEST)


def _schema(raw: Any, where: Path) -> int:
    found = raw.get("schema") if isinstance(raw, dict) else None
    if type(found) is not int:
        raise IntegrityError(
            f"{where}: an object with a number `schema` was expected",
            hint="Copy the artifact again, or export it again.",
        )
    return found


def _aside(out: Path) -> str:
    old = next(siblings(out, "old"), None) if out.parent.is_dir() else None
    return f"A run that was interrupted while publishing left the old one in {old}; rename it back." if old else ""
