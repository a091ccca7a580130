"""Checkpoints in folders: opened, edited, split, the demo without its upper layers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from processes import script
from safetensors.torch import load_file, save_file

from pythia_export.checkpoint import demo_folder, open_checkpoint, pull
from pythia_export.recipe import Model


def forked(command):
    _, path, *arguments = command  # the interpreter, and the script by its path
    return script(Path(path), *arguments)


def opened(folder):
    return open_checkpoint(pull(Model(path=folder)))


def demo_of(layers: int, folder: Path) -> Path:
    """The demo's first layers with all that is around them, for jobs whose every layer costs the same again."""
    shutil.copytree(demo_folder() / "main", folder)
    configured(folder, num_hidden_layers=layers)
    edit(folder, lambda whole: [whole.pop(name) for name in list(whole) if _layer(name) >= layers])
    return folder


def _layer(name: str) -> int:
    found = re.search(r"\.layers\.(\d+)\.", name)
    return int(found[1]) if found else -1


def split(folder) -> None:
    """The same checkpoint in two shards."""
    whole = load_file(folder / "model.safetensors")
    names = sorted(whole)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, part in halves.items():
        save_file({n: whole[n] for n in part}, folder / shard)
    index = {"weight_map": {n: shard for shard, part in halves.items() for n in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def edit(folder, change) -> None:
    whole = load_file(folder / "model.safetensors")
    change(whole)
    save_file(whole, folder / "model.safetensors")


def configured(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
