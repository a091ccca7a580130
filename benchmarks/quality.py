"""What rounding costs the demo checkpoint, and what GPTQ gives back: paired differences on held-out text.

    python benchmarks/quality.py [--revision main] [--tokens 131072] [--json FILE]

Each grid quantises the linears of the six layers (embedding and head stay in float16), through the same stream and
packing as an artifact, and is scored in torch on the matrices that were stored. dNLL is against the original, in
nats a token; the last column is GPTQ minus RTN on the same tokens. Errors are clustered by document.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from pythia_export.checkpoint import open_checkpoint, pull
from pythia_export.corpus import calibration_windows, verify_windows
from pythia_export.graph.decoder import DATA_FILE
from pythia_export.graph.layout import layout
from pythia_export.parity.metrics import log_softmax
from pythia_export.parity.reference import Reference
from pythia_export.parity.statistics import clustered_mean
from pythia_export.recipe import Calibration, Model, Quantize, Verify
from pythia_export.stream import quantize_stream
from pythia_export.weights import WeightsReader, WeightsWriter

GRIDS = [(bits, group) for bits in (8, 4, 3, 2) for group in (-1, 32)]


def losses(source, config, ids: np.ndarray) -> np.ndarray:
    """Negative log-likelihood [N, S - 1] of each window's tokens, nats."""
    reference = Reference(source, config, ids, "")
    out = []
    for i, window in enumerate(ids):
        rows = [log_softmax(part) for part in np.array_split(reference.logits(i)[:-1], 4)]
        out.append(-np.take_along_axis(np.concatenate(rows), window[1:, None], -1)[:, 0])
    return np.stack(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--revision", default="main")
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    checkpoint = open_checkpoint(pull(Model(id="demo", revision=args.revision)))
    config, tokenizer, text = checkpoint.config, checkpoint.tokenizer(), {"source": "python-stdlib"}
    length = config.max_positions
    calibration = calibration_windows(Calibration(samples=64, sequence_length=length, **text), tokenizer, config)
    held_out = verify_windows(Verify(tokens=args.tokens, sequence_length=length, **text), tokenizer, config)
    clusters = np.repeat(held_out.documents, length - 1)
    original = losses(checkpoint, config, held_out.ids)

    rows = []
    for bits, group in track(GRIDS, "grids", console=Console(stderr=True)):
        row: dict = {"bits": bits, "group_size": group}
        nll = {}
        for method in ("rtn", "gptq"):
            quantize = Quantize(method=method, bits=bits, group_size=group, head={"method": "none"})
            places = layout(config, quantize, "float32")
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / DATA_FILE
                with WeightsWriter(path, places) as writer:
                    ids = calibration.ids if method == "gptq" else None
                    record = quantize_stream(checkpoint, quantize, places, "float32", ids, writer)
                nll[method] = losses(WeightsReader(path, places, config), config, held_out.ids)
            row[method] = asdict(clustered_mean((nll[method] - original).ravel(), clusters))
        row["linears_below_rtn"] = sum(x["loss"] < x["rtn_loss"] for x in record["linears"])
        row["linears"] = len(record["linears"])
        row["difference"] = asdict(clustered_mean((nll["gptq"] - nll["rtn"]).ravel(), clusters))
        row["recovered"] = 1 - row["gptq"]["value"] / row["rtn"]["value"]
        rows.append(row)

    print(f"demo {args.revision}: {original.size:,} held-out tokens of {len(set(clusters))} documents, ", end="")
    print(f"perplexity {np.exp(original.mean()):.3f}; GPTQ calibrated on {calibration.ids.size:,} tokens\n")
    print("| bits | group | RTN dNLL | GPTQ dNLL | recovered | GPTQ - RTN | linears below RTN |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [f"{row[k]['value']:.5f} [{row[k]['low']:.5f}, {row[k]['high']:.5f}]" for k in KEYS]
        group = "row" if row["group_size"] == -1 else row["group_size"]
        share = f"{row['recovered']:.0%}" if row["rtn"]["low"] > 0 else "noise"
        below = f"{row['linears_below_rtn']} of {row['linears']}"
        print(f"| {row['bits']} | {group} | {cells[0]} | {cells[1]} | {share} | {cells[2]} | {below} |")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


KEYS = ("rtn", "gptq", "difference")

if __name__ == "__main__":
    main()
