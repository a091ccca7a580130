"""What a layer takes of a token beyond its arithmetic and its bytes, with one thread.

    python benchmarks/beyond.py [--widths 32 64 128] [--rounds 25]

"a layer" is measured whole, in ONNX Runtime: two models differ in nothing but the number of their layers, 2 and 6.
Both decode in turn at 16 to 80 tokens of context; what four layers more take, divided by four, is what a layer takes.
The parts are measured in C++ (kernels/decoder_layers/parts.cc), each in a loop of its own over the same numbers.

"beyond" is "a layer" less its four products and attention. It holds normalising, rounding and the activation (what
those take is beside it), going from phase to phase, and what ONNX Runtime does for each input of the node. Six layers
of width 128 fit into a second cache of 1 MB; of wider ones "beyond" holds bytes that come from further away as well.

Random weights, int4 in groups of 32, level 4, a float16 cache.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from graph import RandomWeights
from layers import DEMO

from pythia_export.base.compute import Compute
from pythia_export.base.device import CPU
from pythia_export.base.machine import machine
from pythia_export.base.native_library import instruction_set, kernels_path
from pythia_export.calibrate import quantize_stream
from pythia_export.graph.trunk import build_graph
from pythia_export.recipe import Export, Quantize
from pythia_export.runtime import Session
from pythia_export.weights.layout import layout
from pythia_export.weights.names import DATA_FILE
from pythia_export.weights.writer import WeightsWriter

CMAKE = Path(sys.executable).with_name("cmake")
LAYERS, CONTEXT, STEPS = (2, 6), 16, 64
EXPORT, QUANTIZE = Export(accuracy_level=4, kv_cache="float16"), Quantize(method="rtn", group_size=32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="*", default=[32, 64, 128])
    parser.add_argument("--rounds", type=int, default=25)
    args = parser.parse_args()
    library = kernels_path()
    if library is None:
        sys.exit("the kernels are not built: make kernels")
    subprocess.run([CMAKE, "--build", library.parent, "--target", "layer_parts"], check=True, capture_output=True)
    with tempfile.TemporaryDirectory() as scratch:
        models = {width: [opened(width, n, Path(scratch)) for n in LAYERS] for width in args.widths}
        print(f"{machine()}; {instruction_set(library)}; 1 thread\n")
        print("| width | a layer, us | products | attention | beyond | of it rounding, norms, activation |")
        print("|---" * 6 + "|")
        for width, sessions in models.items():
            rounds = [one_round(sessions, width, library.parent) for _ in range(args.rounds + 1)][1:]
            beyond = statistics.median(whole - products - attention for whole, products, attention, _ in rounds)
            whole, products, attention, others = map(statistics.median, zip(*rounds, strict=True))
            cells = (whole, products, attention, beyond, others)
            print(f"| {width} | " + " | ".join(f"{x:.2f}" for x in cells) + " |", flush=True)


def opened(width: int, layers: int, scratch: Path) -> Session:
    heads = max(1, width // 32)
    config = replace(
        DEMO, vocab_size=64, hidden_size=width, num_layers=layers, num_heads=heads, intermediate_size=4 * width
    )
    folder = scratch / f"{width}.{layers}"
    folder.mkdir()
    places = layout(config, QUANTIZE, "float32")
    with WeightsWriter(folder / DATA_FILE, places) as writer:
        quantize_stream(RandomWeights(config, CPU), writer, None, Compute(CPU))
    graph = build_graph(config, places, EXPORT).SerializeToString()
    return Session(graph, folder, config, kv_cache="shared", kv_dtype=EXPORT.cache_dtype, threads=1)


def one_round(sessions: list[Session], width: int, built: Path) -> list[float]:
    """Return microseconds of a layer, and of its parts."""
    medians = []
    for session in sessions:
        cache = session.start(1, CONTEXT + STEPS)
        session.step(cache, np.ones((1, CONTEXT), np.int64), keep=1)
        times = []
        for _ in range(STEPS):
            began = time.perf_counter()
            session.decode(cache, [1])
            times.append(time.perf_counter() - began)
        medians.append(statistics.median(times))
    ran = subprocess.run([built / "layer_parts", str(width)], check=True, capture_output=True, text=True)
    return [(medians[1] - medians[0]) / (LAYERS[1] - LAYERS[0]) * 1e6, *map(float, ran.stdout.split()[1:])]


if __name__ == "__main__":
    main()
