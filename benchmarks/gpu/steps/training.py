"""If time is left: a checkpoint for tests, trained longer than the embedded demo (demo/train.py)."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from bench import ROOT, Bench

sys.path.append(str(ROOT / "demo"))
import train  # noqa: E402


def demo(bench: Bench) -> None:
    """Six times the tokens of the embedded demo, of the same text and with its tokenizer."""
    out = bench.out / "trained"
    out.mkdir(exist_ok=True)
    shutil.copy2(ROOT / "demo" / "main" / "tokenizer.json", out)
    steps, batch = bench.sized((15000, 16), (2, 1))
    words = ["train.py", "--out", out, "--steps", steps, "--batch", batch, "--no-compile", "--device", bench.device]
    with patch.object(sys, "argv", [str(word) for word in words]):
        if bench.dry:
            text = Path(train.__file__).read_text()[:5000]
            with patch.multiple(train, training_documents=lambda: [text], stdlib_documents=lambda part: [("", text)]):
                train.main()
        else:
            torch.set_float32_matmul_precision("high")
            train.main()
    for name, value in json.loads((out / "summary.json").read_text()).items():
        bench.say(name, value)
