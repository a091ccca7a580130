"""The attention operator alone: our kernel with each type of cache beside ONNX Runtime's GroupQueryAttention.

    python benchmarks/attention.py [--size 410m] [--context 1500] [--prefill 512] [--threads 2 1] [--rounds 7]

The graph is one attention node a layer, for all layers of the size, so that caches do not stay in the processor's own;
contestants take turns, and a figure is the median over the rounds; a ratio is the median of the rounds' ratios, so that
other work on the machine strikes both. "Reading the cache" is the time in which C's memchr reads as many bytes as the
context fills of the caches, with as many threads.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import threading
import time
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from pythia_export.base.machine import machine
from pythia_export.base.native_library import kernels_path
from pythia_export.model.neox import NeoXConfig
from pythia_export.model.rotary import rotary_tables
from pythia_export.model.suite import geometry
from pythia_export.runtime.cache import aligned_zeros

STEPS = 4  # of one contestant in a row, as in use
CACHES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int8": TensorProto.INT8}
INPUTS = ("cos", "sin", "position_ids", "seqlens_k", "total_length", "attention_bias")

_memchr = ctypes.CDLL(None).memchr
_memchr.argtypes, _memchr.restype = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], ctypes.c_void_p


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="410m")
    parser.add_argument("--context", type=int, default=1500)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--threads", type=int, nargs="*", default=[2, 1])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    config = geometry(f"EleutherAI/pythia-{args.size}")
    library = kernels_path()
    if config is None or library is None:
        parser.error(f"{args.size} is no size of the suite" if config is None else "the kernels are not built")
    print(f"pythia-{args.size}'s {config.num_layers} layers of attention; {machine()}\n")
    print(
        "| threads | | decode, ms a token | of GroupQueryAttention's | of reading the cache | prefill, ms | of GQA's |"
    )
    print("|---|---|---|---|---|---|---|")
    for threads in args.threads:
        names = ["GroupQueryAttention, float32", *CACHES]
        runs = {name: _Run(config, name, threads, None if "Group" in name else str(library)) for name in names}
        decode: dict[str, list[float]] = {name: [] for name in names}
        prefill: dict[str, list[float]] = {name: [] for name in names}
        for run in runs.values():
            run(1, args.context)
            run(args.prefill, args.prefill)
        reading: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(args.rounds):
            for name, run in runs.items():
                decode[name].append(run(1, args.context))
                reading[name].append(run.nbytes(args.context) * seconds_a_byte(threads))
            for name, run in runs.items():
                prefill[name].append(run(args.prefill, args.prefill))
        stock = names[0]
        for name in names:
            print(
                f"| {threads} | {name} | {1e3 * statistics.median(decode[name]):.2f} "
                f"| {_ratio(decode[name], decode[stock]):.2f} | {_ratio(decode[name], reading[name]):.2f} "
                f"| {1e3 * statistics.median(prefill[name]):.0f} | {_ratio(prefill[name], prefill[stock]):.2f} |",
                flush=True,
            )
        bandwidth = runs["float32"].nbytes(args.context) / statistics.median(reading["float32"])
        print(f"\nmemory bandwidth, {threads} threads: {1e-9 * bandwidth:.1f} GB/s\n")


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def seconds_a_byte(threads: int) -> float:
    """The time to look in vain for a byte in 64 MiB a thread, which no processor keeps."""
    size, done = 1 << 26, threading.Barrier(threads + 1)
    parts = [np.ones(size, np.uint8) for _ in range(threads)]

    def look(part: np.ndarray) -> None:
        done.wait()
        _memchr(part.ctypes.data, 0, size)
        done.wait()

    for part in parts:
        threading.Thread(target=look, args=(part,)).start()
    done.wait()
    began = time.perf_counter()
    done.wait()
    return (time.perf_counter() - began) / (size * threads)


class _Run:
    """A session of attention nodes over bound caches of 2,048 places."""

    def __init__(self, config: NeoXConfig, kind: str, threads: int, library: str | None) -> None:
        self.config, self.cache = config, "float32" if library is None else kind
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if library is not None:
            options.register_custom_ops_library(library)
        graph = _graph(config, self.cache, library is not None)
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        heads, n = config.num_heads, config.head_dim
        shape = (1, heads, config.max_positions, n)
        rng, self.values = np.random.default_rng(0), {}
        for layer in range(config.num_layers):
            for part in ("key", "value"):
                filled: Any = rng.integers(-32, 33, shape)
                if self.cache == "int8":
                    self._bind_scale(layer, part, shape[:3])
                else:
                    filled = filled / 16
                dtype = {"float32": np.float32, "float16": np.float16, "int8": np.int8}[self.cache]
                held = aligned_zeros(shape, dtype)  # as a `Session` holds it
                held[...] = filled
                self.values[f"{layer}.{part}"] = onnxruntime.OrtValue.ortvalue_from_numpy(held)

    def _bind_scale(self, layer: int, part: str, shape: tuple[int, ...]) -> None:
        self.values[f"{layer}.{part}_scale"] = onnxruntime.OrtValue.ortvalue_from_numpy(
            np.full(shape, 1 / 16, np.float32)
        )

    def nbytes(self, context: int) -> int:
        c, size = self.config, {"float32": 4, "float16": 2, "int8": 1}[self.cache]
        per_token = 2 * c.num_layers * (c.hidden_size * size + (4 * c.num_heads if size == 1 else 0))
        return per_token * context

    def __call__(self, new: int, total: int) -> float:
        """Seconds a call with `new` tokens, the last of `total`."""
        cos, sin = (t.astype(np.float32) for t in rotary_tables(self.config))
        rng = np.random.default_rng(1)
        feeds = {
            "qkv": rng.standard_normal((1, new, 3 * self.config.hidden_size), np.float32),
            "cos": cos, "sin": sin,
            "position_ids": np.arange(total - new, total)[None],
            "seqlens_k": np.array([total - 1], np.int32), "total_length": np.array(total, np.int32),
            "attention_bias": np.zeros((1, 1, new, total), np.float32),
        }  # fmt: skip
        binding = self.session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for name, value in self.values.items():
            binding.bind_ortvalue_input(f"past.{name}", value)
            binding.bind_ortvalue_output(f"present.{name}", value)
        binding.bind_output("out")
        time.sleep(0.1)  # the threads of the contestant before spin for a while
        self.session.run_with_iobinding(binding)
        began = time.perf_counter()
        for _ in range(STEPS):
            self.session.run_with_iobinding(binding)
        return (time.perf_counter() - began) / STEPS


def _graph(config: NeoXConfig, cache: str, ours: bool) -> bytes:
    """Attention after attention, each on the same qkv; their outputs are summed so that none is dropped."""
    heads, n, value = config.num_heads, config.head_dim, helper.make_tensor_value_info
    kind = CACHES[cache]
    inputs = [
        value("qkv", TensorProto.FLOAT, ["B", "T", 3 * config.hidden_size]),
        *(value(t, TensorProto.FLOAT, [config.max_positions, config.rotary_dim // 2]) for t in ("cos", "sin")),
        value("position_ids", TensorProto.INT64, ["B", "T"]),
        value("seqlens_k", TensorProto.INT32, ["B"]),
        value("total_length", TensorProto.INT32, []),
        value("attention_bias", TensorProto.FLOAT, ["B", 1, "T", "total"]),
    ]
    outputs, nodes = [], []
    for layer in range(config.num_layers):
        parts = [f"{layer}.key", f"{layer}.value"]
        scales = [f"{part}_scale" for part in parts] if cache == "int8" else []
        for names, type_, shape in (
            (parts, kind, ["B", heads, "room", n]),
            (scales, TensorProto.FLOAT, ["B", heads, "room"]),
        ):
            inputs += [value(f"past.{name}", type_, shape) for name in names]
            outputs += [value(f"present.{name}", type_, shape) for name in names]
        past, present = ([f"{side}.{name}" for name in parts] for side in ("past", "present"))
        if ours:
            past_scales, present_scales = ([f"{side}.{name}" for name in scales] for side in ("past", "present"))
            node = helper.make_node(
                "RotaryAttention", ["qkv", *past, *INPUTS, *past_scales], [f"out{layer}", *present, *present_scales],
                domain="pythia", num_heads=heads, rotary_dim=config.rotary_dim,
            )  # fmt: skip
        else:
            node = helper.make_node(
                "GroupQueryAttention",
                ["qkv", "", "", *past, "seqlens_k", "total_length", "cos", "sin", "", "attention_bias"],
                [f"out{layer}", *present], domain="com.microsoft", num_heads=heads, kv_num_heads=heads, do_rotary=1,
            )  # fmt: skip
        nodes.append(node)
    nodes.append(helper.make_node("Sum", [f"out{layer}" for layer in range(config.num_layers)], ["out"]))
    outputs.append(value("out", TensorProto.FLOAT, ["B", "T", config.hidden_size]))
    opsets = [helper.make_opsetid(*pair) for pair in (("", 21), ("com.microsoft", 1), ("pythia", 1))]
    model = helper.make_model(
        helper.make_graph(nodes, "attention", inputs, outputs), opset_imports=opsets, ir_version=10
    )
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    main()
