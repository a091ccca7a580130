"""What `effort = "best"` gives beside the default, on the same start: quality with paired intervals, and time.

    python benchmarks/effort.py [--grids 4:row 4:32 3:row 2:32] [--samples 256] [--tokens 131072] [--work FOLDER]
         [--efforts default best]

Each grid is rounded as benchmarks/quality.py does: the 24 linears of the layers, embedding and head in float. Once by
the defaults, once by `best`, as it is rounded and as it is once trained; all are scored on the same held-out text. With
--work, what was made is kept there and not made again, so that one grid can be timed apart from the scoring.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from quality import Scorer, _interval, _share
from rich.console import Console

from pythia_export.base.compute import Compute
from pythia_export.base.machine import machine
from pythia_export.calibrate import quantize_stream
from pythia_export.calibrate.end_to_end import train
from pythia_export.checkpoint import open_checkpoint, pull
from pythia_export.corpus import calibration_windows, verify_windows
from pythia_export.recipe import Calibration, Model, Quantize, Verify
from pythia_export.weights.layout import layout
from pythia_export.weights.reader import WeightsReader
from pythia_export.weights.writer import WeightsWriter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="demo", help="`demo`, `demo@REVISION`, or a folder (%(default)s)")
    parser.add_argument("--grids", nargs="*", default=["4:row", "4:32", "3:row", "2:32"], metavar="BITS:GROUP")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--efforts", nargs="*", choices=["default", "best"], default=["default", "best"])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--make", action="store_true", help="round and train only, and say how long it took")
    args = parser.parse_args()

    name, _, revision = args.checkpoint.partition("@")
    model = Model(id=name, revision=revision or "main") if name == "demo" else Model(path=Path(args.checkpoint))
    checkpoint = open_checkpoint(pull(model))
    config, tokenizer = checkpoint.config, checkpoint.tokenizer()
    text: dict[str, Any] = {"source": "python-stdlib", "sequence_length": config.max_positions}
    ids = calibration_windows(Calibration(samples=args.samples, **text), tokenizer, config).ids
    bar = Console(stderr=True)
    score = None
    if not args.make:
        held_out = verify_windows(Verify(tokens=args.tokens, **text), tokenizer, config)
        score = Scorer(checkpoint, held_out.ids, held_out.documents)
        print(
            f"{args.checkpoint}: {score.original.size:,} held-out tokens; calibrated on {ids.size:,} tokens; ", end=""
        )
        print(f"{machine()}\n\n| bits | group | effort | dNLL | loss recovered | KL | KL recovered | time |")
        print("|---|---|---|---|---|---|---|---|")

    for grid in args.grids:
        bits, group = (-1 if part == "row" else int(part) for part in grid.split(":"))
        asked: dict[str, Any] = {"bits": bits, "group_size": group, "head": {"method": "none"}, "embedding": "float32"}
        rounded, hard = Quantize(**asked), Quantize(**asked, effort="best")
        places = layout(config, rounded, "float32")
        with tempfile.TemporaryDirectory() as scratch:
            folder = args.work or Path(scratch)
            folder.mkdir(exist_ok=True)
            rows = {"default": "default"} if "default" in args.efforts else {}
            rows |= {"rounded": "best, not trained", "best": "best"} if "best" in args.efforts else {}
            paths = {word: folder / f"{grid.replace(':', '-')}.{word}.bin" for word in ("rtn", *rows)}
            told = folder / f"{grid.replace(':', '-')}.json"
            seconds = json.loads(told.read_text()) if told.exists() else {}
            nearest = rounded.model_copy(update={"method": "rtn"})
            for word, quantize in (("rtn", nearest), ("default", rounded), ("rounded", hard)):
                if word in paths and not paths[word].exists():
                    began = time.perf_counter()
                    held = Compute(memory_gb=0.0 if word == "rounded" else 4.0)  # too little for training
                    with WeightsWriter(paths[word], layout(config, quantize, "float32")) as writer:
                        quantize_stream(checkpoint, writer, None if word == "rtn" else ids, held)
                    seconds[word] = time.perf_counter() - began
            if "best" in paths and not paths["best"].exists():
                shutil.copyfile(paths["rounded"], paths["best"])
                training, result = train(checkpoint, paths["best"], places, ids, Compute())
                if result is not None:
                    os.replace(result, paths["best"])
                seconds["best"] = seconds.get("rounded", 0.0) + training.seconds
                bar.print(f"{grid}: {training.to_json()}, {torch.get_num_threads()} threads")
            told.write_text(json.dumps(seconds))
            if score is None:
                continue
            found = {word: score(WeightsReader(path, places)) for word, path in paths.items()}
        for word, told_as in rows.items():
            one, of = found[word], found["rtn"]
            print(
                f"| {bits} | {'row' if group == -1 else group} | {told_as} | {_interval(one['dnll'])} | "
                f"{_share(one['dnll']['value'], of['dnll']['value'], of['dnll']['low'] > 0)} | {one['kl']:.5f} | "
                f"{_share(one['kl'], of['kl'])} | {seconds.get(word, float('nan')):.0f} s |",
                flush=True,
            )
        if len(args.efforts) < 2:
            continue
        change = score.difference(found["best"]["nll"], found["default"]["nll"])
        print(
            f"| {bits} | {'row' if group == -1 else group} | best - default | {_interval(change)} | | | | |", flush=True
        )


if __name__ == "__main__":
    main()
