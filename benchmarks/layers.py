"""The layers as one node (pythia.DecoderLayers) beside the same graph called operator by operator.

    python benchmarks/layers.py [--sizes demo 70m] [--weights DIR] [--levels 4] [--threads 1 2] [--rounds 5]
                                [--busy 0]

Random weights, int4 in groups of 128 (the demo's shapes: 32), head int8, a float16 cache. Both sessions take turns.
A decode figure is the median over rounds of 32 tokens each, a prefill figure over rounds of one call of 128 tokens
whose last logits alone are wanted. A speed-up is the median of the rounds' ratios, so that other work on the machine
strikes both. `--busy 2` keeps that many other processes busy meanwhile. `--weights` keeps what was made.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from graph import RandomWeights

from pythia_export.base.compute import Compute
from pythia_export.base.device import CPU
from pythia_export.base.machine import machine
from pythia_export.base.native_library import instruction_set, kernels_path
from pythia_export.calibrate import quantize_stream
from pythia_export.graph.decoder import build_decoder
from pythia_export.graph.levels import with_accuracy_level
from pythia_export.graph.trunk import build_graph
from pythia_export.model.neox import NeoXConfig
from pythia_export.model.suite import geometry
from pythia_export.recipe import Export, Quantize
from pythia_export.runtime import Session
from pythia_export.weights.layout import layout
from pythia_export.weights.names import DATA_FILE
from pythia_export.weights.writer import WeightsWriter

STEPS, PROMPT = 32, 128
FORMS = {"by operators": build_decoder, "one node": build_graph}
DEMO = NeoXConfig(4096, 128, 6, 4, 512, max_positions=512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=["demo", "70m"])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--levels", type=int, nargs="*", default=[4])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", type=int, default=0)
    args = parser.parse_args()
    library = kernels_path()
    if library is None:
        sys.exit("the kernels are not built: make kernels")
    print(f"{machine()}; {instruction_set(library)}; {args.busy} busy processes beside\n")
    print("| shapes | level | threads | | by operators, us | one node, us | speed-up |")
    print("|---" * 7 + "|")
    with tempfile.TemporaryDirectory() as temporary:
        for size in args.sizes:
            folder = (args.weights or Path(temporary)) / size
            config, quantize = made(size, folder)
            if not args.rounds:
                continue
            others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.busy)]
            try:
                for level in args.levels:
                    for threads in args.threads:
                        measure(size, config, quantize, folder, level, threads, args.rounds)
            finally:
                for other in others:
                    other.kill()


def made(size: str, folder: Path) -> tuple[NeoXConfig, Quantize]:
    config = DEMO if size == "demo" else geometry(f"EleutherAI/pythia-{size}")
    if config is None:
        sys.exit(f"{size} is no size of the suite")
    quantize = Quantize(method="rtn", group_size=32 if size == "demo" else 128)
    if not (folder / DATA_FILE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with WeightsWriter(folder / DATA_FILE, layout(config, quantize, "float32")) as writer:
            quantize_stream(RandomWeights(config, CPU), writer, None, Compute(CPU))
    return config, quantize


def at_level(model: onnx.ModelProto, level: int) -> onnx.ModelProto:
    return model if level == 4 else with_accuracy_level(model, level)


def measure(
    size: str, config: NeoXConfig, quantize: Quantize, folder: Path, level: int, threads: int, rounds: int
) -> None:
    export = Export(accuracy_level=4, kv_cache="float16")
    places = layout(config, quantize, "float32")
    sessions = {
        name: Session(
            with_accuracy_level(build(config, places, export), level).SerializeToString() if level != 4
            else build(config, places, export).SerializeToString(), folder, config, kv_cache="shared",
            kv_dtype=export.cache_dtype, threads=threads,
        )
        for name, build in FORMS.items()
    }  # fmt: skip
    late = min(1500, config.max_positions - STEPS - 1)
    times: dict[tuple[str, str], list[float]] = {}
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, late))
    for _ in range(rounds + 1):  # the first round warms up
        for name, session in sessions.items():
            time.sleep(0.06)  # the threads of the other session spin for a while
            cache = session.start(1, late + STEPS + 1)
            began = time.perf_counter()
            session.step(cache, ids[:, :PROMPT], keep=1)
            times.setdefault((name, f"prefill {PROMPT}"), []).append(time.perf_counter() - began)
            for context in (PROMPT, late):
                if context > cache.length:
                    session.step(cache, ids[:, cache.length : context], keep=1)
                began = time.perf_counter()
                for _ in range(STEPS):
                    session.step(cache, ids[:, :1])
                taken = (time.perf_counter() - began) / STEPS
                times.setdefault((name, f"a token at {context:,}"), []).append(taken)
    for what in dict.fromkeys(what for _, what in times):
        rounds_of = [times[name, what][1:] for name in FORMS]
        before, after = (statistics.median(taken) * 1e6 for taken in rounds_of)
        ratio = statistics.median(a / b for a, b in zip(*rounds_of, strict=True))
        cells = f"{before:,.0f} | {after:,.0f} | {ratio:.2f}"
        print(f"| {size} | {level} | {threads} | {what} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
