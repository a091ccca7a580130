"""Whole graphs of a real size: stock attention beside the native kernels with each type of cache.

    python benchmarks/graph.py [--size 410m] [--layers N] [--contexts 128 1500] [--prefill 512] [--threads 2 1]
                               [--rounds 5]

Random weights, int4 in groups of 128 (round to nearest), head int8, accuracy level 4. "stock" is GroupQueryAttention in
the graph with a float32 cache: what an artifact's function is inlined to. "stock, int8 cache" is its quantised cache,
with scales of 1. "two products" is the native graph with quantize.products = 2. Contestants take turns in one process;
a decode figure is the median over rounds of 16 tokens each, a prefill figure over rounds of one call.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pythia_export.base.compute import Compute
from pythia_export.base.device import CPU
from pythia_export.base.machine import machine
from pythia_export.calibrate import quantize_stream
from pythia_export.graph.cache_scales import unit_scales
from pythia_export.graph.decoder import build_decoder
from pythia_export.model.neox import NeoXConfig, tensors
from pythia_export.model.suite import geometry
from pythia_export.recipe import Export, Quantize
from pythia_export.runtime import Session
from pythia_export.weights.layout import Layout, layout
from pythia_export.weights.names import DATA_FILE
from pythia_export.weights.writer import WeightsWriter

STEPS = 16
CASES = {
    "stock": (4, Export(rotary="gqa", accuracy_level=4)),
    "stock, int8 cache": (4, Export(rotary="gqa", accuracy_level=4, kv_cache="int8")),
    "native, float32 cache": (4, Export(accuracy_level=4)),
    "native, float16 cache": (4, Export(accuracy_level=4, kv_cache="float16")),
    "native, int8 cache": (4, Export(accuracy_level=4, kv_cache="int8")),
    "native, int8 cache, two products": (2, Export(accuracy_level=4, kv_cache="int8")),
}


class RandomWeights:
    """A checkpoint that is made up tensor by tensor, on a device."""

    def __init__(self, config: NeoXConfig, device: torch.device = CPU) -> None:
        self.config, self._device = config, device
        self._shapes = {spec.name: spec for spec in tensors(config)}

    def tensor(self, name: str) -> torch.Tensor:
        spec = self._shapes[name]
        generator = torch.Generator(self._device).manual_seed(len(name) + sum(map(ord, name)))
        value = torch.empty(spec.shape, device=self._device).normal_(0, 0.02, generator=generator)
        return value + 1 if spec.role == "norm" and name.endswith("weight") else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="410m")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--contexts", type=int, nargs="*", default=[128, 1500])
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--threads", type=int, nargs="*", default=[2, 1])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    config = geometry(f"EleutherAI/pythia-{args.size}")
    if config is None:
        parser.error(f"{args.size} is no size of the suite")
    if args.layers:
        config = dataclasses.replace(config, num_layers=args.layers)
    print(f"pythia-{args.size}'s shapes, {config.num_layers} layers, int4 in groups of 128; {machine()}\n")
    contexts = [f"decode at {n:,}, tok/s | of stock" for n in args.contexts]
    print(f"| threads | | {' | '.join(contexts)} | prefill {args.prefill}, tok/s | of stock |")
    print("|---" * (4 + 2 * len(args.contexts)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for products in {products for products, _ in CASES.values()}:
            write_weights(config, products, Path(folder) / str(products))
        for threads in args.threads:
            _measure(config, Path(folder), threads, args.contexts, args.prefill, args.rounds)


def write_weights(
    config: NeoXConfig, products: int, folder: Path, dtype: str = "float32", device: torch.device = CPU
) -> Layout:
    """Random weights, rounded to nearest, and where they lie; `device` draws and rounds them."""
    folder.mkdir()
    quantize = Quantize(method="rtn", group_size=128, products=products)
    places = layout(config, quantize, dtype)
    with WeightsWriter(folder / DATA_FILE, places) as writer:
        quantize_stream(RandomWeights(config, device), writer, None, Compute(device))
    return places


def _measure(config: NeoXConfig, folder: Path, threads: int, contexts: list[int], prefill: int, rounds: int) -> None:
    sessions = {}
    for name, (products, export) in CASES.items():
        places = layout(config, Quantize(method="rtn", group_size=128, products=products), "float32")
        scales = unit_scales(config) if export.static_scales else None
        graph = build_decoder(config, places, export, scales=scales).SerializeToString()
        sessions[name] = Session(
            graph, folder / str(products), config, kv_cache="shared", kv_dtype=export.cache_dtype, threads=threads
        )
        assert sessions[name].speed == name.split(",")[0], sessions[name].why
    many = {name: [] for name in sessions}
    steps = {(name, n): [] for name in sessions for n in contexts}
    rng = np.random.default_rng(0)
    for _ in range(rounds + 1):  # the first round warms up
        for name, session in sessions.items():
            time.sleep(0.1)  # the threads of the contestant before spin for a while
            cache = session.start(1, max(*contexts, prefill) + STEPS)
            ids = rng.integers(0, config.vocab_size, (1, max(*contexts, prefill)))
            began = time.perf_counter()
            session.step(cache, ids[:, :prefill])
            many[name].append(prefill / (time.perf_counter() - began))
            for n in contexts:
                # Filled for good: memory that was never written is one page of zeros, which no cache has to fetch.
                cache = session.start(1, n + 1 + STEPS)
                session.step(cache, ids[:, :n])
                session.step(cache, ids[:, :1])
                began = time.perf_counter()
                for _ in range(STEPS):
                    session.step(cache, ids[:, :1])
                steps[name, n].append(STEPS / (time.perf_counter() - began))
    for name in sessions:
        cells = []
        for n in contexts:
            speed, stock = (statistics.median(steps[x, n][1:]) for x in (name, "stock"))
            cells.append(f"{speed:.1f} | {speed / stock:.2f}")
        speed, stock = (statistics.median(many[x][1:]) for x in (name, "stock"))
        print(f"| {threads} | {name} | {' | '.join(cells)} | {speed:.0f} | {speed / stock:.2f} |", flush=True)


if __name__ == "__main__":
    main()
