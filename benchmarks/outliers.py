"""What copies of a checkpoint that compute the same function in other units cost to round: nothing more, it should be.

    python benchmarks/outliers.py [--checkpoint demo] [--samples 128] [--tokens 131072] [--bits 4] [--group 128]
        [--effort best] [--all-at-once] [--ingredients]

Copies: four LayerNorm channels of each layer 50 times as large, the columns behind them as much smaller; likewise rows
of v against dense, rows of q against k; and all of that with every channel times exp(normal) besides. Each is quantised
with the defaults and with `balance = false`, as benchmarks/quality.py does, and scored by torch (level 0) on all
windows and by ONNX Runtime with int8 activations (accuracy level 4) on every eighth. KL is on every eighth. `--effort
best` is not trained, and balances; with --all-at-once the checkpoint and the last of its copies alone are quantised.
--ingredients leaves each part of `balance` out in turn, which only this script can; it takes the last of the copies,
and KL is beside that of all parts.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime
import torch
from quality import Scorer
from torch import Tensor

from pythia_export.base.compute import Compute
from pythia_export.base.machine import machine
from pythia_export.calibrate import Tensors, balance, loop, quantize_stream
from pythia_export.checkpoint import open_checkpoint, pull
from pythia_export.corpus import calibration_windows, verify_windows
from pythia_export.graph.decoder import build_decoder
from pythia_export.model.block import DENSE, UP
from pythia_export.model.likelihood import log_softmax
from pythia_export.model.neox import NORMS, QKV, cache_parts, layer_prefix, tensors
from pythia_export.recipe import Calibration, Export, Model, Quantize, Verify
from pythia_export.weights.layout import layout
from pythia_export.weights.names import DATA_FILE
from pythia_export.weights.reader import WeightsReader
from pythia_export.weights.writer import WeightsWriter

COPIES: dict[str, dict[str, float]] = {
    "as trained": {},
    "LayerNorms x 50": {"norm": 50},
    "v x 50": {"v": 50},
    "q x 50, k / 50": {"q": 50},
    "all of these, each channel x exp(normal)": {"norm": 50, "v": 50, "q": 50, "spread": 1},
}


def _without_norms(real: Callable[..., Any], W: Tensor, g: Tensor, b: Tensor, biased: bool) -> Any:
    found = real(W, g, b, biased)
    return type(found)(g, b, torch.ones_like(g), None)


def _without_rows(*parts: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """Leave the rows of some of q, k and v (0, 1 and 2) as they are, and of v the columns of dense."""

    def heads(real: Callable[..., Any], config: Any, sizes: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        rows, mixed = real(config, sizes, dense)
        rows.view(config.num_heads, 3, config.head_dim)[:, list(parts)] = 1
        return rows, torch.ones_like(mixed) if 2 in parts else mixed

    return heads


PARTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "units of LayerNorms": (balance, "_norm", _without_norms),
    "units of v and dense": (balance, "_heads", _without_rows(2)),
    "units of q and k": (balance, "_heads", _without_rows(0, 1)),
    "the centred shift": (loop, "centre", lambda real, *_: None),
}


@contextmanager
def without(*parts: str) -> Iterator[None]:
    """Leave parts of `balance` out."""
    with ExitStack() as stack:
        for part in parts:
            where, name, change = PARTS[part]
            real = getattr(where, name)
            stack.enter_context(patch.object(where, name, lambda *given, c=change, r=real: c(r, *given)))
        yield


class Rescaled:
    """The tensors of `source`, an equal model in other units."""

    def __init__(self, source: Tensors, norm: float = 1, v: float = 1, q: float = 1, spread: float = 0) -> None:
        self.config = config = source.config
        g, d, heads, half = (
            torch.Generator().manual_seed(1),
            config.hidden_size,
            config.num_heads,
            config.rotary_dim // 2,
        )
        self._tensors = t = {spec.name: source.tensor(spec.name).double() for spec in tensors(config)}

        def factors(of_four: float) -> Tensor:
            found = torch.exp(spread * torch.randn(d, generator=g, dtype=torch.float64))
            found[torch.randperm(d, generator=g)[:4]] *= of_four
            return found

        for prefix in map(layer_prefix, range(config.num_layers)):
            for name, linear in zip(NORMS, (QKV, UP), strict=True):
                by = factors(norm)
                for part in ("weight", "bias"):
                    t[f"{prefix}.{name}.{part}"] *= by
                t[f"{prefix}.{linear}.weight"] /= by
            of_v, of_q = factors(v), factors(q).view(heads, -1)
            of_q[:, half : 2 * half] = of_q[:, :half]  # turned together
            rows = torch.stack((of_q, 1 / of_q, of_v.view(heads, -1)), 1).flatten()
            t[f"{prefix}.{QKV}.weight"] *= rows[:, None]
            t[f"{prefix}.{QKV}.bias"] *= rows
            t[f"{prefix}.{DENSE}.weight"] /= of_v

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name].float()


def level_4(folder: Path, score: Scorer, places: Any) -> tuple[float, float]:
    """Mean difference of the loss, and divergence, of a graph with int8 activations on every eighth window."""
    config = places.config
    (folder / "model.onnx").write_bytes(build_decoder(config, places, Export(accuracy_level=4)).SerializeToString())
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    nothing = np.zeros((1, config.num_heads, 0, config.head_dim), np.float32)
    names = [f"past_key_values.{i}.{part}" for i in range(config.num_layers) for part in cache_parts("float32")]
    lost, divergence = [], []
    for i in range(0, len(score.ids), 8):
        ids = score.ids[i][None]
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None]}
        logits = session.run(["logits"], feeds | dict.fromkeys(names, nothing))[0][0, :-1]
        rows, kept = log_softmax(logits), score.kept(i)
        divergence.append(np.sum(np.exp(kept) * (kept - rows), -1).mean())
        lost.append(np.mean(-np.take_along_axis(rows, ids[0, 1:, None], -1)[:, 0] - score.original[i]))
    return float(np.mean(lost)), float(np.mean(divergence))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="demo", help="`demo`, or a folder (%(default)s)")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--effort", default="default", choices=["default", "best"])
    parser.add_argument("--all-at-once", action="store_true")
    parser.add_argument("--ingredients", action="store_true", help="each part of `balance` left out, of the last copy")
    args = parser.parse_args()

    model = Model(id="demo") if args.checkpoint == "demo" else Model(path=Path(args.checkpoint))
    checkpoint = open_checkpoint(pull(model))
    config, tokenizer = checkpoint.config, checkpoint.tokenizer()
    text: dict[str, Any] = {"source": "python-stdlib", "sequence_length": config.max_positions}
    calibration = calibration_windows(Calibration(samples=args.samples, **text), tokenizer, config)
    held_out = verify_windows(Verify(tokens=args.tokens, **text), tokenizer, config)
    score = Scorer(checkpoint, held_out.ids, held_out.documents)
    print(f"{score.original.size:,} held-out tokens; calibrated on {calibration.ids.size:,} tokens; {machine()}")
    compute = Compute(memory_gb=4.0 if args.effort == "default" else 0.0)  # too little for training
    chosen = list(COPIES)[:: len(COPIES) - 1] if args.all_at_once else list(COPIES)
    print(f"{args.bits} bits, group {args.group}, {args.effort} effort; KL beside that of the checkpoint as trained\n")
    print("| `balance` | copy | level 0: dNLL | KL | | level 4: dNLL | KL | |\n|---|---|---|---|---|---|---|---|")
    on = (False, True) if args.effort == "default" and not args.ingredients else (True,)
    rows: list[tuple[bool, str, tuple[str, ...]]] = [(balanced, name, ()) for balanced in on for name in chosen]
    if args.ingredients:
        copy = list(COPIES)[-1]
        rows = [(True, copy, ()), *((True, copy, (part,)) for part in PARTS), (False, copy, ())]
    first: dict[bool, tuple[float, float]] = {}
    for balanced, name, left_out in rows:
        quantize = Quantize(
            bits=args.bits, group_size=args.group, head={"method": "none"}, embedding="float32", balance=balanced,
            effort=args.effort,
        )  # fmt: skip
        places = layout(config, quantize, "float32")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / DATA_FILE
            with WeightsWriter(path, places) as writer, without(*left_out):
                quantize_stream(Rescaled(checkpoint, **COPIES[name]), writer, calibration.ids, compute)
            found, (lost, kl) = score(WeightsReader(path, places)), level_4(Path(folder), score, places)
        of = first.setdefault(balanced or args.ingredients, (found["kl"], kl))
        dnll = "{value:.5f} [{low:.5f}, {high:.5f}]".format_map(found["dnll"])
        levels = f"{found['kl']:.5f} | {found['kl'] / of[0]:.2f} | {lost:.5f} | {kl:.5f} | {kl / of[1]:.2f}"
        told = "on" if balanced and not left_out else f"all but {left_out[0]}" if left_out else "off"
        print(f"| {told} | {name} | {dnll} | {levels} |", flush=True)


if __name__ == "__main__":
    main()
