"""ONNX Runtime with CUDA: whether our operators compute there what they should, and how fast artifacts are."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime
import torch
from bench import ROOT, Bench
from graph import write_weights

from pythia_export.base.errors import EXIT_GATE
from pythia_export.graph.decoder import build_decoder, kv_cache
from pythia_export.model.neox import EMBEDDING, NeoXConfig, cache_bytes
from pythia_export.recipe import Export, Quantize
from pythia_export.runtime import Session
from pythia_export.weights.layout import Layout, layout
from pythia_export.weights.names import DATA_FILE
from steps.attention import memory_rate
from steps.demo import TINY, command, recipe
from steps.kernels import run_tests
from steps.shapes import shape, tiny
from steps.torch_decoder import TorchDecoder

STEPS = 32  # tokens of one timing
SAME_TOP = {"float32": 0.99, "float16": 0.97}  # least share of likeliest tokens that torch has too


def contract(bench: Bench) -> None:
    """Our operators, a node at a time, in sessions: where inputs lie, the stream, all types."""
    named = "partial_rotary_refuses" if bench.dry else "GPU"
    run_tests(bench, named, "test_cuda_session.py")


def parity(bench: Bench) -> None:
    """`run` for `target = "cuda"`, artifacts in float32 and in float16, held to torch by function and by kernel."""
    recipe(bench)
    text = TINY if bench.dry else (ROOT / "recipes" / "demo.toml").read_text()
    body = text.partition("[verify.gates]")[0].replace("[export]\n", "").replace('target = "cpu"\n', "")
    body = "\n".join(line for line in body.splitlines() if not line.startswith("accuracy_level"))
    if bench.dry:
        body = body.replace("beam = 2", 'method = "rtn"')
    for dtype in bench.sized(("float32", "float16"), ("float16",)):
        file, out = bench.work / f"cuda-{dtype}.toml", bench.work / f"cuda-{dtype}"
        file.write_text(f'{body}\n[export]\ntarget = "cuda"\ndtype = "{dtype}"\n')
        command(bench, "run", file, "--out", out, "--overwrite", "--device", "cuda", codes=(0, EXIT_GATE))
        found = json.loads((out / "parity.json").read_text())
        speeds = set()
        for run in found["export"]["runs"]:
            speeds.add(run["speed"])
            for figure in ("max_abs", "p999_abs", "decode_max_abs"):
                bench.say(f"{dtype} by {run['speed']}: {figure}", run[figure], "of a logit")
            same = run["same_top"]
            bench.check(f"{dtype} by {run['speed']}: likeliest token", same >= SAME_TOP[dtype] or bench.dry, same)
        bench.check(f"{dtype}: both speeds ran", speeds >= {"native", "function"}, ", ".join(sorted(speeds)))
        bench.say(f"{dtype}: KL", found["cost"]["kld"]["mean"], "nats a token")


def speed(bench: Bench) -> None:
    """Decode and prompts of 6.9b's shapes at int4, beside torch in float16 and beside the memory's rate."""
    rate, config = memory_rate(bench), bench.sized(shape("6.9b"), tiny(shape("6.9b")))
    contexts = bench.sized((128, 1500), (12, 20))
    folder, export = bench.work / "speed", Export(target="cuda", dtype="float16")
    if not (folder / "whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        write_weights(config, 4, folder, export.dtype, torch.device(bench.device))
        (folder / "whole").touch()
    places = layout(config, Quantize(method="rtn", group_size=128), export.dtype)
    torchs = _torch(bench, config, contexts)
    if not bench.dry:
        torch.cuda.empty_cache()  # ONNX Runtime has an allocator of its own
    with bench.computing():
        graph = build_decoder(config, places, export).SerializeToString()
        for native in (True, False):
            session = _opened(graph, folder, config, export, native)
            for n in contexts:
                seconds, prompt = _decode(bench, session, n), _prompt(bench, session, n)
                _report(bench, f"{session.speed}, {n:,} tokens", seconds, prompt, torchs[n])
                read = _read(folder, places) + cache_bytes(config, export.cache_dtype, n)
                share, named = read / rate / seconds, f"decode, {session.speed}, {n:,} tokens"
                if native and n == contexts[0]:
                    bench.target(named, share, 0.6, "of the memory's rate")
                    bench.target(f"{named}, beside torch float16", torchs[n][0] / seconds, 2, "times its speed")
                else:
                    bench.say(named, share, "of the memory's rate")
            if native:
                _profile(bench, graph, folder, config, export, contexts[0])
            del session
        _graphs(bench, graph, folder, config, export, contexts[0])


def _opened(graph: bytes, folder: Path, config: NeoXConfig, export: Export, native: bool) -> Session:
    return Session(
        graph, folder, config, kv_cache=kv_cache(export), kv_dtype=export.cache_dtype, provider="cuda", native=native
    )


def _decode(bench: Bench, session: Session, context: int) -> float:
    """Seconds a token, the cache filled by a prompt."""
    ids, found = np.zeros((1, context), np.int64), []
    steps = bench.sized(STEPS, 1)
    for _ in range(bench.sized(5, 1)):
        cache = session.start(1, context + 1 + steps)
        session.step(cache, ids, keep=1)
        session.step(cache, ids[:, :1])
        began = time.perf_counter()
        for _ in range(steps):
            session.step(cache, ids[:, :1])
        found.append((time.perf_counter() - began) / steps)
    return statistics.median(found)


def _prompt(bench: Bench, session: Session, tokens: int) -> float:
    """Seconds of one prompt, logits of its last token."""
    ids, found = np.zeros((1, tokens), np.int64), []
    for _ in range(bench.sized(6, 1)):
        cache = session.start(1, tokens)
        began = time.perf_counter()
        session.step(cache, ids, keep=1)
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:] or found)


def _torch(bench: Bench, config: NeoXConfig, contexts: tuple[int, ...]) -> dict[int, tuple[float, float]]:
    """Of each context, the seconds of a token and of a prompt in torch, float16 and CUDA graphs."""
    decoder = TorchDecoder(config, max(contexts) + 1, bench.device)
    found = {}
    for n in contexts:
        found[n] = bench.seconds(decoder.graphed(n), STEPS), bench.seconds(partial(decoder.prompt, n), 3)
        bench.say(f"torch float16, {n:,} tokens", 1 / found[n][0], "tokens/s")
        bench.say(f"torch float16, prompt of {n:,}", n / found[n][1], "tokens/s")
    return found


def _report(bench: Bench, named: str, seconds: float, prompt: float, torchs: tuple[float, float]) -> None:
    bench.say(f"decode, {named}", 1 / seconds, "tokens/s")
    bench.say(f"decode, {named}, beside torch float16", torchs[0] / seconds, "times its speed")
    bench.say(f"prompt, {named}", prompt * 1000, "ms")
    bench.say(f"prompt, {named}, beside torch float16", torchs[1] / prompt, "times its speed")


def _read(folder: Path, places: Layout) -> int:
    """Bytes of weights that a token reads: all but the embedding, of which it reads a row."""
    embedding = sum(slot.nbytes for name, slot in places.slots.items() if name.startswith(EMBEDDING))
    return (folder / DATA_FILE).stat().st_size - embedding


def _profile(bench: Bench, graph: bytes, folder: Path, config: NeoXConfig, export: Export, context: int) -> None:
    """Where ONNX Runtime's own profile puts the time of decoding."""

    def profiled(options: Any) -> None:
        options.enable_profiling = True
        options.profile_file_prefix = str(bench.work / "decode")

    with _changed(profiled):
        session = _opened(graph, folder, config, export, True)
    _decode(bench, session, context)
    events = json.loads(Path(session._session.end_profiling()).read_text())
    spent: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    total = spent.total() or 1
    for name, us in spent.most_common(8):
        bench.say(f"profile of decoding: {name}", us / total, "of the time of all nodes on the host")
    runs = sorted(event["dur"] for event in events if event["name"] == "model_run")
    bench.say("profile of decoding: a run of the graph", statistics.median(runs[len(runs) // 2 :]), "µs on the host")


def _graphs(bench: Bench, graph: bytes, folder: Path, config: NeoXConfig, export: Export, context: int) -> None:
    """Whether a session captures its work as a CUDA graph; what ONNX Runtime says where it does not."""
    before = _decode(bench, _opened(graph, folder, config, export, True), context)
    try:
        with _changed(lambda options: None, {"enable_cuda_graph": "1"}):
            session = _opened(graph, folder, config, export, True)
        bench.say("decode as a CUDA graph", before / _decode(bench, session, context), "times as fast, if it is right")
    except Exception as e:
        bench.say("CUDA graphs are refused", f"{type(e).__name__}: {e}")


@contextmanager
def _changed(change: Callable[[Any], None], cuda: dict[str, str] | None = None) -> Iterator[None]:
    """Sessions are opened with changed options, and options of the CUDA provider."""
    real = onnxruntime.InferenceSession

    def opened(graph: bytes, options: Any, providers: list[Any]) -> Any:
        change(options)
        given = [(name, cuda) if cuda and name.startswith("CUDA") else name for name in providers]
        return real(graph, options, providers=given)

    with patch.object(onnxruntime, "InferenceSession", opened):
        yield
