"""The whole job as Python programs start it: a recipe in, an artifact with its proof out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from .api import Artifact
from .base.device import DeviceName
from .base.progress import Calls
from .commands.options import Options
from .commands.run import run
from .recipe import Recipe

_LOG = logging.getLogger("pythia_export")


def quantize(
    recipe: Recipe | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = False,
    device: DeviceName = "cpu",
    progress: Callable[[str, int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Artifact:
    """Fetch, quantise, export and prove a checkpoint, as `pythia-export run` does; return the artifact, opened.

    `recipe` is a recipe, or what `Recipe.load` takes: ``quantize("410m@step3000", "models/410m")``. The artifact is
    published in the folder `out` whether its gates pass or not: `artifact.parity.passed` says. `overwrite` replaces an
    artifact that is there; `resume` goes on after the last layer that an interrupted run finished.

    `progress` is called with a stage's name, the steps done and the steps in all: ``("Quantising", 3, 24)``. `note` is
    called with each choice or fallback, in a sentence; without it they go to the logger `pythia_export`, as
    information.

    Raises:
        RecipeError: no such recipe or model, an unknown key, a value out of range.
        SourceError: the checkpoint or a text is missing, unreachable, or not what it says.
        IntegrityError: a file contradicts its own description.
        NumericsError: a NaN, an infinity, a Hessian that no allowed damping makes positive definite.
        ResourceError: too little memory or disk.
        OutputError: `out` exists and `overwrite` is false, or cannot be written.
        EnvironmentProblem: a `device` that is not there.
    """
    asked = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    calls = Calls(progress or (lambda title, done, total: None), note or _LOG.info)
    outcome = run(asked, Path(out), Options(overwrite=overwrite, resume=resume, device=device), calls)
    return Artifact.open(outcome.folder)
