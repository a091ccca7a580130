"""How a run ends: what it wrote gets its name, also after an interruption."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..artifact import Artifact, Parity, Publisher, Quantization
from ..base.errors import SourceError
from ..base.progress import Progress
from ..calibrate import Journal, Publication, differences, published, remove_work
from ..disk import clean_up, explained, held
from ..recipe import Recipe
from ..records.manifest import FileEntry, Origin
from ..weights.names import data_name
from .contents import arrange


@dataclass(frozen=True)
class Outcome:
    folder: Path
    quantization: Quantization | None
    parity: Parity | None
    seconds: dict[str, float]


def publish(publisher: Publisher, journal: Journal, recipe: Recipe, origin: Origin) -> None:
    """Give what the journal's directory holds its name, and remove the rest of that directory."""
    arrange(journal.output, recipe)

    def announce(files: Mapping[str, FileEntry], sha256: str) -> None:
        weights = files[data_name(recipe)].sha256
        journal.announce(Publication(manifest=sha256, weights=weights, recipe=recipe.model_dump(mode="json")))

    publisher.publish(journal.output, origin, announce)
    journal.finish()


def finish_interrupted(recipe: Recipe, out: Path, resume: bool, progress: Progress) -> Outcome | None:
    """Tidy up after a run that was killed when it had published and had not tidied up; with `resume`, that is all.

    Raises:
        SourceError: `resume`, and that run was of another recipe.
    """
    work, out = work_folder(out), Path(os.path.abspath(out))
    if not work.is_dir():
        return None
    with held(out), explained(out):
        clean_up(out)
        done = published(work, out)
        if done is None:
            return None
        remove_work(work)
    if not resume:
        return None
    differing = differences(done.recipe, recipe.model_dump(mode="json"))
    if differing:
        raise SourceError(
            f"{out} was published before its run was interrupted, from another recipe than this:\n  "
            + "\n  ".join(differing),
            hint="There is nothing left to go on with. Without --resume the recipe starts from its beginning.",
        )
    progress.note(f"{out} was published before its run was interrupted: there is nothing left to do.")
    opened = Artifact.open(out)
    opened.check()
    return Outcome(out, opened.quantization, opened.parity, {})


def work_folder(out: Path) -> Path:
    out = Path(os.path.abspath(out))
    return out.parent / f".{out.name}.work"
