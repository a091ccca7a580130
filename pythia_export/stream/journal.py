"""What a run has finished, so that one that was killed goes on instead of starting anew.

A work directory beside the output holds the weights file as far as it is written, the sensitivities, and this journal,
which is replaced atomically after every layer, once the layer's bytes are on the disk. Activations are not kept: the
finished layers are read back and computed once more, which gives the same bits at a small part of the cost.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..artifact import lock_folder, write_atomically
from ..errors import IntegrityError, OutputError, SourceError
from ..progress import SILENT, Progress

JOURNAL, OUTPUT = "journal.json", "artifact"


class Journal:
    """The work directory of one output, held by one process at a time.

        with Journal(folder, fingerprint, resume=True) as journal:
            journal.layers                  # [{...}, ...] of the layers that are done
            journal.output                  # where the files of the artifact are made
            journal.commit(layers, linears, sensitivity)
            journal.lend(folder)            # they lie there as well, to be published
            journal.finish()                # the directory is not needed any more

    Left by an error or an interrupt, the directory stays when there is a layer in it to go on from.

    Raises:
        SourceError: `resume`, and there is nothing to go on from, or it was made from other inputs: names those that
            differ.
        IntegrityError: the journal cannot be read.
        OutputError: another process holds the directory.
    """

    def __init__(
        self, folder: Path, fingerprint: dict[str, Any], resume: bool = False, progress: Progress = SILENT
    ) -> None:
        self.folder, self.fingerprint, self._resume, self._progress = folder, fingerprint, resume, progress
        self.output = folder / OUTPUT
        self.layers: list[dict[str, Any]] = []
        self.linears: list[dict[str, Any]] = []
        self.sensitivity = False
        self._finished = False

    def __enter__(self) -> Self:
        if self._resume:
            require_begun(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(self.folder)
        except FileExistsError:
            raise OutputError(f"{self.folder} is a file; a directory is needed there", hint="Remove it.") from None
        except BlockingIOError:
            raise OutputError(
                f"{self.folder}: another process works on this output", hint="Wait for it, or choose another output."
            ) from None
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

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def _read(self) -> None:
        try:
            found = json.loads((self.folder / JOURNAL).read_text(encoding="utf-8"))
            fingerprint = found["fingerprint"]
            self.layers, self.linears, self.sensitivity = found["layers"], found["linears"], found["sensitivity"]
        except (ValueError, KeyError, TypeError) as e:
            raise IntegrityError(
                f"{self.folder / JOURNAL}: not a journal of ours: {e}", hint="Start anew without --resume."
            ) from e
        differing = _differences(fingerprint, self.fingerprint)
        if differing:
            raise SourceError(
                f"{self.folder} was made from other inputs than this run's:\n  " + "\n  ".join(differing),
                hint="Go on with the same inputs, or start anew without --resume.",
            )
        self._progress.note(f"Going on after {len(self.layers)} finished layers.")

    def _start_anew(self) -> None:
        leftover = sorted(self.folder.iterdir())
        if any(path.name == JOURNAL for path in leftover):
            self._progress.note("Starting anew; --resume would go on from an interrupted run.")
        for path in leftover:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def commit(self, layers: list[dict[str, Any]], linears: list[dict[str, Any]], sensitivity: bool) -> None:
        """Replace the journal; what it vouches for must be on the disk already."""
        self.layers, self.linears, self.sensitivity = list(layers), list(linears), sensitivity
        state = {
            "fingerprint": self.fingerprint,
            "layers": self.layers,
            "linears": self.linears,
            "sensitivity": sensitivity,
        }
        write_atomically(self.folder / JOURNAL, json.dumps(state).encode())

    def lend(self, folder: Path) -> None:
        """The output is whole: put its files into `folder` as well. Whatever becomes of them there, a run can go on."""
        for path in (path for path in sorted(self.output.rglob("*")) if path.is_file()):
            to = folder / path.relative_to(self.output)
            to.parent.mkdir(exist_ok=True)
            try:
                os.link(path, to)
            except OSError:  # a file system without links
                shutil.copyfile(path, to)

    def finish(self) -> None:
        """The output is published: nothing to go on from is left, and its files have one name again."""
        shutil.rmtree(self.folder)
        self._finished = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._finished and not self.layers:
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


def _differences(then: Any, now: Any, path: str = "") -> list[str]:
    """`quantize.bits: 4 then, 3 now`, a line for each value that differs."""
    if isinstance(then, dict) and isinstance(now, dict):
        lines = []
        for key in sorted(then.keys() | now.keys()):
            lines += _differences(then.get(key), now.get(key), f"{path}.{key}" if path else key)
        return lines
    return [] if then == now else [f"{path}: {then!r} then, {now!r} now"]
