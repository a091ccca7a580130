"""`export`: a graph over weights that are quantised already."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..artifact import Artifact, Staging
from ..base.errors import RecipeError
from ..base.progress import SILENT, Progress
from ..corpus import Windows, calibration_windows
from ..disk import copy_weights, held
from ..graph.cache_scales import read_scales
from ..graph.targets import require_fit, require_taps, warnings
from ..graph.trunk import build_graph
from ..recipe import Export, Recipe
from ..weights.layout import layout_of
from ..weights.names import DATA_FILE, MODEL, TAPS, data_name, graph_name
from .cache_scales import measured_scales
from .contents import GENAI, arrange, origin_of, reading, save_graph, save_taps, taps_graph, write_configs
from .publication import Outcome
from .whereabouts import located


def export(
    weights: Path,
    out: Path,
    *,
    rotary: str | None = None,
    accuracy_level: int | None = None,
    target: str | None = None,
    kv_cache: str | None = None,
    layout: str | None = None,
    taps: Sequence[str] | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Outcome:
    """Build the graph over quantised weights (of `quantize`, or of another artifact), unverified."""
    source = Artifact.open(weights)
    source.check()
    changes = {
        "rotary": rotary, "accuracy_level": accuracy_level, "target": target, "kv_cache": kv_cache, "layout": layout,
        "taps": taps,
    }  # fmt: skip
    chosen = source.recipe.export.model_dump() | {k: v for k, v in changes.items() if v is not None}
    known = located(source.recipe, source.manifest.source.commit, source.folder, needed=())
    recipe = known.model_copy(update={"export": _chosen(chosen)})
    began = time.perf_counter()
    places = layout_of(recipe, source.config)
    require_fit(source.config, places, recipe.export)
    text = _text_for_scales(source, recipe, progress)
    for warning in warnings(places, recipe.export):
        progress.note(warning)
    with Staging(out, overwrite) as staging:
        made_here = (MODEL, TAPS, graph_name(source.recipe), GENAI, "parity.json", "report.html", "README.md")
        kept = [name for name in source.manifest.files if name not in made_here]
        with progress.track("Copying", len(kept), "files") as advance:
            for name in kept:
                to = staging.folder / (DATA_FILE if name == data_name(source.recipe) else name)
                to.parent.mkdir(exist_ok=True)
                copy_weights(source.folder / name, to)
                advance(1)
        measured = None
        if text is not None:
            measured = measured_scales(source.config, places, recipe.export, staging.folder, text, progress)
        scales = None if measured is None else measured.scales
        save_graph(build_graph(source.config, places, recipe.export, scales), staging.folder)
        save_taps(staging.folder, source.config, places, recipe.export, scales)
        write_configs(staging.folder, source.config, recipe, source.generation)
        arrange(staging.folder, recipe)
        source.require_unchanged()
        made_of = source.manifest
        kv_scales = None if measured is None else measured.record
        origin = origin_of(recipe, made_of.source, made_of.calibration, recipe.export, made_of.imported, kv_scales)
        staging.publish(origin)
    return Outcome(staging.out, source.quantization, None, {"export": time.perf_counter() - began})


def add_taps(folder: Path, taps: Sequence[str]) -> Outcome:
    """Give an artifact that is there a graph whose outputs are values from inside the model, over the same weights.

    Its other graph, its weights and its proof stay as they are.

    Raises:
        RecipeError: a tap that is none, or that this model does not compute.
        SourceError: weights without a graph.
        OutputError: it cannot be written.
    """
    began = time.perf_counter()
    source = Artifact.open(folder)
    source.require_graph()
    source.require_writable()
    chosen = _chosen(source.recipe.export.model_dump() | {"taps": tuple(taps)})
    require_taps(source.config, source.layout, chosen)
    scales = None
    if chosen.static_scales:
        scales = read_scales(source.file(MODEL), source.config)
    data = reading(taps_graph(source.config, source.layout, chosen, scales), data_name(source.recipe))
    said = {**source.manifest.recipe, "export": chosen.model_dump(mode="json")}
    with held(source.folder):
        source.replace_files({TAPS: data}, recipe=said)
    return Outcome(source.folder, None, None, {"export": time.perf_counter() - began})


def _text_for_scales(source: Artifact, recipe: Recipe, progress: Progress) -> Windows | None:
    """The text on which a cache's scales are measured; None where it has none."""
    if not recipe.export.static_scales:
        return None
    if recipe.calibration is None:
        raise RecipeError(
            "kv_cache = 'int8' with rotary = 'gqa': the scales of the cache are measured on calibration text, and the "
            "recipe of these weights has no [calibration]",
            hint="Make the artifact again with a [calibration] section, or use rotary = 'custom': it has a scale for "
            "each token.",
        )
    known = located(recipe, source.manifest.source.commit, source.folder, needed=("calibration.path",))
    assert known.calibration is not None
    return calibration_windows(known.calibration, source.tokenizer(), source.config, progress)


def _chosen(settings: dict[str, Any]) -> Export:
    try:
        return Export(**settings)
    except ValidationError as e:
        first = e.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            option = f"--{first['loc'][0]}".replace("_", "-")
            several = isinstance(first["input"], list | tuple)
            given = ",".join(map(str, first["input"])) if several else str(first["input"])
            raise RecipeError(f"{option} {given}: {reason}") from e
        raise RecipeError(f"these export options do not go together: {reason}") from e
