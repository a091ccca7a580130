"""Small artifacts with random weights, one of each form, in folders that tests/survival/tools.py reads."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from models import InMemory, export_model, hugging_face, on_disk, small_config  # noqa: E402

from pythia_export.recipe import Export, Quantize  # noqa: E402

FORMS = {
    "`custom`": Export(),
    "`custom`, level 4": Export(accuracy_level=4),
    "`custom`, float16 cache": Export(kv_cache="float16"),
    "`custom`, int8 cache": Export(kv_cache="int8"),
    "`gqa`": Export(rotary="gqa"),
    "`gqa`, int8 cache": Export(rotary="gqa", kv_cache="int8"),
    "`onnx`": Export(rotary="onnx"),
}


def write_forms(out: Path) -> dict[str, Path]:
    config = small_config(layers=2)
    source, folders = InMemory(config, on_disk(hugging_face(config))), {}
    for number, (name, export) in enumerate(FORMS.items()):
        folders[name] = out / str(number)
        folders[name].mkdir(parents=True, exist_ok=True)
        made = export_model(source, folders[name], Quantize(method="rtn", bits=4, group_size=32), export)
        np.savez(folders[name] / "feeds.npz", **made.feeds(np.arange(5, 17)[None], np.ones((1, 12), np.int64)))
    return folders
