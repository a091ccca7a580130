"""What a job needs for each size of the suite, by the estimates that `plan` prints and a measured rate."""

from __future__ import annotations

from typing import Any

from .markdown import table

# Operations of commands/footprint.py a second, on two cores of an AMD EPYC (Zen 5): the slowest of three lines of
# benchmarks/README.md, "Memory" (1.4b: 178 s of 2 layers and 308 s of 4; 6.9b: 456 s of one).
RATE = 1.7e11


def needs() -> str:
    """Return a table: download, artifact, memory and time of a job with the defaults, by size."""
    from pythia_export.model.suite import sizes

    head = ["model", "parameters", "download", "artifact, 4 bits", "artifact, 8 bits", "memory at most", "time"]
    return table(head, [_row(size) for size in sizes()])


def _row(size: str) -> list[str]:
    from pythia_export.commands.footprint import peak_memory
    from pythia_export.model.suite import geometry
    from pythia_export.recipe import load_recipe
    from pythia_export.weights.layout import layout_of

    four, eight = load_recipe(f"{size}-int4"), load_recipe(f"{size}-int8")
    config = geometry(four.model.id)
    weights = [_bytes(layout_of(recipe, config).nbytes) for recipe in (four, eight)]
    memory, seconds = peak_memory(config, four), _operations(four) / RATE
    count = config.parameters
    return [size, f"{count:,}", _bytes(2 * count), *weights, _bytes(memory), _time(seconds)]


def _operations(recipe: Any) -> float:
    from pythia_export.commands import footprint
    from pythia_export.model.suite import geometry

    config = geometry(recipe.model.id)
    work = footprint.sensitivity_operations(config, recipe.calibration)
    work += footprint.observing_operations(config, recipe.quantize, recipe.calibration)
    work += footprint.rounding_operations(config, recipe.quantize)
    return work + footprint.scoring_operations(config, recipe.verify.tokens, 2)


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{max(1, round(seconds / 60))} min"
