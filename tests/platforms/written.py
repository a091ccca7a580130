"""What the platforms' runtimes are given to run: single products, and small decoders of random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "kernels")]

from models import InMemory, export_model, hugging_face, on_disk, small_config  # noqa: E402
from test_narrow import product  # noqa: E402

from pythia_export.recipe import Export, Quantize  # noqa: E402

ROWS = (1, 2, 5, 16, 33)
PRODUCTS = ((2, 32, 768), (2, 64, 250), (3, 16, 250), (3, 128, 768), (4, 32, 1024), (4, 128, 768), (8, 64, 250))
CONFIG = small_config()


def write_products(folder: Path) -> None:
    """Write products that nothing but our kernel can run, each with `A` and the numbers of `rows` to take of it."""
    for bits, block, depth in PRODUCTS:
        for symmetric in (True, False):
            x, model, _ = product(depth, 37, bits, block, 4, symmetric)
            del model.functions[:]
            name = f"{bits} bits, blocks of {block}, {'symmetric' if symmetric else 'with zero points'}"
            onnx.save(model, folder / f"{name}.onnx")
            np.savez(folder / f"{name}.npz", A=x, rows=ROWS)


def write_decoders(folder: Path) -> dict[str, int]:
    """Write decoders of 2, 3, 4 and 8 bits into folders of their own; return each one's accuracy level."""
    source, levels = InMemory(CONFIG, on_disk(hugging_face(CONFIG))), {}
    for bits in (2, 3, 4, 8):
        for level in (0, 4):
            scheme = {"method": "rtn", "bits": bits, "group_size": 32}
            name = f"decoder of {bits} bits at level {level}"
            (folder / name).mkdir()
            export_model(source, folder / name, Quantize(**scheme, head=scheme), Export(accuracy_level=level))
            (folder / name / "config.json").write_text(json.dumps(CONFIG.to_dict() | {"eos_token_id": None}))
            levels[name] = level
    return levels
