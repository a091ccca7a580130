"""A sweep's directory: what is to be done, what is done, what failed. Every record is whole or absent.

    sweep.json          the sweep as it was pinned: commits of the checkpoints, hashes of the texts, quantisations
    texts/SHA256.npz    token windows, tokenised once
    jobs/ab/KEY.json    what one job is
    results/ab/KEY.json what came of it
    failures/ab/KEY.json why nothing came of it
    running/TASK.json   somebody works on this task; its time is that of the last sign of life
    logs/TASK.log       what the task said, all attempts

Workers on several machines write here, a file each and no file twice, so that nothing needs a lock; the one that plans
and submits holds the directory.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from ..base.errors import IntegrityError, OutputError, SourceError
from ..base.machine import now
from ..base.strict_json import parse_json, read_object
from ..corpus import Subset, Windows
from ..disk import explained, is_alive, lock_folder, write_atomically
from ..records.record import Json, Record, checked
from .jobs import Job
from .records import AGAIN, Failure, Manifest, Mark, Result, of_this_schema

MANIFEST = "sweep.json"
OURS = frozenset(("texts", "jobs", "results", "failures", "running", "logs", "submitit"))  # before the manifest, too
PARTIAL = f".{MANIFEST}."  # of a run that ended while it wrote it
WHEN_FULL = "What was written is whole. Free space and run the sweep again."
SIGN_OF_LIFE_SECONDS = 15.0
SILENT_SECONDS = 120.0  # without a sign of life: it is gone


class Folder:
    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def existing(cls, root: Path) -> Folder:
        """Raises:
        SourceError: there is no sweep.
        """
        if not (root / MANIFEST).is_file():
            raise SourceError(f"{root}: no {MANIFEST}: no sweep was run there", hint="`pythia-export sweep run` does.")
        return cls(root)

    @contextmanager
    def held(self) -> Iterator[None]:
        """By one planner at a time; made where there is none.

        Raises:
            OutputError: another process holds it, or it is no directory of a sweep.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = lock_folder(self.root)
        except BlockingIOError:
            raise OutputError(
                f"{self.root}: another `sweep run` works in this directory",
                hint="Wait for it, or choose another --out. `sweep status` shows how far it is.",
            ) from None
        except OSError as e:
            raise OutputError(f"{self.root}: cannot be used as a directory: {e.strerror}") from e
        try:
            foreign = (p.name for p in self.root.iterdir() if p.name not in OURS and not p.name.startswith(PARTIAL))
            if not (self.root / MANIFEST).is_file() and any(foreign):
                raise OutputError(
                    f"{self.root} holds other things and no {MANIFEST}", hint="Choose an empty or a new --out."
                )
            yield
        finally:
            if lock is not None:
                os.close(lock)

    # The manifest.

    def manifest(self) -> Manifest | None:
        """Return the sweep as it was pinned; None where nothing was.

        Raises:
            IntegrityError: it is there and cannot be read, or is another schema's.
        """
        path = self.root / MANIFEST
        if not path.is_file():
            return None
        hint = "`sweep run` writes it again; jobs that are done stay done."
        return of_this_schema(Manifest, _read(path, hint), str(path), hint)

    def pinned(self) -> Manifest:
        """Return the sweep as it was pinned; raises as `existing` and `manifest`."""
        found = Folder.existing(self.root).manifest()
        assert found is not None
        return found

    def put_manifest(self, manifest: Manifest) -> None:
        with explained(self.root, WHEN_FULL):
            write_atomically(self.root / MANIFEST, json.dumps(manifest.to_json()).encode())

    # Texts.

    def put_text(self, windows: Windows) -> None:
        path = self._text(windows.sha256)
        if path.is_file():
            with suppress(IntegrityError):  # what is damaged is written again
                self.text(windows.sha256)
                return
        facts = {
            "source": windows.source,
            "n_bytes": windows.n_bytes,
            "end_tokens": windows.end_tokens,
            "subsets": {name: [s.documents, s.n_bytes] for name, s in windows.subsets.items()},
        }
        with explained(path, WHEN_FULL), tempfile.TemporaryFile() as file:
            path.parent.mkdir(exist_ok=True)
            np.savez_compressed(file, ids=windows.ids, documents=windows.documents, facts=json.dumps(facts))
            file.seek(0)
            write_atomically(path, file.read())

    def text(self, sha256: str) -> Windows:
        """Raises:
        IntegrityError: it is not there, or not what its name says.
        """
        path = self._text(sha256)
        try:
            with np.load(path) as saved:
                ids, documents, facts = saved["ids"], saved["documents"], parse_json(str(saved["facts"]), str(path))
            subsets = {name: Subset(of, n) for name, (of, n) in facts["subsets"].items()}
            ends = facts.get("end_tokens")  # folders of before it was counted lack it
            found = Windows.of(ids, documents, facts["source"], facts["n_bytes"], subsets, ends)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as e:
            raise IntegrityError(f"{path}: cannot be read: {e}", hint="`sweep run` writes it again.") from e
        if found.sha256 != sha256:
            raise IntegrityError(f"{path} holds {found.sha256}", hint="`sweep run` writes it again.")
        return found

    def _text(self, sha256: str) -> Path:
        return self.root / "texts" / f"{sha256}.npz"

    # Jobs, results, failures: a small file each, in a folder by the first digits of its key.

    def put_jobs(self, jobs: Iterable[Job]) -> None:
        """Not flushed to the disk one by one: what a crash tears is refused by its reader and written again."""
        with explained(self.root, WHEN_FULL):
            for job in jobs:
                path = self._record("jobs", job.key)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, json.dumps(job.to_json()).encode(), durable=False)

    def job(self, key: str) -> Job:
        path = self._record("jobs", key)
        if not path.is_file():
            raise SourceError(f"{path}: no such job", hint="`pythia-export sweep status` lists those that failed.")
        return Job.from_json(_read(path), str(path))

    def put_result(self, result: Result) -> None:
        key = result.key
        self._put("results", key, result)
        with suppress(FileNotFoundError):
            self._record("failures", key).unlink()

    def result(self, key: str) -> Result | None:
        """Raises:
        IntegrityError: there is one of another schema, or that lacks something.
        """
        raw = self._get("results", key)
        return None if raw is None else of_this_schema(Result, raw, f"the result of {key}")

    def put_failure(self, key: str, failure: Failure) -> None:
        self._put("failures", key, failure)

    def failure(self, key: str) -> Failure | None:
        raw = self._get("failures", key)
        return None if raw is None else of_this_schema(Failure, raw, f"the failure of {key}")

    def forget_failures(self, keys: Iterable[str]) -> None:
        for key in keys:
            with suppress(FileNotFoundError):
                self._record("failures", key).unlink()

    def done(self) -> set[str]:
        """Keys that have a result."""
        return set(self._keys("results"))

    def failed(self) -> set[str]:
        return set(self._keys("failures"))

    def _put(self, kind: str, key: str, record: Record) -> None:
        path = self._record(kind, key)
        with explained(path, WHEN_FULL):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(record.to_json(), allow_nan=False).encode())

    def _get(self, kind: str, key: str) -> Json | None:
        path = self._record(kind, key)
        return _read(path) if path.is_file() else None

    def _keys(self, kind: str) -> Iterator[str]:
        folder = self.root / kind
        if not folder.is_dir():
            return
        for part in os.scandir(folder):
            if part.is_dir():
                yield from (name.removesuffix(".json") for name in os.listdir(part.path) if name.endswith(".json"))

    def _record(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:2] / f"{key}.json"

    # Tasks at work.

    @contextmanager
    def working(self, task: str, jobs: int, attempt: int) -> Iterator[None]:
        """A mark that says so, for as long as this process lives: touched every few seconds."""
        path, ended = self.root / "running" / f"{task}.json", threading.Event()
        with explained(path, WHEN_FULL):
            path.parent.mkdir(exist_ok=True)
            mark = Mark(jobs=jobs, attempt=attempt, pid=os.getpid(), host=socket.gethostname(), since=now())
            write_atomically(path, json.dumps(mark.to_json()).encode(), durable=False)

        def live() -> None:
            while not ended.wait(SIGN_OF_LIFE_SECONDS):
                with suppress(OSError):
                    path.touch()

        thread = threading.Thread(target=live, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            path.unlink(missing_ok=True)

    def running(self) -> dict[str, Mark]:
        """Return the marks of tasks that gave a sign of life lately; a process of this machine must be there, too."""
        found: dict[str, Mark] = {}
        folder = self.root / "running"
        for path in folder.glob("*.json") if folder.is_dir() else ():
            with suppress(OSError, IntegrityError):
                mark = checked(Mark, read_object(path), path)
                lately = time.time() - path.stat().st_mtime < SILENT_SECONDS
                # A number alone is not a process: after a restart another may have it.
                if lately and (mark.host != socket.gethostname() or is_alive(mark.pid)):
                    found[path.stem] = mark
        return found

    # What processes that were started for a task wrote.

    def output(self, name: str) -> Path:
        """Where an engine keeps its files."""
        return self.root / "submitit" / name

    def put_output(self, task: str, files: list[str]) -> None:
        path = self.root / "logs" / f"{task}.files"
        path.parent.mkdir(exist_ok=True)
        known = set(map(str, self.output_of(task)))
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{name}\n" for name in files if name not in known))

    def output_of(self, task: str) -> list[Path]:
        path = self.root / "logs" / f"{task}.files"
        return [Path(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []

    def log(self, task: str) -> Path:
        return self.root / "logs" / f"{task}.log"

    def write_log(self, task: str, line: str) -> None:
        path = self.log(task)
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{now()} {line}\n")


def _read(path: Path, hint: str = AGAIN) -> Json:
    try:
        return read_object(path, hint=hint)
    except FileNotFoundError as e:
        raise IntegrityError(f"{path}: no such file", hint=hint) from e
