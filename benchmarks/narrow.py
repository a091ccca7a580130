"""Weights of 2 and 3 bits as our kernels read them, beside 4 bits: products alone, and whole graphs.

    python benchmarks/narrow.py products [--shapes 1024x4096 512x2048] [--threads 1 2] [--rows 1 16 128]
    python benchmarks/narrow.py graphs [--size 410m] [--threads 1 2]
    python benchmarks/narrow.py opening [--size 410m]

Random codes, groups of 128, accuracy level 4. `products`: matrices of h_to_4h, one after another; as many as take 128
MB in 4 bits for one row, so that none is in the cache when its turn comes again, and 4 for more rows. `graphs`: tokens
decoded at 128 tokens of context, with a cache of float16. All bits take turns; a figure is the median over rounds.
`opening`: a process for each; the peak is that process's, Python and ONNX Runtime included. `in 4` is 3 bits stored in
4, which is what an artifact had before; `function` is ONNX Runtime without our library.
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
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from pythia_export.base.machine import machine
from pythia_export.base.native_library import kernels_path
from pythia_export.graph.ops import DOMAIN, LINEAR, LINEAR_3, OPSET
from pythia_export.graph.trunk import build_graph
from pythia_export.model.neox import NeoXConfig
from pythia_export.model.suite import geometry
from pythia_export.recipe import Export, Quantize
from pythia_export.runtime import Session, peak_memory_bytes
from pythia_export.weights.layout import Layout, layout
from pythia_export.weights.names import DATA_FILE
from pythia_export.weights.narrow import narrow_shape

GROUP = 128
EXPORT = Export(accuracy_level=4, kv_cache="float16")
STORED = {
    "4": Quantize(method="rtn", bits=4),
    "3": Quantize(method="rtn", bits=3, three_bit_field=3),
    "2": Quantize(method="rtn", bits=2),
    "3 in 4": Quantize(method="rtn", bits=3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("products", "graphs", "opening", "opened"))
    parser.add_argument("--shapes", nargs="*", default=["1024x4096", "512x2048"], help="K x N")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 16, 128])
    parser.add_argument("--size", default="410m")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--of", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if kernels_path() is None:
        sys.exit("the kernels are not built: make kernels")
    if args.part == "opened":
        return opened(args.size, *args.of)
    print(f"{machine()}\n")
    {"products": products, "graphs": graphs, "opening": opening}[args.part](args)


def products(args: argparse.Namespace) -> None:
    print("| N x K | threads | rows | 4 bits, us | 3 bits, us | of 4's | 2 bits, us | of 4's |\n" + "|---" * 8 + "|")
    for shape in args.shapes:
        depth, columns = map(int, shape.split("x"))
        for threads in args.threads:
            for rows in args.rows:
                count = 4 if rows > 1 else max(4, (256 << 20) // (depth * columns))
                sessions = [product_session(depth, columns, bits, count, threads) for bits in (4, 3, 2)]
                x = np.random.default_rng(0).standard_normal((rows, depth), np.float32)
                four, three, two = (taken / count for taken in taking_turns(sessions, x, args.rounds))
                cells = f"{four:,.1f} | {three:,.1f} | {three / four:.2f} | {two:,.1f} | {two / four:.2f}"
                print(f"| {columns} x {depth} | {threads} | {rows} | {cells} |", flush=True)


def product_session(depth: int, columns: int, bits: int, count: int, threads: int) -> onnxruntime.InferenceSession:
    rng = np.random.default_rng(0)
    shape = (columns, *narrow_shape(depth)) if bits == 3 else (columns, depth // GROUP, GROUP * bits // 8)
    attributes = {"K": depth, "N": columns, "bits": bits, "block_size": GROUP}
    if bits == 3:
        attributes["accuracy_level"] = 4
    nodes, held = [], []
    for i in range(count):
        held += [numpy_helper.from_array(rng.integers(0, 256, shape, dtype=np.uint8), f"B{i}")]
        held += [numpy_helper.from_array(rng.random((columns, depth // GROUP), np.float32), f"s{i}")]
        inputs = ["A", f"B{i}", f"s{i}"]
        nodes.append(
            helper.make_node(LINEAR_3 if bits == 3 else LINEAR, inputs, [f"Y{i}"], domain=DOMAIN, **attributes)
        )
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("A", TensorProto.FLOAT, ["rows", depth])],
        [helper.make_tensor_value_info(f"Y{i}", TensorProto.FLOAT, ["rows", columns]) for i in range(count)],
        held,
    )
    opsets = [helper.make_opsetid(*pair) for pair in (("", OPSET), (DOMAIN, 1))]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # sessions would spin side by side
    options.register_custom_ops_library(str(kernels_path()))
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"])


def taking_turns(sessions: list[onnxruntime.InferenceSession], x: np.ndarray, rounds: int) -> list[float]:
    """Return microseconds of each session."""
    times: list[list[float]] = [[] for _ in sessions]
    for _ in range(rounds + 1):  # the first round warms up
        for session, taken in zip(sessions, times, strict=True):
            began = time.perf_counter()
            session.run(None, {"A": x})
            taken.append((time.perf_counter() - began) * 1e6)
    return [statistics.median(taken[1:]) for taken in times]


def weights(size: str, stored: str) -> tuple[NeoXConfig, Layout]:
    config = geometry(f"EleutherAI/pythia-{size}")
    if config is None:
        sys.exit(f"{size} is no size of the suite")
    return config, layout(config, STORED[stored], EXPORT.dtype)


def write(places: Layout, folder: Path) -> None:
    """Write random codes, scales of 0.01, and LayerNorms of 1."""
    rng = np.random.default_rng(0)
    memory = np.memmap(folder / DATA_FILE, np.uint8, mode="w+", shape=(places.nbytes,))
    for name, slot in places.slots.items():
        view = slot.view(memory)
        view[...] = (
            rng.integers(0, 256, slot.shape, np.uint8) if slot.dtype == "uint8" else 1 if "norm" in name else 0.01
        )
    memory.flush()


def session(size: str, stored: str, folder: Path, threads: int, native: bool) -> tuple[Session, int]:
    config, places = weights(size, stored)
    if not (folder / DATA_FILE).exists():
        write(places, folder)
    graph = build_graph(config, places, EXPORT)
    found = Session(
        graph.SerializeToString(), folder, config, kv_cache="shared", kv_dtype=EXPORT.cache_dtype, threads=threads,
        native=native,
    )  # fmt: skip
    return found, places.nbytes


def graphs(args: argparse.Namespace) -> None:
    print("| | threads | 4 bits, tokens/s | 3 bits | of 4's | 2 bits | of 4's |\n" + "|---" * 7 + "|")
    context, steps = 128, 16
    with tempfile.TemporaryDirectory() as scratch:
        for threads in args.threads:
            sessions = {}
            for stored in ("4", "3", "2"):
                folder = Path(scratch) / stored
                folder.mkdir(exist_ok=True)
                sessions[stored] = session(args.size, stored, folder, threads, True)[0]
            ids = np.zeros((1, context), np.int64)
            caches = {name: found.start(1, context + (args.rounds + 1) * steps + 1) for name, found in sessions.items()}
            times: dict[str, list[float]] = {name: [] for name in sessions}
            for name, found in sessions.items():
                found.step(caches[name], ids, keep=1)
            for _ in range(args.rounds + 1):
                for name, found in sessions.items():
                    time.sleep(0.06)  # the threads of the other session spin for a while
                    began = time.perf_counter()
                    for _ in range(steps):
                        found.step(caches[name], ids[:, :1])
                    times[name].append((time.perf_counter() - began) / steps)
            four, three, two = (1 / statistics.median(taken[1:]) for taken in times.values())
            cells = f"{four:,.1f} | {three:,.1f} | {three / four:.2f} | {two:,.1f} | {two / four:.2f}"
            print(f"| {args.size} | {threads} | {cells} |", flush=True)
            del sessions, caches, found


def opening(args: argparse.Namespace) -> None:
    print("| bits | speed | file | opened in | peak memory |\n" + "|---" * 5 + "|")
    for stored in STORED:
        with tempfile.TemporaryDirectory() as scratch:
            write(weights(args.size, stored)[1], Path(scratch))
            for speed in ("native", "function"):
                command = [sys.executable, __file__, "opened", "--size", args.size, "--of", stored, speed, scratch]
                print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="", flush=True)


def opened(size: str, stored: str, speed: str, folder: str) -> None:
    began = time.perf_counter()
    found, nbytes = session(size, stored, Path(folder), 1, speed == "native")
    taken = time.perf_counter() - began
    assert found.speed == speed, found.why
    print(f"| {stored} | {speed} | {nbytes / 1e6:,.0f} MB | {taken:.2f} s | {peak_memory_bytes() / 1e6:,.0f} MB |")


if __name__ == "__main__":
    main()
