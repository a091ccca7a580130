"""Steps for the tests of benchmarks/gpu/runner.py: what a step can do wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))
import runner  # noqa: E402
from bench import Bench  # noqa: E402
from journal import Journal, table  # noqa: E402
from plan import FORKS, GPU, Step  # noqa: E402
from runner import Runner  # noqa: E402


def look(bench: Bench) -> None:
    bench.has(FORKS, True)
    bench.has(GPU, True)


def good(bench: Bench) -> None:
    bench.say("a figure", 1.5, "of it")


def wrong(bench: Bench) -> None:
    bench.check("one thing", False, 3)
    bench.check("another", True)


def memory(bench: Bench) -> None:
    bench.say("before", 1)
    raise MemoryError("CUDA out of memory. Tried to allocate 9 GiB.")


def crash(bench: Bench) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(bench: Bench) -> None:
    """Deaf to SIGTERM, with a process of its own that would outlive it."""
    child = subprocess.Popen(["sleep", "1000"])
    (bench.work / "child").write_text(str(child.pid))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)


def mended(bench: Bench) -> None:
    """Fails until there is a file."""
    bench.check("the file is there", (bench.out / "mended").exists())


STEPS = (
    Step("look", "", "gpu_steps:look", 0, 60),
    Step("mended", "", "gpu_steps:mended", 0, 60),
    Step("wrong", "", "gpu_steps:wrong", 0, 60),
    Step("memory", "", "gpu_steps:memory", 0, 60),
    Step("crash", "", "gpu_steps:crash", 0, 60, (GPU,)),
    Step("hang", "", "gpu_steps:hang", 0, 1, (GPU,)),
    Step("missing", "", "gpu_steps:good", 0, 60, ("a unicorn",)),
    Step("long", "", "gpu_steps:good", 10_000, 10_000),
    Step("good", "", "gpu_steps:good", 0, 60, (GPU,)),
)

PROBE = Step("probe", "", "gpu_steps:look", 0, 60)

if __name__ == "__main__":
    runner.GRACE = 0.5  # what is deaf is deaf at once
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    journal = Journal(Path(sys.argv[1]))
    named = sys.argv[2:]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        Runner(journal, 100, False, PROBE, ["bench"]).run(STEPS, named)
    finally:
        print(table(journal, [step.name for step in STEPS]))
