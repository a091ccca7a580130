"""The quality of other quantisers beside ours: one checkpoint, the same calibration tokens, the same held-out text.

    python benchmarks/quantisers.py --work FOLDER [--grids 4:row 4:32 3:row 3:32 2:32] [--tools NAME ...]

Each tool runs in an interpreter that has it, at the best settings that its script in `quantisers/` names: AutoRound
with 1,000 iterations a layer and with its default of 200, GPTQModel with and without GPTAQ, llm-compressor's GPTQ, NNCF
with AWQ and scale estimation (4 bits alone). `make test-import` and `make consumers` install them, in `build/importers`
and `build/consumers`. All compute in float32, on symmetric grids, the 24 linears of the demo's layers; embedding and
head stay in float.

What is compared is what the tool's own model computes: the final LayerNorm's output of every held-out window. Our code
makes predictions and divergences of it, and pairs them by token, errors clustered by document. What was made is kept in
FOLDER, a file for each grid and tool, and not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pythia_export.base.machine import machine
from pythia_export.calibrate import quantize_stream
from pythia_export.checkpoint import Checkpoint, open_checkpoint, pull
from pythia_export.corpus import calibration_windows, verify_windows
from pythia_export.model.block import Block, Rotary, final_norm
from pythia_export.model.neox import EMBEDDING, HEAD
from pythia_export.proof.reference import Tensors
from pythia_export.proof.statistics import clustered_mean
from pythia_export.recipe import Calibration, Model, Quantize, Verify
from pythia_export.weights.layout import layout
from pythia_export.weights.reader import WeightsReader
from pythia_export.weights.writer import WeightsWriter

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(__file__).resolve().with_name("quantisers")
OURS: dict[str, dict[str, Any]] = {
    "RTN": {"method": "rtn"},
    "ours": {},
    "ours, effort best": {"effort": "best"},
}
# A tool's script, its interpreter below `build`, its own settings.
PEERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "AutoRound": ("autoround.py", "importers/venv-autoround", {"iters": 1000}),
    "AutoRound, 200 iterations": ("autoround.py", "importers/venv-autoround", {"iters": 200}),
    "GPTQModel": ("gptqmodel.py", "importers/venv-gptqmodel", {"gptaq": False}),
    "GPTQModel, GPTAQ": ("gptqmodel.py", "importers/venv-gptqmodel", {"gptaq": True}),
    "llm-compressor": ("llm_compressor.py", "importers/venv-compressed-tensors", {}),
    "NNCF": ("nncf_awq.py", "consumers/transformers5", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--checkpoint", default="demo", help="`demo`, `demo@REVISION`, or a folder (%(default)s)")
    parser.add_argument("--grids", nargs="*", default=["4:row", "4:32", "3:row", "3:32", "2:32"], metavar="BITS:GROUP")
    parser.add_argument("--tools", nargs="*", default=[*OURS, *PEERS], choices=[*OURS, *PEERS])
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="where the interpreters are")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)

    name, _, revision = args.checkpoint.partition("@")
    model = Model(id=name, revision=revision or "main") if name == "demo" else Model(path=Path(args.checkpoint))
    checkpoint = open_checkpoint(pull(model))
    config, tokenizer = checkpoint.config, checkpoint.tokenizer()
    text: dict[str, Any] = {"source": "python-stdlib", "sequence_length": config.max_positions}
    calibration = calibration_windows(Calibration(samples=args.samples, **text), tokenizer, config).ids
    held_out = verify_windows(Verify(tokens=args.tokens, **text), tokenizer, config)
    np.save(args.work / "calibration.npy", calibration)
    np.save(args.work / "held_out.npy", held_out.ids)
    clusters = held_out.documents[:, 1:].ravel()

    original = outputs(checkpoint, checkpoint, held_out.ids)
    table = checkpoint.tensor(f"{HEAD}.weight").float()
    print(f"{args.checkpoint}: {clusters.size:,} held-out tokens of {held_out.documents.max() + 1} documents; ", end="")
    print(f"calibrated on {calibration.size:,} tokens; {machine()}\n")
    print("| bits | group | | dNLL | KL | KL beside ours | processor seconds |\n|---|---|---|---|---|---|---|")
    rows = []
    for grid in args.grids:
        bits, group = (-1 if part == "row" else int(part) for part in grid.split(":"))
        found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for tool in args.tools:
            if tool == "NNCF" and bits != 4:
                continue
            kept = args.work / f"{grid.replace(':', '-')}.{tool.replace(', ', '-').replace(' ', '-')}.npy"
            if not kept.exists():
                began = _processor_seconds()
                if tool in OURS:
                    _ours(checkpoint, calibration, held_out.ids, bits, group, OURS[tool], kept)
                else:
                    _peer(PEERS[tool], checkpoint, args, bits, group, kept)
                kept.with_suffix(".json").write_text(json.dumps({"seconds": _processor_seconds() - began}))
            found[tool] = scored(np.load(kept), original, table, held_out.ids)
        for tool, (nll, divergence) in found.items():
            seconds = json.loads(
                (args.work / f"{grid.replace(':', '-')}.{tool.replace(', ', '-').replace(' ', '-')}.json").read_text()
            )["seconds"]
            loss, apart = clustered_mean(nll, clusters), clustered_mean(divergence, clusters)
            beside = clustered_mean(divergence - found["ours"][1], clusters) if "ours" in found else None
            told = (
                ""
                if beside is None or tool == "ours"
                else f"{beside.value:+.5f} [{beside.low:+.5f}, {beside.high:+.5f}]"
            )
            print(
                f"| {bits} | {'row' if group == -1 else group} | {tool} | "
                f"{loss.value:.5f} [{loss.low:.5f}, {loss.high:.5f}] | {apart.value:.5f} | {told} | {seconds:.0f} |",
                flush=True,
            )
            row = {"bits": bits, "group": group, "tool": tool, "dnll": loss.value, "kl": apart.value}
            rows.append(row | {"beside_ours": None if beside is None else [beside.value, beside.low, beside.high]})
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")


def _ours(
    checkpoint: Checkpoint, calibration: np.ndarray, held_out: np.ndarray, bits: int, group: int,
    settings: dict[str, Any], out: Path,
) -> None:  # fmt: skip
    quantize = Quantize(bits=bits, group_size=group, head={"method": "none"}, embedding="float32", **settings)
    places = layout(checkpoint.config, quantize, "float32")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.bin"
        with WeightsWriter(path, places) as writer:
            quantize_stream(checkpoint, writer, calibration if quantize.method == "gptq" else None)
        np.save(out, outputs(WeightsReader(path, places), checkpoint, held_out))


def _processor_seconds() -> float:
    """Return what this process and those that it has waited for took of the processors so far."""
    return sum(
        x.ru_utime + x.ru_stime for x in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _peer(
    peer: tuple[str, str, dict[str, Any]], checkpoint: Checkpoint, args: argparse.Namespace, bits: int, group: int,
    out: Path,
) -> None:  # fmt: skip
    script, interpreter, settings = peer
    job = {
        "model": str(checkpoint.pulled.folder), "calibration": str((args.work / "calibration.npy").resolve()),
        "held_out": str((args.work / "held_out.npy").resolve()), "bits": bits, "group": group,
        "out": str(out.resolve()), **settings,
    }  # fmt: skip
    python = args.build.resolve() / interpreter / "bin" / "python"
    done = subprocess.run(
        [python, SCRIPTS / script, json.dumps(job)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        cwd=args.work,  # GPTQModel leaves logs where it runs
    )
    if done.returncode:
        sys.exit(f"{script}: {done.stdout[-2000:]}{done.stderr[-4000:]}")


@torch.no_grad()
def outputs(weights: Tensors, checkpoint: Checkpoint, ids: np.ndarray) -> np.ndarray:
    """Return the final LayerNorm's output [N, S, hidden]."""
    config = checkpoint.config
    rotary, found = Rotary.of(config, ids.shape[1], torch.float32), []

    def read(name: str) -> torch.Tensor:
        return weights.tensor(name).float()

    embedding = read(f"{EMBEDDING}.weight")
    for part in np.array_split(ids, max(1, len(ids) // 8)):
        x = embedding[torch.from_numpy(part.copy())]
        for layer in range(config.num_layers):
            x = Block(config, layer, read)(x, rotary)
        found.append(final_norm(x, config, read).numpy())
    return np.concatenate(found)


def scored(
    outputs: np.ndarray, original: np.ndarray, head: torch.Tensor, ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each token that is predicted, by how much its loss is higher, and the divergence; float64."""
    losses, divergences = [], []
    for got, wanted, window in zip(outputs, original, ids, strict=True):
        q, p = (torch.log_softmax((torch.from_numpy(x[:-1]) @ head.T).double(), -1) for x in (got, wanted))
        at = torch.from_numpy(window[1:, None].copy())
        losses.append((p.gather(1, at) - q.gather(1, at))[:, 0].numpy())
        divergences.append((p.exp() * (p - q)).sum(-1).numpy())
    return np.concatenate(losses), np.concatenate(divergences)


if __name__ == "__main__":
    main()
