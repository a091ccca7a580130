"""A small GPT-NeoX of random weights with the demo's tokenizer, to be quantised: FOLDER."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))

from models import hugging_face, save_checkpoint, small_config  # noqa: E402
from places import ROOT  # noqa: E402

if __name__ == "__main__":
    config, demo = small_config(vocab=4096), ROOT / "demo" / "main"
    folder = save_checkpoint(hugging_face(config), config, Path(sys.argv[1]), demo / "tokenizer.json")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        shutil.copyfile(demo / name, folder / name)
