"""Pickled weights as safetensors, made once and kept beside the hub's cache under the hash of what they are made of."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from .. import hub
from ..base.errors import IntegrityError, ResourceError
from ..base.hashing import sha256_of
from ..base.interpreter import isolated_environment
from ..base.progress import SILENT, Progress
from ..model.neox import IGNORED_BUFFERS
from .header import read_header

_SCRIPT = Path(__file__).resolve().parent / "unpickle.py"
_CHUNK = 1 << 22


def converted(pickle: Path, digest: str | None = None, progress: Progress = SILENT) -> Path:
    """The safetensors file of a pickle, converted by a process that does only that.

    `digest` is the pickle's SHA-256 where it is known.

    Raises:
        IntegrityError: no state dict of dense floats; what else it holds was not executed.
        ResourceError: it does not fit on the disk, or into memory.
    """
    folder = hub.kept("converted")
    out = folder / f"{digest or sha256_of(pickle)}.safetensors"
    if out.is_file():
        try:
            read_header(out)
            return out
        except IntegrityError:
            out.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    size, free = pickle.stat().st_size, shutil.disk_usage(folder).free
    if size > free:
        raise ResourceError(
            f"{pickle.name}: {size / 1e9:,.2f} GB are converted to safetensors, {folder} has {free / 1e9:,.2f} GB free",
            hint="Free disk space, or point HF_HOME at a larger disk.",
        )
    progress.note(f"{pickle.name} is a pickle: its tensors are converted to safetensors, in a process of its own")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as scratch:
        made = Path(scratch) / out.name
        command = [sys.executable, str(_SCRIPT), str(pickle.resolve()), str(made), *IGNORED_BUFFERS]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=isolated_environment())
        if done.returncode:
            said = next(iter(reversed(done.stderr.strip().splitlines())), f"exit code {done.returncode}")
            if done.returncode == -signal.SIGKILL or "MemoryError" in said or "allocate memory" in said:
                raise ResourceError(
                    f"{pickle}: no memory to convert it: {said}", hint="Use a machine with more, or safetensors."
                )
            raise IntegrityError(
                f"{pickle}: cannot be read as tensors alone: {said}",
                hint="Nothing in it was executed. Fetch it again, or choose a revision with safetensors. Of a model "
                "of your own, save `model.state_dict()` alone.",
            )
        read_header(made)
        os.replace(made, out)
    return out
