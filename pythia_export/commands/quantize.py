"""`quantize`: the weights alone."""

from __future__ import annotations

from pathlib import Path

from ..artifact import Publisher
from ..base.device import DeviceName, device_called
from ..base.progress import SILENT, Progress
from ..calibrate import require_begun
from ..checkpoint import Accept
from ..recipe import Recipe
from .conversion import Conversion
from .publication import Outcome, finish_interrupted, publish, work_folder
from .pull import ACCEPT, drop


def quantize(
    recipe: Recipe,
    out: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    accept: Accept = ACCEPT,
    evict: bool = False,
    device: DeviceName = "cpu",
    progress: Progress = SILENT,
) -> Outcome:
    """Only the weights: `model.onnx_data` and `quantization.json`, for `export` to build graphs over."""
    finished = finish_interrupted(recipe, out, resume, progress)
    if finished is not None:
        return finished
    job = Conversion(recipe, progress, accept, device_called(device))
    with Publisher(out, overwrite) as publisher:
        if resume:
            require_begun(work_folder(out))  # before anything is read
        job.open()
        with job.journal(out, resume) as journal:
            quantization = job.quantize_into(journal)
            publish(publisher, journal, recipe, job.origin(recipe.export))
    if evict:
        drop(job.checkpoint.pulled, progress)
    return Outcome(publisher.out, quantization, None, job.seconds)
