"""Small sweeps over small models: seconds."""

from __future__ import annotations

import argparse
import json
import optparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import hugging_face, save_checkpoint, small_config

from pythia_export.checkpoint import demo_folder
from pythia_export.model.neox import NeoXConfig
from pythia_export.sweep.schema import SweepFile, parse

TOKENIZER = demo_folder() / "main" / "tokenizer.json"
CONFIG = small_config(layers=2, vocab=4096, positions=128)
SCRATCH = tempfile.TemporaryDirectory()
RTN = {"method": "rtn", "group_size": 32}


def checkpoints(root: Path, *revisions: str, seed: int = 0, config: NeoXConfig = CONFIG) -> str:
    """Random models of two layers, one a revision; the template of their paths."""
    for i, revision in enumerate(revisions):
        save_checkpoint(hugging_face(config, seed + i), config, root / revision, TOKENIZER)
    return str(root / "{revision}")


def text(samples: int = 8, tokens: int = 1024, length: int = 128) -> dict[str, Any]:
    """Of a module each: looking through the whole standard library takes longer than these models do."""
    sections = {}
    for name, module in (("calibration", optparse), ("verify", argparse)):
        path = Path(SCRATCH.name) / f"{name}.txt"
        path.write_text(Path(module.__file__).read_text(encoding="utf-8"), encoding="utf-8")
        sections[name] = {"source": "file", "path": str(path), "sequence_length": length}
    sections["calibration"]["samples"] = samples
    sections["verify"]["tokens"] = tokens
    return sections


def sweep(
    models: Any, quantize: Any, revisions: str = "all", *, evict: bool = False, texts: dict[str, Any] | None = None,
    **resources: Any,
) -> SweepFile:  # fmt: skip
    """models: a template of paths, or what `models` says."""
    if isinstance(models, str):
        models = [{"name": "mine", "path": models}]
    raw = {
        "sweep": {"models": models, "revisions": revisions, "evict": evict},
        "quantize": quantize,
        "resources": {"cores": 1, "memory_gb": 1.0} | resources,
    }
    return parse(raw | (texts or text()), Path())


def toml(path: Path, file: SweepFile) -> Path:
    """The same as a file, in TOML, of which JSON's values are a part."""

    def section(name: str, values: dict[str, Any]) -> list[str]:
        inline = {k: v for k, v in values.items() if v is not None and v != {}}
        return [name, *(f"{k} = {_value(v)}" for k, v in inline.items())]

    raw = file.model_dump(mode="json")
    lines = section("[sweep]", raw["sweep"])
    for quantize in raw["quantize"]:
        lines += section("[[quantize]]", quantize)
    for name in ("calibration", "verify", "resources"):
        given = file.model_dump(mode="json", exclude_unset=True).get(name)
        lines += section(f"[{name}]", given) if given else []
    path.write_text("\n".join(lines) + "\n")
    return path


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_value(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value)


def content(record: dict[str, Any]) -> dict[str, Any]:
    """Of a result, all but when and where it was made."""
    made = ("seconds", "peak_memory_bytes", "when", "attempt", "machine", "device")
    return {name: value for name, value in record.items() if name not in made}
