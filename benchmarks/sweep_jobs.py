"""What a whole sweep takes besides its work: planning 19,712 jobs, looking at their directory, overhead of a job.

python benchmarks/sweep_jobs.py                     all of it; overhead by the engines inline and local
python benchmarks/sweep_jobs.py --engines slurm     overhead by Slurm, where there is one
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pythia_export.checkpoint import demo_folder
from pythia_export.sweep.folder import Folder
from pythia_export.sweep.jobs import Job, task_key, versions
from pythia_export.sweep.prepare import facts_of
from pythia_export.sweep.records import SCHEMA, Manifest, Pinned, Result
from pythia_export.sweep.run import run
from pythia_export.sweep.schema import load
from pythia_export.sweep.snapshots import snapshots

# Sixteen of which no revision is known to be bad.
MODELS = [
    *("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "6.9b"),
    *(f"{size}-deduped" for size in ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")),
]
WHOLE = f"""
[sweep]
models = {json.dumps(MODELS)}
revisions = "all"
[quantize]
bits = [2, 3, 4, 8]
group_size = [-1, 128]
[calibration]
source = "python-stdlib"
[verify]
source = "python-stdlib"
"""
SMALL = f"""
[sweep]
models = [{{ name = "demo", path = "{demo_folder()}/{{revision}}" }}]
revisions = "all,main"
[quantize]
bits = BITS
method = "rtn"
group_size = -1
[verify]
source = "python-stdlib"
tokens = 1024
sequence_length = 128
[resources]
cores = 1
"""


# VmHWM: ru_maxrss would also count what the parent had resident when it forked.
COMMAND = """
import re, sys
from pathlib import Path
from pythia_export.cli import app
try:
    app(["sweep", *sys.argv[2:]])
finally:
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\\s*(\\d+)", status.read_text()) if status.is_file() else None
    Path(sys.argv[1]).write_text(peak[1] if peak else "0")
"""


def command(*args: object) -> tuple[str, float, float]:
    """What `pythia-export sweep ARGS` prints, its seconds, and its peak of memory in MB; Python's start included."""
    with tempfile.NamedTemporaryFile() as file:
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-P", "-c", COMMAND, file.name, *map(str, args)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return done.stdout, time.perf_counter() - began, int(Path(file.name).read_text()) * 1024 / 1e6


def measured(title: str, *args: object) -> str:
    printed, seconds, megabytes = command(*args)
    print(f"{title}: {seconds:.1f} s, {megabytes:.0f} MB", flush=True)
    return printed


def fill(file: Path, folder: Folder, result: Result) -> float:
    """The directory of a sweep that is done, without its work; the seconds that naming its jobs took."""
    sweep = load(file)
    members, _ = snapshots(sweep.sweep)
    began, now, jobs, tasks, pinned = time.perf_counter(), versions(), [], {}, []
    for i, member in enumerate(members):
        facts, commit = facts_of(member), f"{i:040x}"
        own = [Job(member.model, commit, facts, quantize, "c" * 64, "e" * 64, now) for quantize in sweep.quantize]
        key = task_key(facts, member.revision, commit)
        tasks[key] = [job.key for job in own]
        pinned.append(Pinned(name=member.name, revision=member.revision, commit=commit, task=key))
        jobs += own
    seconds = time.perf_counter() - began
    folder.put_manifest(
        Manifest(
            version=SCHEMA, created="", versions=now, sweep=sweep.model_dump(mode="json"), texts={},
            snapshots=pinned, left_out=[], jobs=tasks,
        )
    )  # fmt: skip
    folder.put_jobs(jobs)
    for job in jobs:
        path = folder.root / "results" / job.key[:2] / f"{job.key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result.to_json() | {"key": job.key, "job": job.to_json()}))
    return seconds


def overhead(root: Path, engine: str, bits: list[int]) -> Result:
    """Of one task after another: the run's time beyond that of its jobs, a job. Returns a result."""
    path, folder = root / "small.toml", Folder(root / f"{engine}-{len(bits)}")
    path.write_text(SMALL.replace("BITS", str(bits)))
    outcome = run(load(path), folder, engine=engine, workers=1)  # type: ignore[arg-type]
    assert outcome.done == outcome.jobs, f"{outcome.failed} failed"
    records = [found for key in sorted(folder.done()) if (found := folder.result(key)) is not None]
    worked = sum(record.seconds.total for record in records)
    print(
        f"{engine}, {len(bits)} jobs a task: {(outcome.seconds - worked) / outcome.jobs:.2f} s a job beyond its own "
        f"{worked / outcome.jobs:.2f} s ({outcome.jobs} jobs in {outcome.seconds:.1f} s)",
        flush=True,
    )
    return records[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["inline", "local"], choices=["inline", "local", "slurm"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:  # where a cluster's nodes see it, too
        root = Path(scratch)
        for engine in asked.engines:
            for bits in ([4], [2, 3, 4, 8]):
                result = overhead(root, engine, bits)
        if "slurm" in asked.engines:
            return
        path, folder = root / "whole.toml", Folder(root / "whole")
        path.write_text(WHOLE)
        planned = json.loads(measured("planning", "plan", path, "--json"))
        print(f"  {planned['jobs']:,} jobs: {len(MODELS)} models, {len(planned['quantizations'])} quantisations")
        folder.root.mkdir()
        print(f"naming them: {fill(path, folder, result):.1f} s")
        seen = json.loads(measured("status", "status", folder.root, "--json"))
        assert seen["done"] == seen["jobs"] == planned["jobs"]
        again = json.loads(measured("planning, all done", "plan", path, "--out", folder.root, "--json"))
        assert again["done"] == planned["jobs"]
        written = json.loads(measured("results.parquet and .csv", "results", folder.root, "--json"))
        assert written["rows"] == planned["jobs"]


if __name__ == "__main__":
    main()
