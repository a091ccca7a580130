"""Tables of `benchmarks/models.py`: every size beside the other runtimes, from the files that it wrote."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .markdown import table

FILES = Path(__file__).parents[2] / "benchmarks" / "models"
SIZES = ("demo", "14m", "31m", "70m", "160m", "410m", "1b")
OURS = ("pythia-export, float32 cache", "pythia-export, float16 cache", "pythia-export, int8 cache")
LLAMA = ("llama.cpp Q4_0", "llama.cpp Q4_0, flash attention", "llama.cpp Q4_0, q8_0 cache")
NARROW = "pythia-export 3 bits, float16 cache"  # not among ours where the best is compared: other weights
OTHERS = ("onnxruntime-genai", "transformers.exporters int4", "OpenVINO int4", "OpenVINO (artifact)")


def models(threads: str, what: str) -> str:
    """Return tokens a second by size: `what` is prefill, early (at 128 tokens) or late.

    Beside decoding stands what a read loop over the same bytes allows, and our share of that with the same cache.
    """
    found = [state for size in SIZES if (state := _state(size)) is not None and threads in _threads(state)]
    if not found:
        return "Not measured yet.\n"
    columns = [
        name for name in (*OURS, NARROW, *LLAMA, *OTHERS) if any(_rounds(state, name, threads) for state in found)
    ]
    place = {"early": 0, "late": -1}.get(what)
    rows = []
    for state in found:
        at = "" if place is None else f" at {state['contexts'][place]:,}"
        speeds = {name: _median(state, name, threads, _speed(state, place)) for name in columns}
        ours = max((speeds[name] or 0 for name in OURS if name in speeds), default=0)
        llama = max((speeds[name] or 0 for name in LLAMA if name in speeds), default=0)
        cells = [f"{state['size']}{at}", *(_shown(speeds[name]) for name in columns)]
        cells.append(f"{ours / llama:.2f}" if ours and llama else "")
        if place is not None:
            cells += _beside_reading(state, threads, speeds, state["contexts"][place], llama)
        rows.append(cells)
    head = [
        f"tokens/s, {threads} threads" if threads != "1" else "tokens/s, 1 thread",
        *columns,
        "best ours / llama.cpp",
    ]
    if place is not None:
        head += ["read loop, float16 cache", "our share of it", "our share with int8", "read loop, int8 / llama.cpp"]
    machines = sorted({state["machine"] for state in found})
    fewest = min(
        len(_rounds(state, name, threads)) for state in found for name in columns if _rounds(state, name, threads)
    )
    return f"{table(head, rows)}\n\n{'; '.join(machines)}. Medians of {fewest} or more runs.\n"


def fastest(threads: str) -> str:
    """Return one line for each size: the fastest of our caches, and each other runtime's fastest."""
    found = [state for size in SIZES if (state := _state(size)) is not None and threads in _threads(state)]
    contestants = {
        "pythia-export": OURS, "llama.cpp Q4_0": LLAMA, "onnxruntime-genai": OTHERS[:1], "OpenVINO": OTHERS[2:],
    }  # fmt: skip
    rows = []
    for state in found:
        cells = [state["size"]]
        for place in (0, None):
            speeds = [
                max((_median(state, name, threads, _speed(state, place)) or 0 for name in names), default=0)
                for names in contestants.values()
            ]
            cells += [_shown(speed or None) for speed in speeds]
        rows.append(cells)
    first, *others = contestants
    head = ["tokens per second", f"decode at 128: {first}", *others, f"prefill of 128: {first}", *others]
    return f"{table(head, rows)}\n"


def _state(size: str) -> dict[str, Any] | None:
    file = FILES / f"{size}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def _threads(state: dict[str, Any]) -> set[str]:
    return {threads for rounds in state["rounds"].values() for threads in rounds}


def _rounds(state: dict[str, Any], name: str, threads: str) -> list[dict[str, Any]]:
    return state["rounds"].get(name, {}).get(threads, [])


def _speed(state: dict[str, Any], place: int | None) -> Callable[[dict[str, Any]], float]:
    if place is None:
        return lambda figures: figures["prefill_tokens_per_second"]
    return lambda figures: figures["decode_tokens_per_second"][str(state["contexts"][place])]


def _median(state: dict[str, Any], name: str, threads: str, speed: Callable[[dict[str, Any]], float]) -> float | None:
    rounds = _rounds(state, name, threads)
    return statistics.median(map(speed, rounds)) if rounds else None


def _beside_reading(
    state: dict[str, Any], threads: str, speeds: dict[str, float | None], tokens: int, llama: float
) -> list[str]:
    """Return the read loop, our shares of it, and how many times as fast as llama.cpp that loop is."""
    rounds = state["read"].get(threads, [])
    if not rounds:
        return ["", "", "", ""]
    read = {dtype: statistics.median(x[f"cache at {tokens}, {dtype}"] for x in rounds) for dtype in ("float16", "int8")}
    shares = [
        f"{100 * speed / read[dtype]:.0f} %" if (speed := speeds.get(f"pythia-export, {dtype} cache")) else ""
        for dtype in ("float16", "int8")
    ]
    return [_shown(read["float16"]), *shares, f"{read['int8'] / llama:.2f}" if llama else ""]


def _shown(speed: float | None) -> str:
    if speed is None:
        return ""
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.1f}"
