"""How soon does an artifact answer? Import, open, first token, each in a process of its own.

    python benchmarks/startup.py [--artifact build/demo] [--size 160m] [--rounds 7]

An artifact, or the shapes of a size of the suite with random weights (int4 in groups of 128, level 4). "import" is
``from pythia_export import Artifact; Artifact`` and ONNX Runtime; "read" is reading every byte of graph and weights
from a warm cache; "load" is what `Session.open` takes; "first token" is a prompt of 16 tokens after it. Medians over
processes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from scoring import made

from pythia_export.base.machine import machine

PROBE = """
import json, sys, time
began = time.perf_counter()
from pythia_export import Artifact
Artifact
from pythia_export.runtime.onnxruntime import onnxruntime
onnxruntime()
imported = time.perf_counter() - began
artifact = Artifact.open(sys.argv[1])
names = [n for n in artifact.manifest.files if n.endswith((".onnx", "_data"))]
def read():
    began = time.perf_counter()
    for name in names:
        artifact.file(name).read_bytes()
    return time.perf_counter() - began
read()
reading = read()
began = time.perf_counter()
session = artifact.session
loaded = time.perf_counter() - began
import numpy as np
ids = np.random.default_rng(0).integers(0, 4096, (1, 16))
began = time.perf_counter()
session.step(session.start(1, 64), ids, keep=1)
first = time.perf_counter() - began
print(json.dumps({"import": imported, "read": reading, "load": loaded, "first token": first, "speed": session.speed,
                  "torch": "torch" in sys.modules}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, default=Path("build/demo"))
    parser.add_argument("--size")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        artifact = made(args.size, args.artifact, Path(scratch)) if args.size else args.artifact
        found = [measured(artifact) for _ in range(args.rounds + 1)][1:]  # the first warms the cache
    print(
        f"{args.size or artifact}, {found[0]['speed']} kernels, torch {'not ' * (not found[0]['torch'])}imported; ",
        end="",
    )
    print(f"{machine()}\n\n| | median | range |\n|---|---|---|")
    for name in ("import", "read", "load", "first token"):
        times = sorted(1000 * x[name] for x in found)
        print(f"| {name} | {statistics.median(times):,.0f} ms | {times[0]:,.0f} to {times[-1]:,.0f} |")
    print(f"\nload / read: {statistics.median(x['load'] / x['read'] for x in found):.2f}")


def measured(artifact: Path) -> dict:
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROBE, str(artifact)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
