"""An artifact with every tap, and the plain checkpoint that its weights stand for."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import hugging_face, save_checkpoint
from places import ROOT

from pythia_export.commands.dequantize import dequantize
from pythia_export.commands.export import export
from pythia_export.commands.quantize import quantize
from pythia_export.model.hooks import hooks_of
from pythia_export.model.neox import NeoXConfig
from pythia_export.recipe import parse_recipe

CONFIG = NeoXConfig(4096, 128, 3, 2, 256, max_positions=64)
RECIPE = {
    "quantize": {"method": "rtn", "bits": 4, "group_size": 32},
    "verify": {"source": "python-stdlib", "tokens": 256, "sequence_length": 32},
}


@pytest.fixture(scope="session")
def hooks() -> tuple[str, ...]:
    """Every place of that model."""
    return hooks_of(["all"], CONFIG)


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """An artifact of int4 with every tap, and its weights as a plain checkpoint."""
    at = tmp_path_factory.mktemp("made")
    save_checkpoint(hugging_face(CONFIG), CONFIG, at / "model", ROOT / "demo" / "main" / "tokenizer.json")
    quantize(parse_recipe(RECIPE | {"model": {"path": str(at / "model")}}), at / "weights")
    export(at / "weights", at / "artifact", taps=["all"])
    dequantize(at / "artifact", at / "plain")
    return at / "artifact", at / "plain"
