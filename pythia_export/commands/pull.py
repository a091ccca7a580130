"""Fetch what a recipe reads, its checkpoint and its texts, and give the disk back."""

from __future__ import annotations

from ..base.progress import SILENT, Progress
from ..checkpoint import Accept, Checkpoint, Pulled, open_checkpoint
from ..checkpoint import evict as evict_checkpoint
from ..checkpoint import pull as pull_checkpoint
from ..corpus import Windows, calibration_windows, verify_windows
from ..recipe import Model, Recipe

ACCEPT = Accept()


def pull(model: Model, *, accept: Accept = ACCEPT, progress: Progress = SILENT) -> Checkpoint:
    """Fetch a checkpoint, pin its commit and check its headers against its configuration."""
    return open_checkpoint(pull_checkpoint(model, accept=accept, progress=progress), progress)


def read_texts(recipe: Recipe, checkpoint: Checkpoint, progress: Progress = SILENT) -> dict[str, Windows]:
    """The text of each section that needs some; of the hub's, the cache has it from then on."""
    tokenizer, config = checkpoint.tokenizer(), checkpoint.config
    texts = {"verify": verify_windows(recipe.verify, tokenizer, config, progress)}
    if recipe.calibration is not None and recipe.calibrates:
        texts = {"calibration": calibration_windows(recipe.calibration, tokenizer, config, progress)} | texts
    return texts


def drop(pulled: Pulled, progress: Progress) -> None:
    """Take a checkpoint out of the hub's cache."""
    freed = evict_checkpoint(pulled)
    progress.note(f"{pulled.name} at {pulled.revision}: {freed / 1e6:,.1f} MB taken out of the cache")
