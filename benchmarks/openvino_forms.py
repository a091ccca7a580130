"""An artifact in OpenVINO: which form of its graph, which place of its cache and which settings are fast?

    python benchmarks/openvino_forms.py build/demo --peer-python build/consumers/openvino/bin/python [--tokens 128]

Graphs are of standard operators (`export --rotary onnx`) over the artifact's weights. Products are MatMulNBits, as
artifacts have them, or DequantizeLinear with blocks and a product of floats, over the same codes and scales. The cache
is passed from call to call, or kept by OpenVINO as `bench` lets it. "f32" has both settings that keep activations in
floats. Contestants take turns; each prompt of random tokens is followed by 24 steps, at lengths of the cache that were
not there before. Medians of tokens a second over the rounds.
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

sys.path.append(str(Path(__file__).parents[1]))  # for the interpreter that has OpenVINO and not this package

FORMS, CACHES, SETTINGS = ("MatMulNBits", "DequantizeLinear"), ("passed", "kept"), ("default", "f32")
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
STEPS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--peer-python", type=Path, help="an interpreter that has OpenVINO")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    if args.peer_python is None:
        measure(args.artifact, args.tokens, args.threads, args.rounds)
        return
    with tempfile.TemporaryDirectory() as scratch:
        write_forms(args.artifact, Path(scratch))
        numbers = [f"--{name}={getattr(args, name)}" for name in ("tokens", "threads", "rounds")]
        subprocess.run([args.peer_python, __file__, scratch, *numbers], check=True)


def write_forms(artifact: Path, out: Path) -> None:
    import onnx

    from pythia_export.artifact import Artifact
    from pythia_export.base.machine import machine
    from pythia_export.bench.standard import write_standard
    from pythia_export.graph.browser import unpack

    print(machine())
    graphs = [write_standard(Artifact.open(artifact), out / form) for form in FORMS]
    model = onnx.load(graphs[1], load_external_data=False)
    unpack(model)
    graphs[1].write_bytes(model.SerializeToString())


class Contestant:
    """One form in OpenVINO, for a batch of one."""

    def __init__(self, graph: Path, kept: bool, settings: dict[str, str | int]) -> None:
        import openvino

        from pythia_export.bench.contestants.openvino import keep_cache

        model = openvino.convert_model(graph)
        self._past = [x for x in (port.get_any_name() for port in model.inputs) if x.startswith("past")]
        _, heads, _, size = model.input(self._past[0]).partial_shape
        self._empty = np.zeros((1, heads.get_length(), 0, size.get_length()), "f4")
        if kept:
            keep_cache(model)
            self._past = []
        self._kept = {"beam_idx": np.zeros(1, np.int32)} if kept else {}
        self._request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def prompt(self, ids: np.ndarray) -> np.ndarray:
        self._request.reset_state()
        self._length, self._cache = 0, dict.fromkeys(self._past, self._empty)
        return self.forward(ids)

    def forward(self, ids: np.ndarray) -> np.ndarray:
        places = np.arange(self._length, self._length + len(ids))
        self._length += len(ids)
        feeds = {"input_ids": ids[None], "position_ids": places[None]}
        feeds["attention_mask"] = np.ones((1, self._length), np.int64)
        out = self._request.infer(feeds | self._kept | self._cache)
        self._cache = {name: out[name.replace("past_key_values", "present")] for name in self._past}
        found: np.ndarray = out["logits"][0]
        return found


def measure(folder: Path, tokens: int, threads: int, rounds: int) -> None:
    import openvino

    limits = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    contestants = {
        (form, cache, name): Contestant(
            folder / form / "model.onnx", cache == "kept", limits | (EXACT if name == "f32" else {})
        )
        for form in FORMS
        for cache in CACHES
        for name in SETTINGS
    }
    ids = np.random.default_rng(0).integers(1, 4096, tokens + STEPS * (rounds + 2))
    prompt: dict[tuple[str, ...], list[float]] = {key: [] for key in contestants}
    decode: dict[tuple[str, ...], list[float]] = {key: [] for key in contestants}
    exact = contestants[FORMS[0], "passed", "f32"].prompt(ids[:tokens]).copy()
    moved = {}
    for round_ in range(rounds + 1):
        for key, contestant in contestants.items():
            began = time.perf_counter()
            logits = contestant.prompt(ids[:tokens])
            middle = time.perf_counter()
            moved[key] = float(np.abs(logits - exact).max() / np.abs(exact).max())
            # Each round at lengths of its own: OpenVINO prepares products for a length once, and remembers them.
            contestant.forward(ids[tokens : tokens + STEPS * round_ + 1])
            started = time.perf_counter()
            for token in ids[tokens + STEPS * round_ + 1 :][: STEPS - 1]:
                contestant.forward(np.array([token]))
            if round_:  # the first is for warming up
                prompt[key].append(tokens / (middle - began))
                decode[key].append((STEPS - 1) / (time.perf_counter() - started))
    print(f"OpenVINO {openvino.__version__}, {threads} threads, a prompt of {tokens} tokens, {rounds} rounds\n")
    print("| products | cache | settings | prompt | decode | logits moved by |\n|---|---|---|---|---|---|")
    for key in contestants:
        speeds = [f"{statistics.median(found[key]):,.0f}" for found in (prompt, decode)]
        print(f"| {' | '.join((*key, *speeds, f'{moved[key]:.1g}'))} |")


if __name__ == "__main__":
    main()
