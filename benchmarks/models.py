"""Every size beside llama.cpp and the other runtimes, by turns, with what the memory gives beside it.

    python benchmarks/models.py prepare 410m --peer-python build/llama/bin/python --peer-python PYTHON ...
    python benchmarks/models.py measure 410m --seconds 500
    python docs/generate.py                          # the tables of benchmarks/README.md, from benchmarks/models/

llama.cpp is compiled once for the machine, some 15 minutes of one core:

    python -m venv build/llama
    export CMAKE_ARGS=-DGGML_NATIVE=ON
    build/llama/bin/pip install --no-cache-dir --no-binary llama-cpp-python llama-cpp-python gguf

Without --no-cache-dir pip takes a wheel that it built before, whatever CMAKE_ARGS were then.

"prepare" makes what takes long and needs no quiet: artifacts of the size's shapes with random weights (int4 in groups
of 128, level 4; the demo's own weights, rounded to nearest), with caches of float32, float16 and int8, and every peer's
own file, all below build/models. It skips what is there, so an interrupted one goes on.

"measure" takes turns: one process of each contestant and number of threads, then the next round, until the seconds are
over or every contestant has its rounds. Every process is written to benchmarks/models/SIZE.json when it ends; the same
command goes on where it stopped. A file of another machine or of other artifacts is begun anew.

At 410m and 1b an artifact of 3 bits takes part too, rounded as the others are.

Prefill is of 128 tokens, decoding of 64 with 128 and with 1,500 tokens cached (448 on the demo). The read loop
(benchmarks/read.cc) reads as many bytes as a token reads: all weights but the embedding, and the cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from graph import RandomWeights
from safetensors.torch import save_file

from pythia_export.artifact import Artifact
from pythia_export.base.machine import machine
from pythia_export.base.native_library import kernels_path
from pythia_export.base.progress import SILENT
from pythia_export.bench import run as turns
from pythia_export.bench.job import Job
from pythia_export.bench.line_up import PEERS, Contestant, interpreters_for
from pythia_export.bench.standard import write_standard
from pythia_export.checkpoint import demo_folder
from pythia_export.commands.export import export
from pythia_export.commands.quantize import quantize
from pythia_export.model.neox import EMBEDDING, cache_bytes, tensors
from pythia_export.model.suite import geometry
from pythia_export.recipe import Recipe, load_recipe, parse_recipe
from pythia_export.weights.layout import layout

ROOT = Path(__file__).parent.parent
SIZES = ("demo", "14m", "31m", "70m", "160m", "410m", "1b")
PROMPT, NEW = 128, 64
CACHES = ("float32", "float16", "int8")
THREE = "pythia-export 3 bits, float16 cache"
WITH_THREE = ("410m", "1b")
OTHERS = (
    "llama.cpp Q4_0", "llama.cpp Q4_0, flash attention", "llama.cpp Q4_0, q8_0 cache", "onnxruntime-genai",
    "transformers.exporters int4", "OpenVINO int4", "OpenVINO (artifact)",
)  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """What `prepare` leaves for `measure`: jobs by contestant, ready to be run, and why others are absent."""

    jobs: dict[str, tuple[str, dict]]  # name: (interpreter, fields of a Job)
    absent: dict[str, str]
    token_bytes: dict[str, int]  # weights that a token reads, and its cache at 128 and late, as float32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "measure"))
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "models")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "models")
    parser.add_argument("--peer-python", type=Path, action="append", default=[])
    parser.add_argument("--without", action="append", default=[], help="a contestant that is left out")
    parser.add_argument("--threads", type=int, nargs="*", default=[2, 1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=500)
    args = parser.parse_args()
    folder = args.folder.absolute() / args.size
    folder.mkdir(parents=True, exist_ok=True)
    if args.what == "prepare":
        prepare(args.size, folder, args.peer_python)
    else:
        measure(args, folder)


# What takes long and needs no quiet


def prepare(size: str, folder: Path, pythons: list[Path]) -> None:
    checkpoint = _checkpoint(size, folder)
    artifacts = _artifacts(size, checkpoint, folder)
    opened = Artifact.open(artifacts["float32"])
    config, late = opened.config, min(1500, opened.config.max_positions - NEW)
    job = Job(
        module="ours", variant="native", artifact=str(artifacts["float32"]), checkpoint="", weights=[],
        scratch=str(folder), threads=2, vocab_size=config.vocab_size, prompt_tokens=PROMPT, new_tokens=NEW,
        contexts=[PROMPT, late],
    )  # fmt: skip
    original = turns._checkpoint(opened, SILENT)
    assert not isinstance(original, str), original
    if not (folder / "probe.npz").is_file():
        turns._reading(job, original, None, SILENT)
    weights = [str(path.absolute()) for path in original.pulled.weights]
    reading = replace(
        job, checkpoint=str(original.pulled.folder.absolute()), weights=weights, probe=str(folder / "probe.npz")
    )

    jobs: dict[str, tuple[str, dict]] = {}
    absent: dict[str, str] = {}
    ours = interpreters_for([Contestant("ours", "ours", "")], [])["ours"]
    for cache in CACHES:
        jobs[f"pythia-export, {cache} cache"] = (str(ours), asdict(replace(job, artifact=str(artifacts[cache]))))
    if size in WITH_THREE:
        jobs[THREE] = (str(ours), asdict(replace(job, artifact=str(artifacts["3 bits"]))))
    peers = [peer for peer in PEERS if peer.name in OTHERS]
    for name, python in interpreters_for(peers, pythons).items():
        peer = next(peer for peer in peers if peer.name == name)
        if isinstance(python, str):
            absent[name] = python
            continue
        its = replace(reading if peer.reads_checkpoint else job, module=peer.module, variant=peer.variant)
        if peer.name == "onnxruntime-genai":
            its = replace(its, artifact=str(artifacts["gqa"]))
        if peer.standard:
            graph = folder / "standard" / "model.onnx"
            its = replace(its, standard=str(graph if graph.is_file() else write_standard(opened, graph.parent)))
        done = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:8]}.prepared"
        try:
            if peer.prepares and not done.is_file():
                print(f"{size}: preparing {name}", flush=True)
                turns.in_own_process("prepare", python, its)
                done.touch()
        except turns.Failed as e:
            absent[name] = str(e)
            continue
        jobs[name] = (str(python), asdict(its))
    places = layout(config, opened.recipe.quantize, opened.recipe.export.dtype)
    weights_read = sum(slot.nbytes for name, slot in places.slots.items() if not name.startswith(EMBEDDING))
    token_bytes = {"weights": weights_read} | {f"cache at {n}": cache_bytes(config, "float32", n) for n in job.contexts}
    (folder / "prepared.json").write_text(json.dumps(asdict(Prepared(jobs, absent, token_bytes))))
    print(f"{size}: {', '.join(jobs)}; absent: {absent or 'none'}")


def _checkpoint(size: str, folder: Path) -> Path:
    if size == "demo":
        return demo_folder() / "main"
    checkpoint = folder / "checkpoint"
    if not (checkpoint / "config.json").is_file():
        config = geometry(f"EleutherAI/pythia-{size}")
        assert config is not None
        checkpoint.mkdir(exist_ok=True)
        weights = RandomWeights(config)
        halves = {spec.name: weights.tensor(spec.name).to(torch.float16) for spec in tensors(config)}
        save_file(halves, checkpoint / "model.safetensors", metadata={"format": "pt"})
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            (checkpoint / name).write_bytes((demo_folder() / "main" / name).read_bytes())
        (checkpoint / "config.json").write_text(json.dumps(config.to_dict("float16")))
    return checkpoint


def _artifacts(size: str, checkpoint: Path, folder: Path) -> dict[str, Path]:
    """Artifacts by cache, and that for onnxruntime-genai."""
    raw = {
        "model": {"path": str(checkpoint)}, "quantize": {"method": "rtn", "group_size": 128},
        "export": {"accuracy_level": 4},
        "verify": {"source": "python-stdlib", "tokens": 128, "sequence_length": 64},
    }  # fmt: skip
    recipe = load_recipe("demo", {"quantize.method": "rtn"}) if size == "demo" else parse_recipe(raw)
    forms = {cache: {"kv_cache": cache} for cache in CACHES} | {"gqa": {"rotary": "gqa"}}
    found = _exported(recipe, folder / "weights", {name: (folder / f"artifact-{name}", f) for name, f in forms.items()})
    if size in WITH_THREE:
        narrow = parse_recipe(raw | {"quantize": {"method": "rtn", "group_size": 128, "bits": 3}})
        form = {"3 bits": (folder / "artifact-3", {"kv_cache": "float16"})}
        found |= _exported(narrow, folder / "weights-3", form)
    return found


def _exported(recipe: Recipe, weights: Path, forms: dict[str, tuple[Path, dict]]) -> dict[str, Path]:
    if not weights.is_dir():
        quantize(recipe, weights)
    for out, form in forms.values():
        if not out.is_dir():
            export(weights, out, **form)
    return {name: out for name, (out, _) in forms.items()}


# By turns


def measure(args: argparse.Namespace, folder: Path) -> None:
    began = time.perf_counter()
    prepared = Prepared(**json.loads((folder / "prepared.json").read_text()))
    out = args.out / f"{args.size}.json"
    args.out.mkdir(parents=True, exist_ok=True)
    library = kernels_path()
    identity = {
        "size": args.size, "machine": machine(), "prompt": PROMPT, "new": NEW, "contexts": _contexts(prepared),
        "kernels": None if library is None else hashlib.sha256(library.read_bytes()).hexdigest()[:16],
        "token_bytes": prepared.token_bytes,
    }  # fmt: skip
    state = json.loads(out.read_text()) if out.is_file() else {}
    if any(state.get(key) != value for key, value in identity.items()):
        state = identity | {"absent": {}, "versions": {}, "read": {}, "rounds": {}}
    state["absent"] = dict(prepared.absent)  # what failed before is tried again
    seconds: dict[str, float] = {}
    reader = _reader(folder)
    names = [name for name in prepared.jobs if name not in args.without and name not in state["absent"]]
    while True:
        order = [(threads, name) for threads in args.threads for name in (*names, "read")]
        order = [x for x in order if x[1] not in state["absent"]]
        threads, name = min(order, key=lambda x: _rounds(state, *x))
        left = args.seconds - (time.perf_counter() - began)
        if _rounds(state, threads, name) >= args.rounds or left < seconds.get(f"{name} {threads}", 0):
            break
        started = time.perf_counter()
        if name == "read":
            state["read"].setdefault(str(threads), []).append(_read(reader, prepared.token_bytes, threads))
        else:
            _turn(state, prepared, name, threads)
        seconds[f"{name} {threads}"] = took = time.perf_counter() - started
        out.write_text(json.dumps(state, indent=1) + "\n")
        print(
            f"{args.size}  {threads} threads  round {_rounds(state, threads, name)}  {name}: {took:.0f} s", flush=True
        )


def _contexts(prepared: Prepared) -> list[int]:
    _, fields = next(iter(prepared.jobs.values()))
    return fields["contexts"]


def _rounds(state: dict, threads: int, name: str) -> int:
    found = state["read"] if name == "read" else state["rounds"].get(name, {})
    return len(found.get(str(threads), []))


def _turn(state: dict, prepared: Prepared, name: str, threads: int) -> None:
    python, fields = prepared.jobs[name]
    try:
        measured = turns.in_own_process("measure", Path(python), Job(**fields | {"threads": threads}))
    except turns.Failed as e:
        state["absent"][name] = str(e)
        return
    assert measured is not None
    state["versions"][name] = measured.versions
    state["rounds"].setdefault(name, {}).setdefault(str(threads), []).append(measured.figures.to_json())


def _reader(folder: Path) -> Path:
    """The read loop, compiled for this machine."""
    built = folder / "read"
    compiler = os.environ.get("CXX", "c++")
    flags = ["-O3", "-march=native", "-std=c++17", "-pthread"]
    subprocess.run([compiler, *flags, ROOT / "benchmarks" / "read.cc", "-o", built], check=True)
    return built


def _read(reader: Path, token_bytes: dict[str, int], threads: int) -> dict[str, float]:
    """Passes a second over the bytes of a token, by how many tokens are cached and how wide the cache is."""
    found = {}
    for place, cache in token_bytes.items():
        if place == "weights":
            continue
        for dtype, part in (("float32", 1), ("float16", 2), ("int8", 4)):
            count = token_bytes["weights"] + cache // part
            done = subprocess.run([reader, str(count), str(threads)], check=True, capture_output=True, text=True)
            found[f"{place}, {dtype}"] = float(done.stdout)
    return found


if __name__ == "__main__":
    main()
