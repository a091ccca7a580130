"""Quantising the suite's real shapes: random weights, 128 x 2,048 tokens, defaults (benchmarks/memory.py)."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path

import torch
from bench import Bench
from memory import quantised, write_checkpoint

from pythia_export.model.neox import NeoXConfig
from pythia_export.model.suite import geometry

WANTED = {"6.9b": (180, 40), "1.4b": (45, None)}  # seconds, GB of the GPU's memory


def two_layers(bench: Bench) -> None:
    """Two of 6.9b's layers: what a layer takes, and with that what the whole would."""
    whole, config = shape("6.9b"), dataclasses.replace(shape("6.9b"), num_layers=2)
    seconds = _quantise(bench, "6.9b", config)
    bench.say("as long for each layer of the whole", seconds / 2 * whole.num_layers, "s, head and embedding too often")


def middle(bench: Bench) -> None:
    """All of 1.4b."""
    _quantise(bench, "1.4b", shape("1.4b"))


def whole(bench: Bench) -> None:
    """All of 6.9b."""
    _quantise(bench, "6.9b", shape("6.9b"))


def shape(size: str) -> NeoXConfig:
    config = geometry(f"EleutherAI/pythia-{size}")
    assert config is not None
    return config


def tiny(config: NeoXConfig) -> NeoXConfig:
    """Of a dry run: one narrow layer."""
    small = {"hidden_size": 32, "num_heads": 1, "intermediate_size": 32, "vocab_size": 64, "num_layers": 1}
    return dataclasses.replace(config, **small)


def _quantise(bench: Bench, size: str, config: NeoXConfig) -> float:
    complete = config == shape(size)
    config = bench.sized(config, tiny(config))
    with bench.computing() as device, tempfile.TemporaryDirectory(dir=_room(bench, config)) as folder:
        draws = torch.device(bench.device)
        write_checkpoint(config, Path(folder), draws)
        if not bench.dry:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        found = quantised(Path(folder), "gptq", bench.sized(128, 2), bench.sized(2048, 16), 4.0, device)
    named, gigabytes = f"{size}'s shapes, {config.num_layers} layers", found["peak_of_gpu"] / 1e9
    for part, seconds in found["parts"].items():
        bench.say(f"{named}: {part}", seconds, "s")
    if complete:
        most, room = WANTED[size]
        bench.target(named, found["seconds"], most, "s", at_most=True)
        if room is not None:
            bench.target(f"{named}, memory of the GPU", gigabytes, room, "GB", at_most=True)
            return float(found["seconds"])
    else:
        bench.say(named, found["seconds"], "s")
    bench.say(f"{named}, memory of the GPU", gigabytes, "GB")
    return float(found["seconds"])


def _room(bench: Bench, config: NeoXConfig) -> Path:
    """Where a checkpoint and its rounded weights fit: in memory if it has room, since it is the GPU that is timed."""
    weights = 12 * config.num_layers * config.hidden_size**2 + 2 * config.vocab_size * config.hidden_size
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > 4 * weights else bench.work
