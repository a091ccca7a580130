"""What looking inside costs: taps beside the graph without, and TransformerLens in torch on the same texts.

    python benchmarks/trace.py make 410m build/trace-410m --tokenizer build/demo
    python benchmarks/trace.py taps build/trace-410m             what the residual taps cost of a prefill
    python benchmarks/trace.py beside build/trace-410m --lens build/lens/bin/python [--json FILE]
    python benchmarks/trace.py sparse 12b build/trace-12b --tokenizer build/demo
    python benchmarks/trace.py ours build/trace-12b --texts 1

`make` writes a checkpoint of a size's shapes with random weights, and an artifact of it: int4 in groups of 128, level
4, residual taps. `taps` times prefills of 512 tokens in turn, and prints medians. `beside` reads the residual stream at
every layer boundary of texts of 512 tokens, by `Artifact.trace` and by TransformerLens 4's own bridge in float32 torch,
each in a process of its own; a pass warms up. Peak memory is the process's high-water mark, libraries included.
`sparse` makes no checkpoint: the weights are a file of zeros that takes no room on the disk, and all of it is read.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

TOKENS = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "sparse", "taps", "beside", "ours", "theirs"])
    parser.add_argument("names", nargs="+", metavar="[SIZE] FOLDER")
    parser.add_argument("--tokenizer", type=Path, default=Path("build/demo"), help="an artifact that has one")
    parser.add_argument("--lens", default="build/lens/bin/python", help="a Python with TransformerLens 4")
    parser.add_argument("--texts", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    folder = Path(args.names[-1])
    match args.what:
        case "make":
            make(args.names[0], folder, args.tokenizer)
        case "sparse":
            sparse(args.names[0], folder / "artifact", args.tokenizer)
        case "taps":
            print(json.dumps(taps(folder, args.rounds)))
        case "beside":
            beside(folder, args.lens, args.texts, args.json)
        case _:
            print(json.dumps((ours if args.what == "ours" else theirs)(folder, args.texts)))


def make(size: str, folder: Path, tokenizer: Path) -> None:
    from graph import RandomWeights
    from safetensors.torch import save_file

    from pythia_export import Artifact
    from pythia_export.commands.export import export
    from pythia_export.commands.quantize import quantize
    from pythia_export.model.neox import tensors
    from pythia_export.model.suite import geometry
    from pythia_export.recipe import parse_recipe

    config = geometry(f"EleutherAI/pythia-{size}")
    assert config is not None, f"{size} is no size of the suite"
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True)
    weights = RandomWeights(config)
    save_file({s.name: weights.tensor(s.name).half() for s in tensors(config)}, checkpoint / "model.safetensors")
    (checkpoint / "config.json").write_text(json.dumps(config.to_dict("float16")))
    (checkpoint / "tokenizer.json").write_text(Artifact.open(tokenizer).tokenizer().to_str())
    recipe = {
        "model": {"path": str(checkpoint.absolute())},
        "quantize": {"method": "rtn", "bits": 4, "group_size": 128},
        "export": {"accuracy_level": 4, "taps": ["resid"]},
        "verify": {"source": "python-stdlib", "tokens": 256, "sequence_length": 64},
    }
    quantize(parse_recipe(recipe), folder / "weights")
    export(folder / "weights", folder / "artifact")


def sparse(size: str, folder: Path, tokenizer: Path) -> None:
    """An artifact with taps whose weights are a hole in a file. Its manifest has no hashes that anybody could check."""
    from pythia_export import Artifact
    from pythia_export.commands.contents import taps_graph
    from pythia_export.graph.decoder import build_decoder
    from pythia_export.model.suite import geometry
    from pythia_export.recipe import parse_recipe
    from pythia_export.records.manifest import MANIFEST_SCHEMA
    from pythia_export.weights.layout import layout_of

    config, like = geometry(f"EleutherAI/pythia-{size}"), Artifact.open(tokenizer)
    assert config is not None, f"{size} is no size of the suite"
    changes = {
        "quantize": {"method": "rtn", "bits": 4, "group_size": 128, "embedding": "int4"},
        "export": {"accuracy_level": 4, "taps": ["resid"]},
    }
    recipe = parse_recipe({"model": {"path": "none"}, "verify": like.manifest.recipe["verify"]} | changes)
    places = layout_of(recipe, config)
    folder.mkdir(parents=True)
    with (folder / "model.onnx_data").open("wb") as file:
        file.truncate(places.nbytes)
    (folder / "model.onnx").write_bytes(build_decoder(config, places, recipe.export).SerializeToString())
    (folder / "taps.onnx").write_bytes(taps_graph(config, places, recipe.export))
    (folder / "config.json").write_text(json.dumps(config.to_dict("float32")))
    (folder / "tokenizer.json").write_text(like.tokenizer().to_str())
    files = {path.name: {"sha256": "0" * 64, "size": path.stat().st_size} for path in folder.iterdir()}
    said = like.manifest.to_json() | {"recipe": recipe.model_dump(mode="json"), "files": files}
    (folder / "manifest.json").write_text(json.dumps(said | {"schema": MANIFEST_SCHEMA}))
    print(f"{folder}: weights of {places.nbytes / 1e9:.1f} GB")


def texts_of(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 4096, (count, TOKENS))


def taps(folder: Path, rounds: int) -> dict[str, float]:
    """Median milliseconds of a prefill whose last token gets logits: without taps, and with every residual stream."""
    from pythia_export import Artifact
    from pythia_export.runtime import Session, TapSession

    artifact = Artifact.open(folder / "artifact")
    ids = texts_of(1)
    plain, tapped = Session.open(artifact), TapSession(artifact, ["resid", "logits"])
    reads = TapSession(artifact, ["resid"])
    contestants: dict[str, Callable[[], object]] = {
        "all logits": lambda: plain.logits(ids),
        "all logits and taps": lambda: tapped.read(ids),
        "last logits": lambda: plain.step(plain.start(1, TOKENS), ids, keep=1),
        "taps": lambda: reads.read(ids),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):  # the first warms up
        for name, work in contestants.items():
            time.sleep(0.05)  # the threads of the contestant before spin for a while
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    return {name: round(1000 * statistics.median(found[1:]), 1) for name, found in seconds.items()}


def ours(folder: Path, texts: int) -> dict[str, float]:
    from pythia_export import Artifact

    artifact = Artifact.open(folder / "artifact")
    rows = texts_of(texts)
    artifact.trace(rows[:1], "resid")
    began = time.perf_counter()
    for row in rows:
        artifact.trace(row[None], "resid")
    return figures(rows.size, time.perf_counter() - began)


def theirs(folder: Path, texts: int) -> dict[str, float]:
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(folder / "checkpoint"), dtype=torch.float32, device="cpu")
    last = f"blocks.{bridge.cfg.n_layers - 1}.hook_out"
    wanted = {f"blocks.{layer}.hook_in" for layer in range(bridge.cfg.n_layers)} | {last}
    rows = torch.tensor(texts_of(texts))
    with torch.inference_mode():
        bridge.run_with_cache(rows[:1], names_filter=lambda name: name in wanted)
        began = time.perf_counter()
        for row in rows:
            bridge.run_with_cache(row[None], names_filter=lambda name: name in wanted)
    return figures(rows.numel(), time.perf_counter() - began)


def figures(tokens: int, seconds: float) -> dict[str, float]:
    from resource import RUSAGE_SELF, getrusage

    return {"tokens_per_s": round(tokens / seconds, 1), "peak_mb": round(getrusage(RUSAGE_SELF).ru_maxrss / 1024)}


def beside(folder: Path, lens: str, texts: int, into: Path | None) -> None:
    from pythia_export.base.machine import machine

    print(f"{machine()}; {texts} texts of {TOKENS} tokens")
    found = {}
    for what, python in (("ours", sys.executable), ("theirs", lens)):
        command = [python, __file__, what, str(folder), "--texts", str(texts)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[what] = json.loads(done.stdout.splitlines()[-1])
        print(what, found[what], flush=True)
    speed = found["ours"]["tokens_per_s"] / found["theirs"]["tokens_per_s"]
    memory = found["ours"]["peak_mb"] / found["theirs"]["peak_mb"]
    print(f"{speed:.2f} times the tokens a second, {memory:.2f} of the memory")
    if into is not None:
        into.write_text(json.dumps({"machine": machine(), "tokens": TOKENS, "texts": texts, **found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
