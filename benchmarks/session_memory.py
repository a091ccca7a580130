"""Peak memory of a session of a real size, beside the size of its artifact and cache.

    python benchmarks/session_memory.py [--size 410m] [--layers N] [--prefill 512] [--context 2048]

Random weights as in graph.py. Each line is a process of its own: it opens the graph and fills a cache of the whole
context, so many tokens a step, of which the last alone gets logits, as in generation. The peak is the process's
high-water mark, Python and ONNX Runtime included; "of both" is that peak over artifact plus cache.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

CACHES = ("float32", "float16", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="410m")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--in-process", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_process:
        folder, kept, native = args.in_process
        return _run(Path(folder), kept, native == "native", args.prefill, args.context)

    from graph import write_weights

    from pythia_export.base.machine import machine
    from pythia_export.graph.decoder import build_decoder
    from pythia_export.model.suite import geometry
    from pythia_export.recipe import Export, Quantize
    from pythia_export.weights.layout import layout

    config = geometry(f"EleutherAI/pythia-{args.size}")
    if config is None:
        parser.error(f"{args.size} is no size of the suite")
    config = dataclasses.replace(config, num_layers=args.layers or config.num_layers)
    print(f"pythia-{args.size}'s shapes, {config.num_layers} layers, int4 in groups of 128; {machine()}\n")
    print("| speed | cache of | artifact | cache | peak | of both |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "weights"
        write_weights(config, 4, folder)
        (folder / "config.json").write_text(json.dumps(config.to_dict("float32")))
        places = layout(config, Quantize(method="rtn", group_size=128), "float32")
        for kept in CACHES:
            graph = build_decoder(config, places, Export(accuracy_level=4, kv_cache=kept))
            (folder / f"{kept}.onnx").write_bytes(graph.SerializeToString())
        for speed in ("native", "function"):
            for kept in CACHES:
                command = [sys.executable, __file__, *sys.argv[1:], "--in-process", str(folder), kept, speed]
                print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="", flush=True)


def _run(folder: Path, kept: str, native: bool, prefill: int, context: int) -> None:
    import numpy as np

    from pythia_export.model.neox import NeoXConfig, cache_bytes
    from pythia_export.runtime import Session, peak_memory_bytes

    config = NeoXConfig.from_dict(json.loads((folder / "config.json").read_text()), "config.json")
    graph = folder / f"{kept}.onnx"
    session = Session(graph, folder, config, kv_cache="shared", kv_dtype=kept, native=native)
    cache, ids = session.start(1, context), np.arange(prefill)[None] % config.vocab_size
    while cache.length < context:
        session.step(cache, ids[:, : context - cache.length], keep=1)
    artifact = graph.stat().st_size + (folder / "model.onnx_data").stat().st_size
    held, peak = cache_bytes(config, kept, context), peak_memory_bytes()
    figures = " | ".join(f"{n / 1e6:,.0f} MB" for n in (artifact, held, peak))
    print(f"| {session.speed} | {kept} | {figures} | {peak / (artifact + held):.2f} |")


if __name__ == "__main__":
    main()
