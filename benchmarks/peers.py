"""GPTQ beside GPTQModel's: time, memory and held-out loss on one checkpoint, the same tokens, the same settings.

    python benchmarks/peers.py --peer-python VENV/bin/python                  # the demo checkpoint
    python benchmarks/peers.py --peer-python VENV/bin/python --model DIR      # a local checkpoint with a tokenizer
    python benchmarks/peers.py --peer-python VENV/bin/python --random 70m     # random weights: time and memory only
    python benchmarks/peers.py --peer-python VENV/bin/python --random 410m --layers 1 --defaults   # of some layers

The peer needs transformers 5, which Optimum's exporter refuses, hence an environment of its own. GPTQModel 7.7.0 asks
for torch >= 2.14.1 and works with 2.13.0, the newest that this project takes; to measure both on one torch:

    python3.11 -m venv VENV && echo torch==2.13.0 > held.txt
    VENV/bin/pip install torch==2.13.0 numpy ninja packaging wheel
    VENV/bin/pip download --no-deps --no-build-isolation gptqmodel==7.7.0 && tar xf gptqmodel-7.7.0.tar.gz
    grep -v '^torch>=' gptqmodel-7.7.0/requirements.txt > rest.txt
    VENV/bin/pip install --constraint held.txt --requirement rest.txt
    BUILD_CUDA_EXT=0 VENV/bin/pip install --no-deps --no-build-isolation gptqmodel==7.7.0

Each run is a process of its own; rounds in turn; medians. `quantise` is the peer's `quantize` call, from a loaded model
to packed linears in memory, and our `quantize_stream`, from an opened checkpoint to a packed file: ours also reads the
tensors, rounds every linear to nearest for comparison, and writes the file. `process` is the whole process, imports and
loading too; peak memory is that of the process until the end of quantisation.

A first run of the peer is not timed: it compiles a packing kernel where ~/.cache/gptqmodel has none yet (54 s), and its
matrices are the ones that are scored. They are scored by our code, twice: as packed, which is what the peer ships, and
as its solver left them, before their scales were rounded to float16. Random weights are not scored, and there is no
such run.

Both solve the same problem, weight for weight, until a sum that rounds otherwise tips one weight over, from which the
later layers drift apart. The peer drifts as far from itself when only its batch changes, so a difference in loss then
says nothing about the solvers; the share of equal weights tells whether it happened.

Settings, all explicit in `_gptqmodel_peer.py`, and on our side what the peer has too (`--defaults` takes our defaults
instead: clipping, a beam, error correction, coupled rows): int4 symmetric, scales from the largest weight, act-order
with static groups, damp 0.01, the linears of the layers and no head, activations in float32. What differs:

- Hessians: the peer sums and factors in float32, we in float64 up to a width of 4,096.
- The damping ladder: the peer adds 0.01 a step, at last raises the diagonal, and starts over; ours doubles and then
  fails. The last column is the largest damp of any linear: at 0.0100 neither climbed.
- Stages: the peer runs a layer once for each of QKV, dense, h_to_4h and 4h_to_h and once for its output; we once for
  each of two stages and once for the output. With a parallel residual the linears read the same values either way.
- Scales: the peer rounds them to float16 when it packs; ours are float32.
- The peer runs 8 windows at once (`--peer-batch`; its default of 1 is slower), we up to 8,192 tokens.
- The peer's defaults are not what is measured: act_group_aware in place of desc_act, damp 0.05, round-to-nearest in
  silence where calibration is thin, offloading to disk.

Timings need a machine that does nothing else. Beside another busy process, OpenMP's threads spin while they wait for
one that has no core, and our time grows tenfold and more; OMP_WAIT_POLICY=passive, which both sides inherit, avoids
that.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from pythia_export.base.machine import machine, versions
from pythia_export.calibrate import quantize_stream
from pythia_export.checkpoint import Checkpoint, demo_folder, open_checkpoint, pull
from pythia_export.corpus import calibration_windows, verify_windows
from pythia_export.model.likelihood import log_softmax
from pythia_export.model.neox import NeoXConfig, tensors
from pythia_export.model.suite import geometry, sizes
from pythia_export.proof.reference import Reference
from pythia_export.proof.statistics import clustered_mean
from pythia_export.recipe import Calibration, Model, Quantize, Verify
from pythia_export.runtime import peak_memory_bytes
from pythia_export.weights.layout import layout
from pythia_export.weights.names import DATA_FILE
from pythia_export.weights.reader import WeightsReader
from pythia_export.weights.writer import WeightsWriter

PEER_SCRIPT = Path(__file__).absolute().with_name("_gptqmodel_peer.py")
OURS, PEER = "pythia-export", "GPTQModel"
VOCABULARY = 4096
MEASURED = ("quantize_seconds", "process_seconds", "peak_memory_bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", type=Path, required=True, help="interpreter of an environment with GPTQModel")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--model", type=Path, help="local checkpoint directory; the demo when left out")
    where.add_argument("--random", choices=sizes(), help="random weights of this size's shapes")
    parser.add_argument("--layers", type=int, help="of random weights: so many, and the demo's small vocabulary")
    parser.add_argument("--groups", type=int, nargs="+", default=[128, -1], help="-1 is one scale a row")
    parser.add_argument("--samples", type=int, default=64, help="calibration windows")
    parser.add_argument("--length", type=int, default=512, help="tokens a window")
    parser.add_argument("--tokens", type=int, default=131072, help="held-out tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-batch", type=int, default=8, help="windows that the peer runs at once")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--defaults", action="store_true", help="ours as recipes have it, clipping and all")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="pythia-export-peers-") as name:
        scratch = Path(name)
        model = Model(id="demo") if args.model is None else Model(path=args.model.absolute())
        if args.random:
            model = Model(path=_random_checkpoint(args.random, args.layers, scratch))
        checkpoint = open_checkpoint(pull(model))
        calibration, held_out, clusters = _windows(checkpoint, args)
        np.save(scratch / "ids.npy", calibration)
        original = None if held_out is None else losses(checkpoint, checkpoint.config, held_out)

        load = os.getloadavg()[0]
        results: dict[int, dict[str, Any]] = {}
        steps = [(group, i) for group in args.groups for i in range(args.rounds + 1)]
        for group, i in track(steps, "rounds", console=Console(stderr=True)):
            job = {
                "model": str(checkpoint.pulled.folder),
                "ids": str(scratch / "ids.npy"),
                "group_size": group,
                "defaults": args.defaults,
                "report": str(scratch / "report.json"),
            }
            peer_job = job | {"batch": args.peer_batch}
            if i == 0:
                if not args.random:
                    _peer(peer_job | {"weights": str(scratch)}, args)
                results[group] = {"group_size": group, OURS: [], PEER: []}
                continue
            results[group][OURS].append(_ours(job | {"weights": str(scratch / DATA_FILE)}, args))
            results[group][PEER].append(_peer(peer_job | {"weights": ""}, args))
            if i == args.rounds and not args.random:
                results[group] |= _compare(checkpoint, group, scratch, held_out, clusters, original)

    layers = "" if args.layers is None else f", {args.layers} of its layers"
    what = f"random weights of pythia-{args.random}{layers}" if args.random else str(args.model or "demo main")
    peer = results[args.groups[0]][PEER][0]["versions"]
    policy = os.environ.get("OMP_WAIT_POLICY", "default")
    print(f"{machine()}, {args.threads} threads, OMP_WAIT_POLICY {policy}, load {load:.2f} before; ", end="")
    print(f"torch {versions()['torch']}, the peer's {peer['torch']}, its transformers {peer['transformers']}\n")
    print(
        f"{what}: int4, {args.samples} x {args.length} tokens of calibration, median of {args.rounds} (range)", end=""
    )
    if original is not None:
        print(f"; {original.size:,} held-out tokens, perplexity {np.exp(original.mean()):.3f}", end="")
    print("\n\n| group | | quantise | process | peak memory | dNLL | largest damp |")
    print("|---|---|---|---|---|---|---|")
    for result in results.values():
        _print(result, f"{PEER} {peer['gptqmodel']}")
    print()
    for result in results.values():
        if "same" in result:
            same = f"{result['same']:.2%} of the weights are the same"
            print(f"group {_group(result)}: {same}, ours and the peer's as solved")
    if args.json:
        found = {"machine": machine(), "threads": args.threads, "load": load, "results": list(results.values())}
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def _windows(
    checkpoint: Checkpoint, args: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Calibration ids, held-out ids, the document of each scored token; random weights are not scored."""
    if args.random:
        size = (args.samples, args.length)
        return np.random.default_rng(0).integers(0, checkpoint.config.vocab_size, size), None, None
    text: dict[str, Any] = {"source": "python-stdlib", "sequence_length": args.length}
    tokenizer, config = checkpoint.tokenizer(), checkpoint.config
    calibration = calibration_windows(Calibration(samples=args.samples, **text), tokenizer, config)
    held_out = verify_windows(Verify(tokens=args.tokens, **text), tokenizer, config)
    return calibration.ids, held_out.ids, held_out.documents[:, 1:].ravel()


def _random_checkpoint(size: str, layers: int | None, scratch: Path) -> Path:
    """Float16 weights as GPT-NeoX initialises them; the demo's tokenizer, since the peer will not load without one."""
    config = geometry(f"EleutherAI/pythia-{size}")
    assert config is not None
    if layers is not None:  # the sensitivity's pass through the head is the whole model's, and the peer has none
        config = dataclasses.replace(config, num_layers=layers, vocab_size=VOCABULARY)
    folder = scratch / "random"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for spec in tensors(config):
        if spec.name.endswith(".bias"):
            value = torch.zeros(spec.shape)
        elif spec.role == "norm":
            value = torch.ones(spec.shape)
        else:
            value = 0.02 * torch.randn(spec.shape, generator=generator)
        weights[spec.name] = value.half()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config.to_dict("float16")))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(demo_folder() / "main" / name, folder)
    return folder


def losses(source: Any, config: NeoXConfig, ids: np.ndarray) -> np.ndarray:
    """Negative log-likelihood [N, S - 1] of each window's tokens, nats."""
    reference, out = Reference(source, config, ids, ""), []
    for i, window in enumerate(ids):
        rows = np.concatenate([log_softmax(part) for part in np.array_split(reference.logits(i)[:-1], 4)])
        out.append(-np.take_along_axis(rows, window[1:, None], -1)[:, 0])
    return np.stack(out)


def _quantize(group: int, defaults: bool) -> Quantize:
    extras = {} if defaults else {"clip": False, "beam": 1, "error_correction": False, "fisher": False}
    head = {"method": "none"}
    return Quantize(bits=4, group_size=group, symmetric=True, act_order=True, damp=0.01, head=head, **extras)


def _ours(job: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    return _timed(
        [sys.executable, str(Path(__file__).absolute()), "--job", json.dumps(job)], job, os.environ | _threads(args)
    )


def _peer(job: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}  # none of our packages
    # On two cores it takes one worker when left to itself, and then does not start.
    environment |= _threads(args) | {"GPTQMODEL_CPU_WORKERS": str(max(2, args.threads))}
    return _timed(
        [str(args.peer_python.absolute()), str(PEER_SCRIPT), json.dumps(job)],
        job,
        environment,
        Path(job["report"]).parent,  # it leaves a folder of logs where it runs
    )


def _threads(args: argparse.Namespace) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(args.threads), "MKL_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}


def _timed(
    command: list[str], job: dict[str, Any], environment: dict[str, str], cwd: Path | None = None
) -> dict[str, Any]:
    report = Path(job["report"])
    report.unlink(missing_ok=True)
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)
    seconds = time.perf_counter() - began
    if done.returncode or not report.is_file():
        raise SystemExit(f"{' '.join(command[:2])} failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    return json.loads(report.read_text()) | {"process_seconds": seconds}


def _run_ours(job: dict[str, Any]) -> None:
    """Our side, in the process that `_ours` starts."""
    checkpoint, quantize = (
        open_checkpoint(pull(Model(path=job["model"]))),
        _quantize(job["group_size"], job["defaults"]),
    )
    ids = np.load(job["ids"])
    began = time.perf_counter()
    places = layout(checkpoint.config, quantize, "float32")
    with WeightsWriter(Path(job["weights"]), places) as writer:
        record = quantize_stream(checkpoint, writer, ids)
    report = {
        "quantize_seconds": time.perf_counter() - began,
        "peak_memory_bytes": peak_memory_bytes(),
        "linears": len(record.linears),
        "damp": max(linear.damp for linear in record.linears if linear.damp is not None),
    }
    Path(job["report"]).write_text(json.dumps(report))


class _Replaced:
    """A checkpoint some of whose tensors are taken from a file."""

    def __init__(self, checkpoint: Checkpoint, path: Path) -> None:
        self.config: NeoXConfig = checkpoint.config
        self._checkpoint, self._instead = checkpoint, load_file(path)

    def tensor(self, name: str) -> Tensor:
        return self._instead[name] if name in self._instead else self._checkpoint.tensor(name)


def _compare(
    checkpoint: Checkpoint,
    group: int,
    scratch: Path,
    held_out: np.ndarray | None,
    clusters: np.ndarray | None,
    original: np.ndarray | None,
) -> dict[str, Any]:
    """Share of weights that both rounded to the same value, and what each cost on held-out text."""
    config = checkpoint.config
    places = layout(config, _quantize(group, False), "float32")
    ours = WeightsReader(scratch / DATA_FILE, places)
    sources = {"ours": ours} | {x: _Replaced(checkpoint, scratch / f"{x}.safetensors") for x in ("packed", "solved")}
    same = weights = 0
    for name, plan in places.linears.items():
        if plan.method == "none":
            continue
        a, b = (sources[x].tensor(f"{name}.weight") for x in ("ours", "solved"))
        same += int(torch.isclose(a, b, rtol=1e-4, atol=1e-7).sum())
        weights += a.numel()
    found: dict[str, Any] = {"same": same / weights}
    if held_out is not None:
        nll = {x: losses(source, config, held_out) for x, source in sources.items()}
        found["cost"] = {x: asdict(clustered_mean((y - original).ravel(), clusters)) for x, y in nll.items()}
        found["difference"] = asdict(clustered_mean((nll["ours"] - nll["packed"]).ravel(), clusters))
    return found


def _print(result: dict[str, Any], peer: str) -> None:
    medians, rows = {}, {}
    for name in (OURS, PEER):
        runs = result[name]
        medians[name] = {key: statistics.median(run[key] for run in runs) for key in MEASURED}
        cells = []
        for key in MEASURED[:2]:
            low, high = (f(run[key] for run in runs) for f in (min, max))
            cells.append(f"{medians[name][key]:.2f} s ({low:.2f} to {high:.2f})")
        rows[name] = [*cells, f"{medians[name]['peak_memory_bytes'] / 1e6:.0f} MB"]
    cost = {x: _interval(y) for x, y in result.get("cost", {}).items()}
    damp = {name: f"{max(run['damp'] for run in result[name]):.4f}" for name in (OURS, PEER)}
    ratio = [f"{medians[OURS][key] / medians[PEER][key]:.2f}" for key in MEASURED]
    group = _group(result)
    _row(group, OURS, *rows[OURS], cost.get("ours", ""), damp[OURS])
    _row(group, f"{peer}, as packed", *rows[PEER], cost.get("packed", ""), damp[PEER])
    if cost:
        _row(group, f"{peer}, as solved", "", "", "", cost["solved"], "")
    _row(group, "ours / packed", *ratio, f"ours - packed: {_interval(result['difference'])}" if cost else "", "")


def _row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |")


def _interval(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.5f} [{estimate['low']:.5f}, {estimate['high']:.5f}]"


def _group(result: dict[str, Any]) -> str:
    return "row" if result["group_size"] == -1 else str(result["group_size"])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--job"]:
        _run_ours(json.loads(sys.argv[2]))
    else:
        main()
