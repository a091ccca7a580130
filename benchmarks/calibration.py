"""What little or foreign calibration text does: defaults and the best effort beside plain GPTQ, on the demo.

    python benchmarks/calibration.py [--grids 4:row 2:32] [--windows 4 8 16 64] [--texts code prose random]
         [--efforts default best] [--tokens 16384] [--json FILE]

The demo was trained on code (Python's standard library). Calibration text is such code, prose (this project's pages,
docs/ and README.md) or random tokens; windows have 512 tokens. Each result is scored on held-out code and, calibrated
on code, on prose too: KL from the original, whose difference from plain GPTQ's (the first windows of the same text, the
same grid, no clipping, beam, error correction or coupling) is paired by token, its interval by window. Embedding and
head stay in float.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from quantisers import outputs, scored

from pythia_export.base.machine import machine
from pythia_export.calibrate import quantize_stream
from pythia_export.checkpoint import Checkpoint, open_checkpoint, pull
from pythia_export.corpus import calibration_windows, verify_windows
from pythia_export.model.neox import HEAD
from pythia_export.proof.statistics import clustered_mean
from pythia_export.recipe import Calibration, Model, Quantize, Verify
from pythia_export.weights.layout import layout
from pythia_export.weights.reader import WeightsReader
from pythia_export.weights.writer import WeightsWriter

ROOT = Path(__file__).resolve().parents[1]
PLAIN = {"clip": False, "beam": 1, "error_correction": False, "fisher": False}
EFFORTS: dict[str, dict[str, Any]] = {"fast": {"effort": "fast"}, "default": {}, "best": {"effort": "best"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grids", nargs="*", default=["4:row", "2:32"], metavar="BITS:GROUP")
    parser.add_argument("--windows", nargs="*", type=int, default=[4, 8, 16, 64])
    parser.add_argument("--texts", nargs="*", default=["code", "prose", "random"], choices=["code", "prose", "random"])
    parser.add_argument("--efforts", nargs="*", default=["default", "best"], choices=[*EFFORTS])
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    checkpoint = open_checkpoint(pull(Model(id="demo")))
    most = max(args.windows)
    with tempfile.TemporaryDirectory() as folder:
        prose = _prose(checkpoint, Path(folder), most + args.tokens // 512)
    code: dict[str, Any] = {"source": "python-stdlib", "sequence_length": 512}
    texts = {
        "code": calibration_windows(Calibration(samples=most, **code), checkpoint.tokenizer(), checkpoint.config).ids,
        "prose": prose[:most],
        "random": np.random.default_rng(0).integers(1, checkpoint.config.vocab_size, (most, 512)),
    }
    held_out = {
        "code": verify_windows(Verify(tokens=args.tokens, **code), checkpoint.tokenizer(), checkpoint.config).ids,
        "prose": prose[most:],
    }
    head = checkpoint.tensor(f"{HEAD}.weight").float()
    original = {name: outputs(checkpoint, checkpoint, ids) for name, ids in held_out.items()}
    print(f"{args.tokens:,} tokens of each held-out text; {machine()}\n")
    print("| bits | group | calibrated on | windows | scored on | RTN | plain GPTQ | effort | KL | beside plain GPTQ |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    for grid in args.grids:
        bits, group = (-1 if part == "row" else int(part) for part in grid.split(":"))

        def divergence(
            ids: np.ndarray | None, on: list[str], bits: int = bits, group: int = group, **settings: Any
        ) -> dict[str, np.ndarray]:
            quantize = Quantize(bits=bits, group_size=group, head={"method": "none"}, embedding="float32", **settings)
            places = layout(checkpoint.config, quantize, "float32")
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "weights"
                with WeightsWriter(path, places) as writer:
                    quantize_stream(checkpoint, writer, ids)
                found = WeightsReader(path, places)
                return {
                    name: scored(outputs(found, checkpoint, held_out[name]), original[name], head, held_out[name])[1]
                    for name in on
                }

        nearest = divergence(None, ["code", "prose"], method="rtn")
        for text in args.texts:
            on = ["code", "prose"] if text == "code" else ["code"]
            for windows in args.windows:
                ids = texts[text][:windows]
                plain = divergence(ids, on, **PLAIN)
                for effort in args.efforts:
                    done = divergence(ids, on, **EFFORTS[effort])
                    for name in on:
                        clusters = np.repeat(np.arange(len(held_out[name])), 511)
                        change = clustered_mean(done[name] - plain[name], clusters)
                        kl = [float(x.mean()) for x in (nearest[name], plain[name], done[name])]
                        print(
                            f"| {bits} | {'row' if group == -1 else group} | {text} | {windows} | {name} | {kl[0]:.5f} "
                            f"| {kl[1]:.5f} | {effort} | {kl[2]:.5f} "
                            f"| {change.value:+.5f} [{change.low:+.5f}, {change.high:+.5f}] |",
                            flush=True,
                        )
                        row = {"grid": grid, "calibrated": text, "windows": windows, "scored": name, "effort": effort}
                        of_kl = {"rtn": kl[0], "plain": kl[1], "kl": kl[2]}
                        rows.append(row | of_kl | {"beside_plain": [change.value, change.low, change.high]})
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


def _prose(checkpoint: Checkpoint, folder: Path, windows: int) -> np.ndarray:
    """Return windows of this project's pages."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    file = folder / "pages.json"
    file.write_text(json.dumps([{"text": page.read_text()} for page in pages]))
    section = Calibration(source="file", path=file, samples=windows, sequence_length=512)
    return calibration_windows(section, checkpoint.tokenizer(), checkpoint.config).ids


if __name__ == "__main__":
    main()
