"""What `effort = "best"` gives beside the default, on the same start: quality with paired intervals, and time.

    python benchmarks/effort.py [--grids 4:row 4:32 3:row 2:32] [--samples 256] [--tokens 131072] [--work FOLDER]
         [--efforts default best] [--without NAME ...] [--leave-one-out]
         [--not-trained]

Each grid is rounded as benchmarks/quality.py does: the 24 linears of the layers, embedding and head in float. Once by
the defaults, once by `best`, as it is rounded and as it is once trained; all are scored on the same held-out text.
Times are the processor's, whatever else runs. The text that the original writes is the same for all grids: it is drawn
once, and its time is added to each. With --work, what was made is kept there and not made again.

--without leaves ingredients of `best` out, to see what each brings; some of them only here, the product has no switch.
--leave-one-out does so with each ingredient in turn, beside the whole of `best`; without training is `not trained`.
With --not-trained nothing is trained, and the text that the original writes is observed all the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from quality import Scorer, _interval, _share

from pythia_export.base.compute import Compute
from pythia_export.base.machine import machine
from pythia_export.calibrate import end_to_end, loop, quantize_stream
from pythia_export.checkpoint import Checkpoint, open_checkpoint, pull
from pythia_export.corpus import calibration_windows, verify_windows
from pythia_export.recipe import Calibration, Model, Quantize, Verify
from pythia_export.records.quantization import Training
from pythia_export.rounding import attention
from pythia_export.weights.layout import layout
from pythia_export.weights.reader import WeightsReader
from pythia_export.weights.writer import WeightsWriter

WITHOUT: dict[str, list[tuple[Any, str, Any]]] = {
    "basis": [(attention, "FARTHEST", 0.0)],  # every basis is too far
    "windows": [(Quantize, "measures_attention", property(lambda _: False))],  # nor a basis: it needs them
    "widths": [(Quantize, "stretches", property(lambda _: (1.0,)))],
    "passes": [(Quantize, "passes", property(lambda _: 8))],
    "beam": [],  # of 64; 16 as by default
    "own text": [(end_to_end, "windows_drawn", lambda *_: 0)],
    "own text in GPTQ": [(loop, "reads_own_text", lambda _: False)],
    "training": [(end_to_end, "why_not", lambda *_: "left out")],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="demo", help="`demo`, `demo@REVISION`, or a folder (%(default)s)")
    parser.add_argument("--grids", nargs="*", default=["4:row", "4:32", "3:row", "2:32"], metavar="BITS:GROUP")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--efforts", nargs="*", choices=["default", "best"], default=["default", "best"])
    parser.add_argument("--without", nargs="*", choices=list(WITHOUT), default=[], help="ingredients of `best`")
    parser.add_argument("--leave-one-out", action="store_true", help="`best`, and `best` without each ingredient")
    parser.add_argument("--not-trained", action="store_true", help="leave `best` as it was rounded")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--make", action="store_true", help="round and train only, and say how long it took")
    args = parser.parse_args()

    name, _, revision = args.checkpoint.partition("@")
    model = Model(id=name, revision=revision or "main") if name == "demo" else Model(path=Path(args.checkpoint))
    checkpoint = open_checkpoint(pull(model))
    config, tokenizer = checkpoint.config, checkpoint.tokenizer()
    text: dict[str, Any] = {"source": "python-stdlib", "sequence_length": config.max_positions}
    ids = calibration_windows(Calibration(samples=args.samples, **text), tokenizer, config).ids
    score = None
    if not args.make:
        held_out = verify_windows(Verify(tokens=args.tokens, **text), tokenizer, config)
        score = Scorer(checkpoint, held_out.ids, held_out.documents)
        left_out = f"without {', '.join(args.without)}; " if args.without else ""
        print(
            f"{args.checkpoint}: {score.original.size:,} held-out tokens; calibrated on {ids.size:,} tokens; ", end=""
        )
        print(f"{left_out}{machine()}, {torch.get_num_threads()} threads\n")
        print("| bits | group | effort | dNLL | loss recovered | KL | KL recovered | time |")
        print("|---|---|---|---|---|---|---|---|")

    draw = DrawnOnce()
    with patch.object(end_to_end, "draw", draw):
        for grid in args.grids:
            if not args.leave_one_out:
                _grid(grid, args, args.efforts, args.without, checkpoint, ids, score, draw)
                continue
            nothing = {"training"} | ({"own text"} if args.not_trained else set())
            for one in [[], *([x] for x in WITHOUT if x not in nothing)]:
                _grid(grid, args, ["best"], one, checkpoint, ids, score, draw)


def _grid(
    grid: str, args: argparse.Namespace, words: list[str], without: list[str], checkpoint: Checkpoint,
    ids: np.ndarray, score: Scorer | None, draw: DrawnOnce,
) -> None:  # fmt: skip
    """Round and train one grid by each effort of `words`, `best` without some ingredients; print a line for each."""
    bits, group = (-1 if part == "row" else int(part) for part in grid.split(":"))
    asked: dict[str, Any] = {
        "bits": bits, "group_size": group, "head": {"method": "none"}, "embedding": "float32",
    }  # fmt: skip
    beam = {"beam": 16} if "beam" in without else {}
    efforts = {
        "rtn": Quantize(**asked, method="rtn"),
        "default": Quantize(**asked),
        "best": Quantize(**asked, effort="best", **beam),
    }
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        for one in without:
            for where, called, value in WITHOUT[one]:
                stack.enter_context(patch.object(where, called, value))
        folder = args.work or Path(scratch)
        folder.mkdir(exist_ok=True)
        stem = "-".join([grid.replace(":", "-"), *(f"no-{one.replace(' ', '-')}" for one in without)])
        stem += "-not-trained" * args.not_trained
        told = folder / f"{stem}.json"
        seconds = json.loads(told.read_text()) if told.exists() else {}
        paths = {}
        for word in ("rtn", *words):
            paths[word] = folder / f"{stem}.{word}.bin"
            if not paths[word].exists() or _last(word) not in seconds:  # without its time it may not be trained
                seconds |= made(checkpoint, efforts[word], word, paths[word], ids, draw, trained=not args.not_trained)
                told.write_text(json.dumps(seconds))
            if word == "best":
                paths = {**paths, "best": beside(paths[word]), "trained": paths[word]}
        if score is None:
            return
        places = layout(checkpoint.config, efforts["default"], "float32")
        found = {word: score(WeightsReader(path, places)) for word, path in paths.items()}
    of, at = found["rtn"], f"| {bits} | {'row' if group == -1 else group}"
    but = f" but {', '.join(without)}" if args.leave_one_out and without else ""
    rows = {"default": "default", "best": f"best{but}, not trained", "trained": f"best{but}"}
    for word, called in rows.items():
        if word in found and not (word == "trained" and args.not_trained):
            one = found[word]
            print(
                f"{at} | {called} | {_interval(one['dnll'])} | "
                f"{_share(one['dnll']['value'], of['dnll']['value'], of['dnll']['low'] > 0)} | "
                f"{one['kl']:.5f} | {1 - one['kl'] / of['kl']:.1%} | {seconds[word]:.0f} s |",
                flush=True,
            )
    if {"default", "trained"} <= found.keys() and not args.not_trained:
        change = score.difference(found["trained"]["nll"], found["default"]["nll"])
        print(f"{at} | best - default | {_interval(change)} | | | | |", flush=True)


class DrawnOnce:
    """Text that the original writes; what was drawn before is not drawn again, and `spared` says the time of that."""

    def __init__(self) -> None:
        self._draw, self._found, self.spared = end_to_end.draw, {}, 0.0

    def __call__(self, source: Any, windows: np.ndarray, count: int, compute: Compute) -> np.ndarray:
        key, began = (windows.tobytes(), count), time.process_time()
        if key in self._found:
            self.spared += self._found[key][1]
        else:
            text = self._draw(source, windows, count, compute)
            self._found[key] = text, time.process_time() - began
        return self._found[key][0]


def made(
    checkpoint: Checkpoint,
    quantize: Quantize,
    word: str,
    path: Path,
    ids: np.ndarray,
    draw: DrawnOnce,
    *,
    trained: bool,
) -> dict[str, float]:
    """Write `path` and, of the best effort, what it was before training beside it; return seconds of the processor."""
    seconds: dict[str, float] = {}
    train, began, spared = loop.train, time.process_time(), draw.spared

    def noted(source: Any, written: Path, *rest: Any) -> Any:
        shutil.copyfile(written, beside(path))
        seconds[word] = time.process_time() - began + draw.spared - spared
        if not trained:
            return Training(done=False, reason="left out"), None
        found = train(source, written, *rest)
        print(f"{path.name}: {found[0].to_json()}", file=sys.stderr, flush=True)
        return found

    with (
        WeightsWriter(path, layout(checkpoint.config, quantize, "float32")) as writer,
        patch.object(loop, "train", noted),
    ):
        quantize_stream(checkpoint, writer, None if word == "rtn" else ids, Compute())
    seconds[_last(word)] = time.process_time() - began + draw.spared - spared
    return seconds


def _last(word: str) -> str:
    return "trained" if word == "best" else word


def beside(path: Path) -> Path:
    return path.with_suffix(".rounded")


if __name__ == "__main__":
    main()
