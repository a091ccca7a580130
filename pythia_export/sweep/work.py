"""One task: the jobs of a snapshot that have no result yet, each done or put down as failed."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from ..base.compute import Compute
from ..base.device import device_called
from ..base.errors import PythiaExportError, ResourceError
from ..base.machine import now
from ..base.memory import memory_fault
from ..base.progress import SILENT, Progress
from ..disk import DISK_FULL
from .folder import Folder
from .jobs import Job
from .measure import Shared
from .records import SCHEMA, Failure


def work(
    root: Path,
    task: str,
    keys: Sequence[str],
    *,
    cores: int,
    device: str = "cpu",
    memory_gb: float = 4.0,
    evict: bool = False,
    attempt: int = 1,
    progress: Progress = SILENT,
) -> dict[str, int]:
    """The exit code of each job, 0 for those that are done. torch computes on `device`, `cpu` or `cuda`; `memory_gb` is
    that of calibration activations.

    What fails is recorded, job by job, and the rest goes on. Only where the checkpoint cannot be had, the device is not
    there, or memory or disk are short, does the task end: for another process, with more of it, to go on.
    """
    folder = Folder(root)
    told = _Logged(folder, task, progress)
    codes = {key: 0 for key in keys if folder.result(key) is not None}
    jobs: dict[str, Job] = {}
    torch.set_num_threads(cores)
    where = f"GPU {os.environ.get('CUDA_VISIBLE_DEVICES', '0')}" if device == "cuda" else device
    told.log(f"attempt {attempt}: {len(keys) - len(codes)} jobs, {cores} threads, {where}")

    def failed(error: PythiaExportError, of: Sequence[str]) -> None:
        for key in of:
            codes[key] = error.exit_code
            folder.put_failure(key, failure(error, attempt))

    for key in keys:
        try:
            if key not in codes:
                jobs[key] = folder.job(key)
        except PythiaExportError as e:
            told.log(f"{key}: {e}")
            failed(e, [key])
    left, alone = list(jobs), set[str]()
    with ExitStack() as stack:
        if left:
            stack.enter_context(folder.working(task, len(left), attempt))
        shared: Shared | None = None
        while left:
            batch = left[:1] if left[0] in alone else _together([jobs[key] for key in left if key not in alone])
            try:
                if shared is None:
                    compute = Compute(device_called(device), told, memory_gb)
                    shared = Shared(jobs[left[0]], folder, compute, stack)
                for record in shared.measure([jobs[key] for key in batch]):
                    folder.put_result(record.model_copy(update={"attempt": attempt}))
                    codes[record.key] = 0
                    told.log(f"{record.key}: done in {record.seconds.total:.1f} s")
            except Exception as e:
                error, undone = _known(e), [key for key in batch if key not in codes]
                told.log(f"{' '.join(undone)}: {type(error).__name__}: {error}")
                told.log("".join(traceback.format_exception(e)).rstrip())
                over = shared is None or isinstance(error, ResourceError)
                if len(undone) > 1 and not over:
                    alone |= set(undone)  # perhaps it was one of them only
                else:
                    failed(error, left if shared is None else undone)
                if over:
                    break
            left = [key for key in left if key not in codes]
        if shared is not None and evict and all(code == 0 for code in codes.values()):
            shared.evict()
    return codes


def _together(jobs: Sequence[Job]) -> list[str]:
    """The first, and those that go through the checkpoint with it: by GPTQ with the same Hessians of the original."""
    first = jobs[0]

    def asked(job: Job) -> tuple[Any, ...]:
        return job.calibration, job.verify, job.quantize.hessian, job.quantize.form

    if first.calibration is None or first.quantize.hessian != "original":
        return [first.key]
    return [job.key for job in jobs if asked(job) == asked(first)]


def failure(error: PythiaExportError, attempt: int) -> Failure:
    """The record of a job that came to nothing."""
    return Failure(
        version=SCHEMA,
        error=type(error).__name__,
        exit_code=error.exit_code,
        message=str(error),
        hint=error.hint,
        attempt=attempt,
        when=now(),
    )


def _known(error: Exception) -> PythiaExportError:
    """As one of ours; what is not, is a fault of this program."""
    if isinstance(error, PythiaExportError):
        return error
    said = str(error)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return ResourceError(f"no space left: {said}", hint="Of the disk, or of the temporary directory, TMPDIR.")
    return memory_fault(error) or PythiaExportError(f"{type(error).__name__}: {said}")


class _Logged:
    """Progress that also goes into the task's log."""

    def __init__(self, folder: Folder, task: str, progress: Progress) -> None:
        self._folder, self._task, self._progress = folder, task, progress
        self.track = progress.track

    def note(self, message: str) -> None:
        self.log(message)
        self._progress.note(message)

    def log(self, line: str) -> None:
        self._folder.write_log(self._task, line)
