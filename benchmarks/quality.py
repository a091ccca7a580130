"""What rounding costs the demo checkpoint, what quantisation gives back, and what each ingredient has in it.

    python benchmarks/quality.py                 # every grid: RTN beside the defaults
    python benchmarks/quality.py --ingredients   # one grid: plain GPTQ, each ingredient added, each left out
    python benchmarks/quality.py --ends          # head and embedding alone, the layers in float
         [--revision main] [--samples 256] [--tokens 131072] [--bits 4] [--group -1] [--json FILE]

Each grid quantises the linears of the six layers (embedding and head stay in float), through the same stream and
packing as an artifact, and is scored in torch on the matrices that were stored. dNLL is against the original, in nats a
token, errors clustered by document; KL is the mean divergence from the original's predictions on every eighth window,
which has less noise. "Recovered" is ``1 - dNLL / dNLL(RTN)``, and likewise of KL; RTN is round-to-nearest on a
symmetric grid.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from pythia_export.base.machine import machine
from pythia_export.calibrate import allocate, quantize_stream
from pythia_export.checkpoint import Checkpoint, open_checkpoint, pull
from pythia_export.corpus import calibration_windows, verify_windows
from pythia_export.model.likelihood import log_softmax
from pythia_export.proof.reference import Reference, Tensors
from pythia_export.proof.statistics import clustered_mean
from pythia_export.recipe import Calibration, Model, Quantize, Verify
from pythia_export.weights.layout import layout
from pythia_export.weights.names import DATA_FILE
from pythia_export.weights.reader import WeightsReader
from pythia_export.weights.writer import WeightsWriter

GRIDS = ["8:row", "4:row", "4:128", "4:32", "3:row", "3:32", "2:row", "2:32"]  # bits:group
PLAIN = {"clip": False, "beam": 1, "error_correction": False, "fisher": False}
INGREDIENTS: dict[str, dict[str, Any]] = {
    "plain GPTQ": PLAIN,
    "... without act-order, fresh scales": PLAIN | {"act_order": False},
    "... on an asymmetric grid": PLAIN | {"symmetric": False},
    "... with clipping": PLAIN | {"clip": True},
    "... with a beam of 16": PLAIN | {"beam": 16},
    "... with error correction": PLAIN | {"error_correction": True},
    "... with coupled rows (Fisher)": PLAIN | {"fisher": True},
    "all": {},
    "all, asymmetric": {"symmetric": False},
    "all, without act-order": {"act_order": False},
    "all, a beam of 8": {"beam": 8},
    "all, a beam of 32": {"beam": 32},
    "all but the beam": {"beam": 1},
    "all but the canonical form": {"balance": False},
    "all but clipping": {"clip": False},
    "all but error correction": {"error_correction": False},
    "all but coupled rows": {"fisher": False},
    "all but the joint Hessian": {"joint_hessian": False},
    "all, two products a layer": {"products": 2},
}


LAYERS = {"override": [{"pattern": "gpt_neox.layers.*", "method": "none"}]}  # in float
ENDS: dict[str, dict[str, Any]] = {
    f"head, {method}, {bits} bits, group {group}": LAYERS | {"head": {"method": key, "bits": bits, "group_size": group}}
    for bits, group in ((8, 128), (4, 128), (4, 32), (3, 32))
    for method, key in (("RTN", "rtn"), ("GPTQ", "gptq"))
} | {f"embedding, {kind}": LAYERS | {"method": "rtn", "embedding": kind} for kind in ("float16", "int8", "int4")}
ENDS["the layers, 4 bits, group 128"] = {}
ENDS["the layers, and as they ship: embedding float16, head int8"] = {
    "embedding": "float16", "head": {"method": "gptq"},
}  # fmt: skip


class Scorer:
    """Losses and divergence of anything that has the checkpoint's tensors, against the checkpoint itself."""

    def __init__(self, checkpoint: Checkpoint, ids: np.ndarray, documents: np.ndarray) -> None:
        self._config, self.ids = checkpoint.config, ids
        self._clusters = documents[:, 1:].ravel()
        self._kept: dict[int, np.ndarray] = {}
        self.original, _ = self._run(checkpoint)

    def _run(self, source: Tensors) -> tuple[np.ndarray, float | None]:
        reference, nll, divergence = Reference(source, self._config, self.ids, ""), [], []
        first = not self._kept
        for i, window in enumerate(self.ids):
            rows = np.concatenate([log_softmax(part) for part in np.array_split(reference.logits(i)[:-1], 4)])
            nll.append(-np.take_along_axis(rows, window[1:, None], -1)[:, 0])
            if first and i % 8 == 0:
                self._kept[i] = rows.astype(np.float32)
            elif i in self._kept:
                kept = self._kept[i].astype(np.float64)
                divergence.append(np.sum(np.exp(kept) * (kept - rows), -1).mean())
        return np.stack(nll), float(np.mean(divergence)) if divergence else None

    def __call__(self, source: Tensors) -> dict[str, Any]:
        nll, divergence = self._run(source)
        return {"nll": nll, "kl": divergence, "dnll": self.difference(nll, self.original)}

    def kept(self, window: int) -> np.ndarray:
        """The original's log-probabilities [S - 1, vocab] of a window, every eighth."""
        return self._kept[window].astype(np.float64)

    def difference(self, a: np.ndarray, b: np.ndarray) -> dict[str, float]:
        return asdict(clustered_mean((a - b).ravel(), self._clusters))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ingredients", action="store_true")
    parser.add_argument("--ends", action="store_true")
    parser.add_argument("--grids", nargs="*", default=GRIDS, metavar="BITS:GROUP")
    parser.add_argument("--budget", type=float, nargs="*", help="bits a weight to be spent on the grid, RTN beside it")
    parser.add_argument("--revision", default="main")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=-1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    checkpoint = open_checkpoint(pull(Model(id="demo", revision=args.revision)))
    config, tokenizer = checkpoint.config, checkpoint.tokenizer()
    text: dict[str, Any] = {"source": "python-stdlib", "sequence_length": config.max_positions}
    calibration = calibration_windows(Calibration(samples=args.samples, **text), tokenizer, config)
    held_out = verify_windows(Verify(tokens=args.tokens, **text), tokenizer, config)
    score = Scorer(checkpoint, held_out.ids, held_out.documents)

    def quantised(**settings: Any) -> dict[str, Any]:
        quantize = Quantize(**{"head": {"method": "none"}, "embedding": "float32"} | settings)
        ids = calibration.ids if quantize.method == "gptq" else None
        with tempfile.TemporaryDirectory() as folder:
            path, began = Path(folder) / DATA_FILE, time.perf_counter()
            if quantize.bits_per_weight is not None and ids is not None:
                quantize, _ = allocate(checkpoint, quantize, "float32", ids)
            places = layout(config, quantize, "float32")
            with WeightsWriter(path, places) as writer:
                record = quantize_stream(checkpoint, writer, ids)
            seconds = time.perf_counter() - began
            found = score(WeightsReader(path, places))
        below = [x.loss < x.rtn_loss for x in record.linears if x.loss is not None and x.rtn_loss is not None]
        return found | {"seconds": seconds, "below": sum(below), "stored_bits": places.bits_per_weight}

    scored, documents = score.original.size, held_out.documents.max() + 1
    print(f"demo {args.revision}: {scored:,} held-out tokens of {documents} documents, perplexity ", end="")
    print(f"{np.exp(score.original.mean()):.3f}; calibrated on {calibration.ids.size:,} tokens; {machine()}\n")
    bar = Console(stderr=True)
    if args.ends:
        rows = _ends(quantised, score, bar)
    elif args.ingredients or args.budget:
        grid = {"bits": args.bits, "group_size": args.group}
        cases: dict[str, dict[str, Any]] = dict(INGREDIENTS)
        if args.budget:
            cases = {"as it is": {}} | {f"{bits} bits a weight": {"bits_per_weight": bits} for bits in args.budget}
        rows = _one_grid(quantised, grid, cases, bar)
    else:
        rows = _grids(quantised, score, args.grids, bar)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


def _grids(quantised: Any, score: Scorer, grids: list[str], bar: Console) -> list[dict[str, Any]]:
    shares = "loss recovered | KL recovered"
    print(f"| bits | group | RTN dNLL | dNLL | {shares} | dNLL - RTN's | linears below RTN | time |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows = []
    for grid in track(grids, "grids", console=bar):
        bits, group = (-1 if part == "row" else int(part) for part in grid.split(":"))
        nearest = quantised(method="rtn", bits=bits, group_size=group)
        done = quantised(bits=bits, group_size=group)
        change = score.difference(done["nll"], nearest["nll"])
        print(
            f"| {bits} | {_group(group)} | {_interval(nearest['dnll'])} | {_interval(done['dnll'])} | "
            f"{_share(done['dnll']['value'], nearest['dnll']['value'], nearest['dnll']['low'] > 0)} | "
            f"{_share(done['kl'], nearest['kl'])} | {_interval(change)} | {done['below']} of 24 | "
            f"{done['seconds']:.0f} s |",
            flush=True,
        )
        rows.append({"bits": bits, "group_size": group, "rtn": _plain(nearest), "done": _plain(done), "change": change})
    return rows


def _ends(quantised: Any, score: Scorer, bar: Console) -> list[dict[str, Any]]:
    print("| rounded | dNLL | KL | beside RTN's dNLL | time |\n|---|---|---|---|---|")
    rows, nearest = [], None
    for name, settings in track(ENDS.items(), "ends", console=bar):
        done = quantised(**settings)
        beside = score.difference(done["nll"], nearest["nll"]) if nearest is not None and "GPTQ" in name else None
        nearest = done if "RTN" in name else None
        told = "" if beside is None else _interval(beside)
        print(
            f"| {name} | {_interval(done['dnll'])} | {done['kl']:.5f} | {told} | {done['seconds']:.0f} s |", flush=True
        )
        rows.append({"name": name, **_plain(done)})
    return rows


def _one_grid(
    quantised: Any, grid: dict[str, Any], cases: dict[str, dict[str, Any]], bar: Console
) -> list[dict[str, Any]]:
    print(f"{grid['bits']} bits, group {_group(grid['group_size'])}\n")
    print("| | stored bits | dNLL | loss recovered | KL | KL recovered | time |\n|---|---|---|---|---|---|---|")
    rows = []
    nearest = None
    for name, settings in track([("RTN", {"method": "rtn"}), *cases.items()], "cases", console=bar):
        done = quantised(**grid | settings)
        nearest = nearest or done
        print(
            f"| {name} | {done['stored_bits']:.3f} | {_interval(done['dnll'])} | "
            f"{_share(done['dnll']['value'], nearest['dnll']['value'])} | {done['kl']:.5f} | "
            f"{_share(done['kl'], nearest['kl'])} | {done['seconds']:.0f} s |",
            flush=True,
        )
        rows.append({"name": name, **_plain(done)})
    return rows


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "nll"}


def _interval(found: dict[str, float]) -> str:
    return f"{found['value']:.5f} [{found['low']:.5f}, {found['high']:.5f}]"


def _share(value: float, of: float, told_apart: bool = True) -> str:
    return f"{1 - value / of:.0%}" if told_apart else "noise"


def _group(size: int) -> str:
    return "row" if size == -1 else str(size)


if __name__ == "__main__":
    main()
