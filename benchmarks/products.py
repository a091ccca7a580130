"""Products with int4 and int8 weights: our kernel beside ONNX Runtime's MatMulNBits at accuracy level 4.

    python benchmarks/products.py [--shape 1024x4096] [--threads 1 2] [--rounds 21]

Matrices of pythia-410m's h_to_4h ([4096, 1024]) with random weights, one after another: 64 for few rows, so that none
is in the cache when its turn comes again, 8 for many, which do not wait for weights. Both take turns; a figure is the
median over rounds, for one matrix. "Of reading" is the time in which C's memchr reads as many bytes, codes and scales,
with as many threads and between them, over ours.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np
import onnxruntime
from attention import seconds_a_byte
from onnx import TensorProto, helper, numpy_helper

from pythia_export.base.machine import machine
from pythia_export.base.native_library import kernels_path
from pythia_export.graph.ops import DOMAIN, MICROSOFT, OPSET

GRIDS = (4, 32), (4, 128), (8, 128)
ROWS = {64: (1, 4, 16), 8: (128, 512)}  # by the number of matrices


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1024x4096", help="K x N")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=21)
    args = parser.parse_args()
    depth, columns = map(int, args.shape.split("x"))
    if kernels_path() is None:
        sys.exit("the kernels are not built: make kernels")
    print(f"{columns} x {depth}; {machine()}\n")
    print("| threads | bits | group | rows | ONNX Runtime, us | ours, us | of its | GMAC/s | GB/s of weights", end="")
    print(" | of reading |")
    print("|---" * 10 + "|")
    for threads in args.threads:
        for bits, group in GRIDS:
            for matrices, of_rows in ROWS.items():
                both = [
                    session(matrices, depth, columns, bits, group, threads, domain) for domain in (MICROSOFT, DOMAIN)
                ]
                for rows in of_rows:
                    x = np.random.default_rng(0).standard_normal((rows, depth), np.float32)
                    theirs, ours, a_byte = measure(both, x, args.rounds, threads)
                    theirs, ours = theirs / matrices, ours / matrices
                    held = depth * columns * bits / 8 + 4 * depth * columns / group
                    work, read = depth * columns * rows / ours / 1e3, depth * columns * bits / 8 / ours / 1e3
                    cell = f"{held * a_byte / ours:.2f}" if matrices == max(ROWS) else ""
                    times = f"{theirs:,.0f} | {ours:,.0f} | {ours / theirs:.2f}"
                    print(
                        f"| {threads} | {bits} | {group} | {rows} | {times} | {work:.0f} | {read:.1f} | {cell} |",
                        flush=True,
                    )


def session(
    matrices: int, depth: int, columns: int, bits: int, group: int, threads: int, domain: str
) -> onnxruntime.InferenceSession:
    rng = np.random.default_rng(0)
    attributes = {"K": depth, "N": columns, "bits": bits, "block_size": group}
    if domain == MICROSOFT:
        attributes["accuracy_level"] = 4
    nodes, held = [], []
    for i in range(matrices):
        codes = rng.integers(0, 256, (columns, depth // group, group * bits // 8), dtype=np.uint8)
        held += [numpy_helper.from_array(codes, f"B{i}")]
        held += [numpy_helper.from_array(rng.random(columns * depth // group, np.float32), f"s{i}")]
        nodes.append(helper.make_node("MatMulNBits", ["A", f"B{i}", f"s{i}"], [f"Y{i}"], domain=domain, **attributes))
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("A", TensorProto.FLOAT, ["rows", depth])],
        [helper.make_tensor_value_info(f"Y{i}", TensorProto.FLOAT, ["rows", columns]) for i in range(matrices)],
        held,
    )
    opsets = [helper.make_opsetid(*pair) for pair in (("", OPSET), (MICROSOFT, 1), (DOMAIN, 1))]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # two sessions would spin side by side
    if domain == DOMAIN:
        options.register_custom_ops_library(str(kernels_path()))
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"])


def measure(
    sessions: list[onnxruntime.InferenceSession], x: np.ndarray, rounds: int, threads: int
) -> tuple[float, float, float]:
    """Microseconds of both sessions, and in which a byte is read."""
    times: list[list[float]] = [[], [], []]
    for _ in range(rounds + 1):  # the first round warms up
        for session, taken in zip(sessions, times, strict=False):
            began = time.perf_counter()
            session.run(None, {"A": x})
            taken.append((time.perf_counter() - began) * 1e6)
        times[2].append(seconds_a_byte(threads) * 1e6)
    theirs, ours, a_byte = (statistics.median(taken[1:]) for taken in times)
    return theirs, ours, a_byte


if __name__ == "__main__":
    main()
