"""How fast an artifact runs, beside Optimum's float32 export of the same checkpoint, in one run.

Each contestant runs in a process of its own (peak memory is a process's), one after the other and in turn, so that a
machine that slows down slows both; a figure is the median over the rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .artifact import Artifact
from .checkpoint import Accept, pull
from .errors import EnvironmentProblem, RecipeError
from .machine import machine
from .progress import SILENT, Progress
from .runtime import Cache, Session, peak_memory_bytes, speed_here

OURS, OPTIMUM = "pythia-export", "Optimum float32"


def bench(
    artifact: Path,
    *,
    peers: bool = True,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    repeats: int = 3,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Prefill and decode tokens per second, peak resident memory, load time and size of each contestant.

    Raises:
        RecipeError: the tokens do not fit into the model's context.
        EnvironmentProblem: `peers` is set and Optimum is not installed.
    """
    opened = Artifact.open(artifact)
    limit = opened.config.max_positions
    if prompt_tokens + new_tokens > limit:
        raise RecipeError(f"{prompt_tokens} + {new_tokens} tokens; this model's context is {limit}")
    threads = threads or os.cpu_count() or 1
    job = {"prompt": prompt_tokens, "new": new_tokens, "threads": threads}
    scheme = opened.recipe.quantize
    ours = f"{OURS} {'float' if scheme.method == 'none' else f'int{scheme.bits}'}"
    here = job | {"folder": str(opened.folder)}
    contestants = {ours: here | {"kind": "function"}}
    speed, why = speed_here(opened)
    if speed == "native":
        contestants = {f"{ours}, native": here | {"kind": "native"}} | contestants

    with tempfile.TemporaryDirectory(prefix="pythia-export-bench-") as scratch:
        if peers:
            with progress.track("Exporting with Optimum", 1) as advance:
                folder = _optimum_export(opened, Path(scratch))
                advance(1)
            contestants[OPTIMUM] = job | {"kind": "optimum", "folder": str(folder)}
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
        with progress.track("Measuring", repeats * len(contestants), "runs") as advance:
            for _ in range(repeats):
                for name, task in contestants.items():
                    rounds[name].append(_in_own_process(task))
                    advance(1)
    rows = []
    for name, measured in rounds.items():
        row = {key: statistics.median(m[key] for m in measured) for key in measured[0]}
        rows.append({"name": name} | row)
    return {
        "machine": f"{machine()}, {threads} threads",
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "speed": speed,
        "why": why,
        "rows": rows,
    }


def _optimum_export(artifact: Artifact, scratch: Path) -> Path:
    """The checkpoint that the artifact was made from, exported by Optimum in float32 with a KV cache."""
    origin, model = artifact.manifest["source"], artifact.recipe.model
    pinned = model if model.id in (None, "demo") else model.model_copy(update={"revision": origin["commit"]})
    source, out = pull(pinned, accept=Accept(duplicates="unasked")).folder, scratch / "optimum"
    code = (
        "import sys; from optimum.exporters.onnx import main_export; "
        "main_export(model_name_or_path=sys.argv[1], output=sys.argv[2], task='text-generation-with-past')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(source), str(out)], capture_output=True, text=True)
    if done.returncode or not (out / "model.onnx").is_file():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EnvironmentProblem(
            f"Optimum could not export {source}: {last}", hint="Install optimum-onnx, or leave the peers out."
        )
    return out


def _in_own_process(task: dict[str, Any]) -> dict[str, float]:
    environment = os.environ | {"OMP_NUM_THREADS": str(task["threads"]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pythia_export.bench", json.dumps(task)], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise EnvironmentProblem(f"the measurement of {task['kind']} failed: {done.stderr.strip()[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _measure(task: dict[str, Any]) -> dict[str, float]:
    """One contestant, in this process. A warm-up pass comes first; it is not counted."""
    folder, prompt, new = Path(task["folder"]), task["prompt"], task["new"]
    began = time.perf_counter()
    if task["kind"] == "optimum":
        start, step, vocab = _open_optimum(folder, task["threads"], prompt + new)
    else:
        start, step, vocab = _open_ours(folder, task["threads"], prompt + new, task["kind"] == "native")
    loaded = time.perf_counter() - began
    ids = np.random.default_rng(0).integers(1, vocab, (1, prompt)).astype(np.int64)
    start(ids)
    step(ids[:, :1])
    began = time.perf_counter()
    start(ids)
    middle = time.perf_counter()
    for _ in range(new):
        step(ids[:, :1])
    end = time.perf_counter()
    return {
        "prefill_tokens_per_second": prompt / (middle - began),
        "decode_tokens_per_second": new / (end - middle),
        "peak_memory_bytes": peak_memory_bytes(),
        "load_seconds": loaded,
        "size_bytes": sum(p.stat().st_size for p in folder.rglob("*") if p.suffix in (".onnx", ".onnx_data")),
    }


Opened = tuple[Callable[[np.ndarray], Any], Callable[[np.ndarray], Any], int]


def _open_ours(folder: Path, threads: int, room: int, native: bool) -> Opened:
    artifact = Artifact.open(folder)
    session = Session.open(artifact, threads=threads, native=native)
    caches: list[Cache] = []

    def start(ids: np.ndarray) -> None:
        caches[:] = [session.start(1, room)]
        session.step(caches[0], ids)

    return start, lambda ids: session.step(caches[0], ids), artifact.config.vocab_size


def _open_optimum(folder: Path, threads: int, room: int) -> Opened:
    import onnxruntime
    import torch
    from optimum.onnxruntime import ORTModelForCausalLM

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = ORTModelForCausalLM.from_pretrained(folder, session_options=options, provider="CPUExecutionProvider")
    state: list[Any] = [None, 0]

    def forward(ids: np.ndarray) -> None:
        total = state[1] + ids.shape[1]
        out = model(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.ones(1, total, dtype=torch.int64),
            position_ids=torch.arange(state[1], total)[None],
            past_key_values=state[0],
        )
        state[:] = [out.past_key_values, total]

    def start(ids: np.ndarray) -> None:
        state[:] = [None, 0]
        forward(ids)

    return start, forward, model.config.vocab_size


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
