"""What a layer takes to quantise, by this build and by an older one, in turn.

    git worktree add FOLDER COMMIT && cp -r build/kernels FOLDER/build/
    python benchmarks/builds.py FOLDER [--size 410m] [--windows 7] [--length 2048] [--rounds 2] [--json FILE]

Random weights of the size's shapes, one layer, defaults, no head and a small vocabulary: embedding and head are the
same work in both. A layer's time is that of what follows its width alone (rounding, and the sensitivity on 8,192
tokens), and of what follows the text too (all else); the last column has it for 32 windows of 2,048 tokens, by which
the second part is multiplied. Each run is a process of its own; medians. Both builds use the kernels of FOLDER and of
this tree as they are built.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WANTED = 32 * 2048  # tokens
VOCABULARY = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout of the other build")
    parser.add_argument("--size", default="410m")
    parser.add_argument("--windows", type=int, default=7)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--in-process", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_process:
        return print(json.dumps(_layer(args.in_process, args.windows, args.length)))

    from memory import machine, write_checkpoint

    from pythia_export.model.suite import geometry

    config = geometry(f"EleutherAI/pythia-{args.size}")
    if config is None:
        parser.error(f"{args.size} is no size of the suite")
    config = dataclasses.replace(config, num_layers=1, vocab_size=VOCABULARY)
    found: dict[str, list[dict[str, float]]] = {"before": [], "now": []}
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(config, Path(folder))
        for _ in range(args.rounds):
            for name, root in (("now", ROOT), ("before", args.before.resolve())):
                command = [sys.executable, __file__, str(root), "--in-process", folder, *sys.argv[2:]]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found[name].append(json.loads(done.stdout))
    tokens = args.windows * args.length
    print(f"{machine()}; one layer of pythia-{args.size}'s shapes, {args.windows} x {args.length} tokens\n")
    print("| build | sensitivity | rounding | the rest | a layer | peak memory | a layer, 32 x 2,048 tokens |")
    print("|---|---|---|---|---|---|---|")
    rows: dict[str, dict[str, float]] = {}
    for name, runs in found.items():
        row = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        row["layer"] = row["sensitivity"] + row["rounding"] + row["rest"]
        row["wanted"] = row["layer"] + row["rest"] * (WANTED / tokens - 1)
        rows[name] = row
        times = " | ".join(f"{row[key]:.1f} s" for key in ("sensitivity", "rounding", "rest", "layer"))
        print(f"| {name} | {times} | {row['peak'] / 2**20:,.0f} MiB | {row['wanted']:.0f} s |")
    of = [
        f"{rows['now'][key] / rows['before'][key]:.2f}"
        for key in ("sensitivity", "rounding", "rest", "layer", "peak", "wanted")
    ]
    print(f"| now / before | {' | '.join(of)} |")
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "tokens": tokens, "builds": rows}, indent=2) + "\n")


def _layer(folder: str, windows: int, length: int) -> dict[str, Any]:
    """Quantise with the build in the folder that the command names: seconds of each part, peak memory in bytes."""
    root = sys.argv[1]
    sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
    sys.path.insert(0, root)
    import numpy as np
    import torch
    from memory import _Parts

    import pythia_export
    from pythia_export.base.compute import Compute
    from pythia_export.calibrate import quantize_stream
    from pythia_export.checkpoint import open_checkpoint, pull
    from pythia_export.recipe import Model, Quantize
    from pythia_export.runtime import peak_memory_bytes
    from pythia_export.weights.layout import layout
    from pythia_export.weights.writer import WeightsWriter

    assert Path(pythia_export.__file__).is_relative_to(root), pythia_export.__file__
    checkpoint, parts = open_checkpoint(pull(Model(path=folder))), _Parts()
    places = layout(checkpoint.config, Quantize(head={"method": "none"}), "float32")
    ids = np.random.default_rng(0).integers(0, checkpoint.config.vocab_size, (windows, length))
    with tempfile.TemporaryDirectory() as out, WeightsWriter(Path(out) / "weights", places) as writer:
        record = quantize_stream(checkpoint, writer, ids, Compute(torch.device("cpu"), parts))
    rounding = sum(linear.seconds for linear in record.linears)
    return {
        "sensitivity": parts.seconds["Measuring sensitivity"], "rounding": rounding,
        "rest": sum(layer.seconds for layer in record.layers) - rounding, "peak": float(peak_memory_bytes()),
    }  # fmt: skip


if __name__ == "__main__":
    main()
