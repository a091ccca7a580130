"""What a job needs for each size of the suite, by the estimates that `plan` prints and a measured rate."""

from __future__ import annotations

from .markdown import table

# Rates of two cores of an AMD EPYC (Zen 5), per second. At these the operations of an older build, which summed whole
# Hessians and passed through a layer three times, gave what benchmarks/README.md, "Memory", has of it, within 15 %.
RATES = 1.9e11, 1e8, 2


def needs() -> str:
    """Return a table: download, artifact, memory and time of a job with the defaults, by size."""
    from pythia_export.model.suite import sizes

    head = ["model", "parameters", "download", "artifact, 4 bits", "artifact, 8 bits", "memory at most", "time"]
    return table(head, [_row(size) for size in sizes()])


def _row(size: str) -> list[str]:
    from pythia_export.commands.duration import Rates, duration
    from pythia_export.commands.footprint import peak_memory
    from pythia_export.model.suite import geometry
    from pythia_export.recipe import load_recipe
    from pythia_export.weights.layout import layout_of

    four, eight = load_recipe(f"{size}-int4"), load_recipe(f"{size}-int8")
    config = geometry(four.model.id)
    weights = [_bytes(layout_of(recipe, config).nbytes) for recipe in (four, eight)]
    memory, seconds = peak_memory(config, four), duration(config, four, Rates(*RATES)).seconds
    count = config.parameters
    return [size, f"{count:,}", _bytes(2 * count), *weights, _bytes(memory), _time(seconds)]


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{max(1, round(seconds / 60))} min"
