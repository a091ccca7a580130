"""What a job needs for each size of the suite, by the estimates that `plan` prints and a measured rate."""

from __future__ import annotations

from typing import Any

from .markdown import table

# Operations of commands/footprint.py a second, on two cores of an AMD EPYC (Zen 5): the slowest of three lines of
# benchmarks/README.md, "Memory" (1.4b: 178 s of 2 layers and 308 s of 4; 6.9b: 456 s of one).
RATE = 1.7e11


def needs() -> str:
    """Return a table: download, artifact, memory and time of a job with the defaults, by size."""
    rows = []
    for size in ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b"):
        rows.append(_row(size))
    head = ["model", "parameters", "download", "artifact, 4 bits", "artifact, 8 bits", "memory at most", "time"]
    return table(head, rows)


def _row(size: str) -> list[str]:
    from pythia_export.commands.plan import plan
    from pythia_export.recipe import load_recipe

    four, eight = load_recipe(f"pythia-{size}-int4"), load_recipe(f"pythia-{size}-int8")
    planned = plan(four)
    files = [_bytes(sum(p.files.values())) for p in (planned, plan(eight))]
    download, memory = _bytes(planned.download_bytes or 0), _bytes(planned.peak_memory_bytes)
    return [size, f"{planned.geometry['parameters']:,}", download, *files, memory, _time(_operations(four) / RATE)]


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
