"""`export`: a graph over weights that are quantised already."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from pydantic import ValidationError

from ..artifact import Artifact, Staging
from ..base.errors import RecipeError
from ..base.progress import SILENT, Progress
from ..graph.decoder import build_decoder
from ..graph.targets import require_fit, warnings
from ..recipe import Export
from ..weights.layout import layout_of
from ..weights.names import DATA_FILE, MODEL, data_name, graph_name
from .contents import GENAI, arrange, origin_of, save_graph, write_configs
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
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Outcome:
    """Build the graph over quantised weights (of `quantize`, or of another artifact), unverified."""
    source = Artifact.open(weights)
    source.check()
    changes = {
        "rotary": rotary, "accuracy_level": accuracy_level, "target": target, "kv_cache": kv_cache, "layout": layout,
    }  # fmt: skip
    chosen = source.recipe.export.model_dump() | {k: v for k, v in changes.items() if v is not None}
    try:
        known = located(source.recipe, source.manifest.source.commit, source.folder, needed=())
        recipe = known.model_copy(update={"export": Export(**chosen)})
    except ValidationError as e:
        first = e.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            option = f"--{first['loc'][0]}".replace("_", "-")
            raise RecipeError(f"{option} {first['input']}: {reason}") from e
        raise RecipeError(f"these export options do not go together: {reason}") from e
    began = time.perf_counter()
    places = layout_of(recipe, source.config)
    require_fit(source.config, places, recipe.export)
    for warning in warnings(places, recipe.export):
        progress.note(warning)
    with Staging(out, overwrite) as staging:
        made_here = (MODEL, graph_name(source.recipe), GENAI, "parity.json", "report.html", "README.md")
        kept = [name for name in source.manifest.files if name not in made_here]
        with progress.track("Copying", len(kept), "files") as advance:
            for name in kept:
                to = staging.folder / (DATA_FILE if name == data_name(source.recipe) else name)
                to.parent.mkdir(exist_ok=True)
                shutil.copyfile(source.folder / name, to)
                advance(1)
        save_graph(build_decoder(source.config, places, recipe.export), staging.folder)
        write_configs(staging.folder, source.config, recipe, source.generation)
        arrange(staging.folder, recipe)
        source.require_unchanged()
        staging.publish(origin_of(recipe, source.manifest.source, source.manifest.calibration, recipe.export))
    return Outcome(staging.out, source.quantization, None, {"export": time.perf_counter() - began})
