"""`quantize`: the weights alone."""

from __future__ import annotations

from pathlib import Path

from ..base.progress import SILENT, Progress
from ..recipe import Recipe
from .conversion import conversion
from .options import AS_USUAL, Options
from .publication import Outcome, finish_interrupted, publish


def quantize(recipe: Recipe, out: Path, options: Options = AS_USUAL, progress: Progress = SILENT) -> Outcome:
    """Only the weights: `model.onnx_data` and `quantization.json`, for `export` to build graphs over."""
    finished = finish_interrupted(recipe, out, options.resume, progress)
    if finished is not None:
        return finished
    with conversion(recipe, out, options, progress) as (job, publisher), job.journal(out, options.resume) as journal:
        quantization = job.quantize_into(journal)
        publish(publisher, journal, recipe, job.origin(recipe.export))
    return Outcome(publisher.out, quantization, None, job.seconds)
