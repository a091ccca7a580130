"""What a run has finished, so that one that was killed goes on instead of starting anew.

A work directory beside the output holds the weights file as far as it is written, the sensitivities, and this journal,
which is replaced atomically after every layer, once the layer's bytes are on the disk. Activations are not kept: the
finished layers are read back and computed once more, which gives the same bits at a small part of the cost.

The journal vouches for nothing that it has not hashed: it holds the SHA-256 of each finished layer's weights, of the
sensitivities and of the text that the original wrote, and each entry is sealed together with those before it.

The finished artifact is published out of here by one rename, not copied or linked. Before it, the journal says what is
about to be published. The artifact that it says lies here until the rename, and under its name from then on: so a run
that was killed in between knows which of the two happened.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..artifact import MANIFEST, Artifact
from ..base.errors import IntegrityError, OutputError, PythiaExportError, SourceError
from ..base.progress import SILENT, Progress
from ..base.strict_json import read_json
from ..disk import explained, lock_folder, write_atomically
from ..model.neox import layer_prefix
from ..records.quantization import LayerRecord, LinearRecord, Training
from ..records.record import Json
from ..weights.names import DATA_FILE
from ..weights.writer import WeightsWriter

JOURNAL, OUTPUT, OWN_TEXT = "journal.json", "artifact", "own_text.npy"
ANEW = "Start anew without --resume."

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Finished(_Record):
    """One layer that is in the weights file: what quantization.json says of it, the SHA-256 of its tensors, and a seal
    over all of that and over the layers before it."""

    layer: LayerRecord
    linears: list[LinearRecord]
    weights: Digest
    seal: Digest


class Trained(_Record):
    """What training end to end left: what quantization.json says of it and of the head, the SHA-256 of the weights file
    that takes the place of the layers' own, and a seal over these and over all layers."""

    training: Training
    head: list[LinearRecord]
    weights: Digest
    seal: Digest


class Publication(_Record):
    """What is about to be published: SHA-256 of its manifest and of its weights, and the recipe as it was given."""

    manifest: Digest
    weights: Digest
    recipe: Json


class State(_Record):
    """The content of journal.json."""

    schema_: Literal[2] = Field(alias="schema")
    fingerprint: Json
    finished: list[Finished]
    sensitivity: dict[str, Digest] | None  # by file name
    publication: Publication | None
    trained: Trained | None = None
    own: Digest | None = None  # of the file with the text that the original wrote


class Journal:
    """The work directory of one output, held by one process at a time.

        with Journal(folder, fingerprint, resume=True) as journal:
            journal.finished                # the layers that are done
            journal.output                  # where the files of the artifact are made
            journal.commit(layer, linears, weights, sensitivity)
            journal.commit_training(...)    # the whole model is trained, its file is about to take the weights' place
        journal.announce(publication)   # what `journal.output` holds is whole, and gets its name next
            journal.finish()                # the directory is not needed any more

    Left by an error or an interrupt, the directory stays when there is a layer in it to go on from.

    Raises:
        SourceError: `resume`, and there is nothing to go on from, or it was made from other inputs: names those that
            differ; or by a version that hashed nothing.
        IntegrityError: the journal cannot be read, or is not what was written.
        OutputError: another process holds the directory.
    """

    def __init__(self, folder: Path, fingerprint: Json, resume: bool = False, progress: Progress = SILENT) -> None:
        self.folder, self.fingerprint, self._resume, self._progress = folder, fingerprint, resume, progress
        self.output = folder / OUTPUT
        self.weights = self.output / DATA_FILE
        self.finished: list[Finished] = []
        self.sensitivity: dict[str, str] | None = None
        self.trained: Trained | None = None
        self._own: str | None = None
        self._done = False

    def __enter__(self) -> Self:
        if self._resume:
            require_begun(self.folder)
        with explained(self.folder):
            self._hold()
        try:
            if self._resume:
                self._read()
            else:
                self._start_anew()
            self.output.mkdir(exist_ok=True)
        except BaseException:
            self._release()
            raise
        return self

    def _hold(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(self.folder)
        except FileExistsError:
            raise OutputError(f"{self.folder} is a file; a directory is needed there", hint="Remove it.") from None
        except BlockingIOError:
            raise OutputError(
                f"{self.folder}: another process works on this output", hint="Wait for it, or choose another output."
            ) from None

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def _read(self) -> None:
        state = _read_state(self.folder / JOURNAL)
        differing = differences(state.fingerprint, json.loads(json.dumps(self.fingerprint)))
        if differing:
            raise SourceError(
                f"{self.folder} was made from other inputs than this run's:\n  " + "\n  ".join(differing),
                hint="Go on with the same inputs, or start anew without --resume.",
            )
        if state.publication is not None and not _holds(self.output, state.publication):
            raise SourceError(
                f"{self.folder}: its artifact was published, and is not under its name any more", hint=ANEW
            )
        self.finished, self.sensitivity, self.trained, self._own = [], state.sensitivity, state.trained, state.own
        for entry in state.finished:  # without what this version does not keep of a layer, so sealed again
            self.finished.append(_sealed(entry.layer, entry.linears, entry.weights, self.finished))
        if state.trained is not None:
            self.trained = _sealed_training(state.trained, self.finished)
        if state.publication is not None:
            self._write(None)  # from here on what lies in the output is not what was to be published
        self._take_back()
        self._progress.note(f"Going on after {len(self.finished)} finished layers.")

    def _take_back(self) -> None:
        """Keep the weights, under the name that they have while they are made, and nothing else of the output."""
        arranged = [] if self.weights.is_file() else sorted(self.output.rglob(f"*{Path(DATA_FILE).suffix}"))
        if arranged:
            os.rename(arranged[0], self.weights)
        _remove_all(path for path in self.output.iterdir() if path != self.weights)

    def _start_anew(self) -> None:
        journal = self.folder / JOURNAL
        if journal.exists():
            self._progress.note("Starting anew; --resume would go on from an interrupted run.")
            journal.unlink()  # first: it vouches for the rest
        _remove_all(self.folder.iterdir())

    def check(self, writer: WeightsWriter, layers: int) -> None:
        """Check every finished layer's bytes in the weights file, or all bytes of a trained one. If `trained` is not
        None after this, it is the trained one.

        Raises:
            IntegrityError: they are not those that were written; names the layer.
        """
        if len(self.finished) > layers:
            raise IntegrityError(
                f"{self.folder / JOURNAL}: layer {layers} is finished, it says; the model has {layers}, from 0 on",
                hint=ANEW,
            )
        if self.trained is not None and sha256_of(writer.path) == self.trained.weights:
            return
        self.trained = None  # it was not put in its place
        for i, entry in enumerate(self.finished):
            if writer.stored_digest(f"{layer_prefix(i)}.") != entry.weights:
                raise IntegrityError(
                    f"{writer.path}: layer {i} is not what was written: its SHA-256 is another than the journal's",
                    hint=ANEW,
                )

    def keep_own_text(self, own: np.ndarray) -> None:
        """Store the text [count, S] that the original wrote, which the next layer's entry vouches for.

        How much is written depends on free memory, and what is written on how a processor sums. A run that goes on
        observes what it began with.
        """
        content = io.BytesIO()
        np.save(content, own)
        self._own = hashlib.sha256(content.getbuffer()).hexdigest()
        write_atomically(self.folder / OWN_TEXT, content.getvalue())

    def own_text(self) -> np.ndarray | None:
        """Return what was stored by `keep_own_text`; None if nothing was.

        Raises:
            IntegrityError: the file is gone, or not what was stored.
        """
        if self._own is None:
            return None
        path = self.folder / OWN_TEXT
        content = path.read_bytes() if path.is_file() else None
        if content is None or hashlib.sha256(content).hexdigest() != self._own:
            found = "is not there any more" if content is None else "is not what was written: its SHA-256 is another"
            raise IntegrityError(f"{path} {found}", hint=ANEW)
        own: np.ndarray = np.load(io.BytesIO(content))
        return own

    def commit(
        self,
        layer: LayerRecord,
        linears: list[LinearRecord],
        weights: str,
        sensitivity: Mapping[str, str] | None,
    ) -> None:
        """Put down one more layer; what the journal vouches for must be on the disk already.

        `layer` and `linears` are its records, `weights` the SHA-256 of its tensors (`WeightsWriter.digest`),
        `sensitivity` those of the files beside the journal.
        """
        self.finished.append(_sealed(layer, linears, weights, self.finished))
        self.sensitivity = None if sensitivity is None else dict(sensitivity)
        self._write(None)

    def commit_training(self, training: Training, head: list[LinearRecord], weights: Path) -> None:
        """Put down that the file `weights`, which is on the disk, takes the place of the weights file next."""
        found = Trained(training=training, head=head, weights=sha256_of(weights), seal="0" * 64)
        self.trained = _sealed_training(found, self.finished)
        self._write(None)

    def announce(self, publication: Publication) -> None:
        """What lies in `output` is whole and on the disk, and the rename that publishes it is next."""
        self._write(publication)

    def _write(self, publication: Publication | None) -> None:
        state = State(
            schema=2,
            fingerprint=self.fingerprint,
            finished=self.finished,
            sensitivity=self.sensitivity,
            publication=publication,
            trained=self.trained,
            own=self._own,
        )
        absent = {name for name in ("trained", "own") if getattr(state, name) is None}
        raw = state.model_dump(by_alias=True, exclude_unset=True, exclude=absent)
        write_atomically(self.folder / JOURNAL, json.dumps(raw).encode())

    def finish(self) -> None:
        """The output is published: nothing to go on from is left."""
        remove_work(self.folder)
        self._done = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._done and not self.finished:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._release()


def require_begun(folder: Path) -> None:
    """
    Raises:
        SourceError: `folder` is no work directory of a run that finished a layer.
    """
    output = folder / OUTPUT
    if not ((folder / JOURNAL).is_file() and output.is_dir() and any(output.iterdir())):
        raise SourceError(
            f"{folder}: no run to go on from", hint="Without --resume the recipe starts from its beginning."
        )


def published(folder: Path, out: Path) -> Publication | None:
    """What a run published as `out` before it was killed, of which `folder` is all that was left to remove; None where
    there is no such run, or the artifact is not there."""
    try:
        found = _read_state(folder / JOURNAL).publication
        if found is None or _holds(folder / OUTPUT, found):
            return None
        there = {entry.sha256 for entry in Artifact.open(out).manifest.files.values()}
    except (OSError, PythiaExportError):
        return None
    return found if found.weights in there else None


def remove_work(folder: Path) -> None:
    """Remove a work directory whose artifact is published; the journal last, which knows that it is."""
    _remove_all(path for path in folder.iterdir() if path.name != JOURNAL)
    shutil.rmtree(folder)


def _holds(output: Path, publication: Publication) -> bool:
    """Say whether what was to be published is still where it was made."""
    try:
        return hashlib.sha256((output / MANIFEST).read_bytes()).hexdigest() == publication.manifest
    except OSError:
        return False


def _read_state(path: Path) -> State:
    """
    Raises:
        IntegrityError: it is no journal, or its entries are not as they were sealed.
        SourceError: it is an older version's.
    """
    found = read_json(path, hint=ANEW)
    if isinstance(found, dict) and "schema" not in found and {"fingerprint", "layers"} <= found.keys():
        raise SourceError(
            f"{path} is of an earlier version, which did not hash what it had finished: nothing vouches for it",
            hint=ANEW,
        )
    try:
        state = State.model_validate(found)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise IntegrityError(f"{path}: not a journal of ours: {where}: {first['msg']}", hint=ANEW) from e
    before = ""
    for i, (entry, raw) in enumerate(zip(state.finished, found["finished"], strict=True)):
        if entry.layer.layer != i or entry.seal != _seal(raw["layer"], raw["linears"], entry.weights, before):
            raise IntegrityError(f"{path}: what it says of layer {i} is not what was written", hint=ANEW)
        before = entry.seal
    trained = state.trained
    if trained is not None and trained.seal != _seal_of_training(found["trained"], before):
        raise IntegrityError(f"{path}: what it says of training end to end is not what was written", hint=ANEW)
    return state


def _sealed(layer: LayerRecord, linears: list[LinearRecord], weights: str, before: list[Finished]) -> Finished:
    told = layer.to_json(), [linear.to_json() for linear in linears]
    seal = _seal(*told, weights, before[-1].seal if before else "")
    return Finished(layer=layer, linears=linears, weights=weights, seal=seal)


def _seal(layer: Json, linears: list[Json], weights: str, before: str) -> str:
    return hashlib.sha256(json.dumps([before, layer, linears, weights], sort_keys=True).encode()).hexdigest()


def _sealed_training(trained: Trained, layers: list[Finished]) -> Trained:
    """Return it with its seal."""
    told = trained.model_dump(by_alias=True, exclude_unset=True)
    return trained.model_copy(update={"seal": _seal_of_training(told, layers[-1].seal if layers else "")})


def _seal_of_training(raw: Json, before: str) -> str:
    told = [before, raw["training"], raw["head"], raw["weights"]]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_all(paths: Iterable[Path]) -> None:
    for path in sorted(paths):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def differences(then: Any, now: Any, path: str = "") -> list[str]:
    """`quantize.bits: 4 then, 3 now`, a line for each value that differs."""
    if isinstance(then, dict) and isinstance(now, dict):
        lines = []
        for key in sorted(then.keys() | now.keys()):
            lines += differences(then.get(key), now.get(key), f"{path}.{key}" if path else key)
        return lines
    return [] if then == now else [f"{path}: {then!r} then, {now!r} now"]
