"""What the folder of an artifact holds beside its weights: graph, configurations, manifest, reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx

from ..artifact import Parity, Quantization
from ..base.machine import versions
from ..graph.cache_scales import CacheScales
from ..graph.consumers import config_json, genai_config_json
from ..graph.decoder import build_decoder, kv_cache, located
from ..graph.targets import tapped_hooks
from ..model.generation import Generation
from ..model.neox import NeoXConfig
from ..recipe import Export, Recipe
from ..records import manifest
from ..records.manifest import Cache, Calibration, Imported, Origin, Source
from ..report.card import model_card
from ..report.html import render_report
from ..weights.layout import Layout
from ..weights.names import DATA_FILE, MODEL, TAPS, data_name, graph_name
from .whereabouts import is_path, last_part, remember, without_paths

GENAI = "genai_config.json"


def save_graph(model: onnx.ModelProto, folder: Path) -> None:
    (folder / MODEL).write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(folder / MODEL), full_check=True)


def save_taps(
    folder: Path, config: NeoXConfig, layout: Layout, export: Export, scales: CacheScales | None = None
) -> None:
    """Write the graph that gives values from inside the model, where the export asks for one."""
    if data := taps_graph(config, layout, export, scales):
        (folder / TAPS).write_bytes(data)
        onnx.checker.check_model(str(folder / TAPS), full_check=True)


def taps_graph(config: NeoXConfig, layout: Layout, export: Export, scales: CacheScales | None = None) -> bytes:
    """Return the tapped graph of an export, over flat weights; nothing where no taps are asked for."""
    if not export.taps:
        return b""
    hooks = tapped_hooks(config, layout, export)
    return bytes(build_decoder(config, layout, export, hooks, scales).SerializeToString())


def arrange(folder: Path, recipe: Recipe) -> None:
    """Bring flat weights in `folder`, and their graph where there is one, into the recipe's layout."""
    graph = graph_name(recipe)
    if graph is None:
        return
    (folder / graph).parent.mkdir(exist_ok=True)
    (folder / DATA_FILE).rename(folder / data_name(recipe))
    if not (folder / MODEL).is_file():  # weights alone, for graphs to come
        return
    model = onnx.load(folder / MODEL, load_external_data=False)
    (folder / graph).write_bytes(located(model, Path(data_name(recipe)).name))
    (folder / MODEL).write_bytes(located(model, data_name(recipe)))
    if (folder / TAPS).is_file():
        taps = onnx.load(folder / TAPS, load_external_data=False)
        (folder / TAPS).write_bytes(located(taps, data_name(recipe)))


def reading(graph: bytes, location: str) -> bytes:
    """Return a graph over flat weights as one that reads them from `location`."""
    return located(onnx.load_from_string(graph), location)


def write_configs(folder: Path, config: NeoXConfig, recipe: Recipe, generation: Generation) -> None:
    """What consumers read beside the graph."""
    write_json(folder / "config.json", config_json(config, recipe))
    genai = genai_config_json(config, recipe, generation)
    if genai is not None:
        write_json(folder / GENAI, genai)


def origin_of(
    recipe: Recipe,
    source: Source,
    calibration: Calibration | None,
    chosen: Export,
    imported: Imported | None = None,
    kv_scales: manifest.CacheScales | None = None,
) -> Origin:
    """Return what is published of a recipe; where its local files lie is kept on this machine alone."""
    remember(recipe, source.commit)
    cache = Cache(kv_cache=kv_cache(chosen), kv_dtype=chosen.cache_dtype)
    if kv_scales is not None:
        cache = cache.model_copy(update={"kv_scales": kv_scales})
    origin = Origin(
        versions=versions(),
        source=source.model_copy(update={"name": last_part(source.name)}) if is_path(source.name) else source,
        calibration=calibration,
        recipe=without_paths(recipe).model_dump(mode="json"),
        layout=cache,
    )
    return origin if imported is None else origin.model_copy(update={"imported": imported})


def reports(origin: Origin, quantization: Quantization, parity: Parity) -> dict[str, str]:
    return {
        "parity.json": json.dumps(parity.to_json(), indent=2, allow_nan=False) + "\n",
        "report.html": render_report(origin, quantization, parity),
        "README.md": model_card(origin, quantization, parity),
    }


def write_reports(folder: Path, origin: Origin, quantization: Quantization, parity: Parity) -> None:
    for name, text in reports(origin, quantization, parity).items():
        (folder / name).write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
