"""Decoding by two builds of the kernel library, in turn, over the same artifacts.

    cp build/kernels/libpythia_kernels.so OLD.so     # before a change; then change, and build
    python benchmarks/libraries.py OLD.so build/kernels/libpythia_kernels.so --artifact build/models/410m/artifact-int8

Each build has a process of its own, and they take turns at decoding some tokens behind 128. A turn's figure is the
median of its tokens; the speed-up is the median of the turns' ratios. Between turns there is a pause: threads of the
build whose turn was before go on spinning for a while.

A shared machine's memory is faster at one time and slower at another. Two processes one after the other may differ by a
third; turns of the same two processes do not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pythia_export.artifact import Artifact
from pythia_export.base.machine import machine
from pythia_export.runtime import Session, speed

CONTEXT, PAUSE = 128, 0.12  # tokens; seconds


@dataclass(frozen=True)
class Contestant:
    """A process that decodes a turn's tokens for each line that it reads, and answers by their seconds."""

    process: subprocess.Popen[str]

    def turn(self) -> float:
        assert self.process.stdin is not None and self.process.stdout is not None
        time.sleep(PAUSE)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds = json.loads(self.process.stdout.readline())
        return statistics.median(seconds[len(seconds) // 6 :])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("now", type=Path)
    parser.add_argument("--artifact", type=Path, action="append", required=True)
    parser.add_argument("--threads", type=int, nargs="*", default=[2, 1])
    parser.add_argument("--tokens", type=int, default=20, help="of a turn")
    parser.add_argument("--seconds", type=float, default=10, help="for an artifact and a number of threads")
    parser.add_argument("--in-process", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.in_process:
        return contestant(args.artifact[0], Path(args.in_process), args.threads[0], args.tokens)
    isa = os.environ.get("PYTHIA_KERNELS_ISA", "the best instruction set")
    print(f"{machine()}; {isa}\n\n| artifact | threads | turns | before, ms | now, ms | speed-up |")
    print("|---|---|---|---|---|---|")
    for threads in args.threads:
        for artifact in args.artifact:
            compare(args.before, args.now, artifact, threads, args.tokens, args.seconds)


def compare(before: Path, now: Path, artifact: Path, threads: int, tokens: int, seconds: float) -> None:
    both = [started(library, artifact, threads, tokens) for library in (before, now)]
    found: list[list[float]] = [[], []]
    for one in both:
        one.turn()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for i in (0, 1) if len(found[0]) % 2 else (1, 0):
            found[i].append(both[i].turn())
    for one in both:
        one.process.kill()
    old, new = (1e3 * statistics.median(times) for times in found)
    ratio = statistics.median(a / b for a, b in zip(*found, strict=True))
    name = f"{artifact.parent.name}, {artifact.name}"
    print(f"| {name} | {threads} | {len(found[0])} | {old:.3f} | {new:.3f} | {ratio:.3f} |", flush=True)


def started(library: Path, artifact: Path, threads: int, tokens: int) -> Contestant:
    command = [sys.executable, __file__, str(library), str(library), "--artifact", str(artifact)]
    command += ["--threads", str(threads), "--tokens", str(tokens), "--in-process", str(library.absolute())]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n", artifact
    return Contestant(process)


def contestant(artifact: Path, library: Path, threads: int, tokens: int) -> None:
    speed.kernels_path = lambda provider="cpu": library  # type: ignore[attr-defined]
    session = Session.open(Artifact.open(artifact), threads=threads)
    assert session.speed == "native", session.why
    cache = session.start(1, CONTEXT + tokens)
    session.step(cache, np.random.default_rng(0).integers(1, 4096, (1, CONTEXT)), keep=1)
    print("ready", flush=True)
    for _ in sys.stdin:
        cache.truncate(CONTEXT)
        seconds = []
        for _ in range(tokens):
            began = time.perf_counter()
            session.decode(cache, [5])
            seconds.append(time.perf_counter() - began)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
