"""Sweeps on a real Slurm: the results are the inline run's, whatever is killed on the way.

`make test-slurm` sets one up in build/slurm and runs this. Any cluster that SLURM_CONF names does for most of it; only
the tests of limits rely on how tests/slurm/up.sh configures it (a node that kills what has too much memory).
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

from pythia_export.base.errors import EXIT_SWEEP, EnvironmentProblem, OutputError, ResourceError
from pythia_export.sweep.folder import Folder

DEMO = ROOT / "demo"
REVISIONS = ("main", "step500", "step2000")
SEED = int(os.environ.get("SWEEP_CHAOS_SEED", random.randrange(1_000_000)))
CHAOS_SECONDS = 45.0  # of kills; then it may finish
CLIENT_SECONDS = 20.0  # for an answer of Slurm's clients, which ask a controller that is away for minutes
NOT_COMPARED = ("seconds", "when", "attempt", "peak_memory_bytes")

pytestmark = [
    pytest.mark.skipif(shutil.which("sbatch") is None, reason="no Slurm: make test-slurm"),
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="SLURM_CONF names no Slurm: make test-slurm"),
]

QUANTIZE = """
[[quantize]]
bits = [2, 4]
group_size = 32
hessian = "original"
error_correction = false

[[quantize]]
bits = 3
method = "rtn"
"""


@dataclass(frozen=True)
class Driver:
    """`sweep run` in a process of its own."""

    process: subprocess.Popen[str]
    said: Path

    def end(self, seconds: float = 240) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"`sweep run` did not end: {self.said.read_text()}") from None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Sweep:
    """A sweep's file and directory, and the command line on them."""

    def __init__(
        self, folder: Path, models: dict[str, str], quantize: str, resources: str, *, revisions: str = "all,main"
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file, self.out, self._said = folder / "sweep.toml", folder / "out", folder / "said"
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        tables = ", ".join(f'{{ name = "{name}", path = "{path}" }}' for name, path in models.items())
        text = 'source = "python-stdlib"\nsequence_length = 128\n'
        self.file.write_text(
            f'[sweep]\nmodels = [{tables}]\nrevisions = "{revisions}"\n{quantize}\n'
            f"[calibration]\n{text}samples = 8\n[verify]\n{text}tokens = 1024\n[resources]\ncores = 1\n{resources}\n"
        )
        self._drivers: list[Driver] = []
        SWEEPS.append(self)

    def start(self, engine: str, *options: str, **environment: str) -> Driver:
        said = self._said.with_suffix(f".{len(self._drivers)}")
        with said.open("w") as file:
            command = (*PYTHIA, "run", str(self.file), "--out", str(self.out), "--engine", engine, *options)
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, text=True, start_new_session=True,
                env=ENVIRONMENT | {"TMPDIR": str(self.scratch)} | environment,
            )  # fmt: skip
        self._drivers.append(Driver(process, said))
        return self._drivers[-1]

    def run(self, engine: str, *options: str) -> int:
        return self.start(engine, *options).end()

    def ask(self, command: str, *options: str) -> str:
        done = subprocess.run(
            (*PYTHIA, command, str(self.out), *options), capture_output=True, text=True, env=ENVIRONMENT, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def end(self) -> None:
        for driver in self._drivers:
            driver.kill()
        for worker in self.workers():
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        if jobs := self.queue():
            slurm("scancel", *jobs)

    @property
    def said(self) -> str:
        """By the last driver."""
        return self._drivers[-1].said.read_text()

    @property
    def folder(self) -> Folder:
        return Folder(self.out)

    def records(self) -> dict[str, Any]:
        """Results by key, without what may differ from one run to the next."""
        found = {key: self.folder.result(key).to_json() for key in self.folder.done()}
        return {k: {x: v[x] for x in v if x not in NOT_COMPARED} for k, v in found.items() if v is not None}

    def failures(self) -> list[dict[str, Any]]:
        return [found.to_json() for key in self.folder.failed() if (found := self.folder.failure(key)) is not None]

    def workers(self) -> list[int]:
        """Processes that submitit started for a task of this sweep, of either engine."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode().split("\0")
            except OSError:
                continue
            inside = any(word.startswith(str(self.out)) for word in words)
            if inside and "submitit.core._submit" in words and "python" in Path(words[0]).name:
                found.append(int(path.parent.name))
        return found

    def queue(self, *options: str) -> list[str]:
        """Ids of its jobs; none before it submitted any."""
        return slurm("squeue", "--noheader", "--array", "--name", self._name(), "--format=%i", *options).split()

    def accounted(self) -> list[str]:
        """A line for each job that ended."""
        log = re.search(r"^JobCompLoc=(.*)$", Path(os.environ["SLURM_CONF"]).read_text(), re.MULTILINE)
        assert log is not None
        return [line for line in Path(log[1]).read_text().splitlines() if f"Name={self._name()} " in line]

    def submissions(self) -> list[list[dict[str, Any]]]:
        return [json.loads(path.read_text()) for path in sorted(self.out.glob("submitit/*/orders.json"))]

    def _name(self) -> str:
        for path in self.out.glob("submitit/*/.submission_file_*.sh"):
            name = re.search(r"--job-name=(\S+)", path.read_text())
            assert name is not None
            return name[1]
        return "none-yet"


SWEEPS: list[Sweep] = []
PYTHIA = (sys.executable, "-m", "pythia_export", "sweep")
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
ENOUGH = "memory_gb = 2\nhours = 0.5"


def slurm(*command: str) -> str:
    """What it said; nothing where it refuses, as it does for a job that is over already."""
    return subprocess.run(command, capture_output=True, text=True, timeout=CLIENT_SECONDS).stdout


def until(look: Callable[[], Any], seconds: float = 90) -> Any:
    """The first value that is true."""
    for _ in range(int(seconds / 0.05)):
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError(f"nothing within {seconds:.0f} s")


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    before = len(SWEEPS)
    yield
    for sweep in SWEEPS[before:]:
        sweep.end()


def one_task(models: dict[str, str], folder: Path, resources: str) -> Sweep:
    return Sweep(folder, {"a": models["a"]}, QUANTIZE, resources, revisions="main")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three training runs, of which two are copies of the first: nine tasks."""
    root = tmp_path_factory.mktemp("runs")
    for name in ("a", "b", "c"):
        for revision in REVISIONS:
            shutil.copytree(DEMO / revision, root / name / revision)
    return {name: str(root / name / "{revision}") for name in ("a", "b", "c")}


@pytest.fixture(scope="module")
def inline(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every other run is held to."""
    sweep = Sweep(tmp_path_factory.mktemp("inline"), models, QUANTIZE, ENOUGH)
    assert sweep.run("inline") == 0, sweep.said
    found = sweep.records()
    assert len(found) == 27
    return found


@pytest.fixture(scope="module")
def deaf(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sweep, Driver]]:
    """A job that hears no signal, as if it were in a long call of a library: Slurm ends it after its minute, while
    other tests run."""
    # Instead of the signal that says how little time is left, one that it does not mind.
    resources = 'hours = 0.01\nmemory_gb = 2\nattempts = 1\nslurm = { signal = "CONT@1" }'
    sweep = one_task(models, tmp_path_factory.mktemp("deaf"), resources)
    driver, ended = sweep.start("slurm"), threading.Event()
    until(lambda: sweep.folder.running())

    def stop() -> None:
        while not ended.wait(0.01):
            for worker in workers:
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGSTOP)

    workers = sweep.workers()
    thread = threading.Thread(target=stop)
    thread.start()
    yield sweep, driver
    ended.set()
    thread.join()
    sweep.end()


def test_kills_at_random_change_no_result(
    deaf: object, models: dict[str, str], inline: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of workers, of jobs by the cluster's own commands, and of the one who submits."""
    with capsys.disabled():
        print(f"\nSWEEP_CHAOS_SEED={SEED} is this run's")
    rng, hit, began = random.Random(SEED), Counter[str](), time.monotonic()
    sweep = Sweep(tmp_path, models, QUANTIZE, f"{ENOUGH}\nattempts = 1000")
    driver = sweep.start("slurm")
    left: list[str] = []
    while driver.process.poll() is None and time.monotonic() - began < CHAOS_SECONDS:
        time.sleep(rng.uniform(0.2, 2.0))
        if not left:
            left = rng.sample(KINDS, len(KINDS))
        if strike(left[-1], sweep, driver, rng):
            hit[left.pop()] += 1
        if driver.process.poll() == -signal.SIGKILL:
            driver = sweep.start("slurm")
    while (code := driver.end()) == -signal.SIGKILL:
        driver = sweep.start("slurm")
    with capsys.disabled():
        print(", ".join(f"{kind}: {n}" for kind, n in hit.items()) + f"; {time.monotonic() - began:.0f} s")
    assert code == 0, sweep.said
    assert set(hit) == set(KINDS), f"nothing was there to {set(KINDS) - set(hit)}"
    assert sweep.records() == inline
    assert not sweep.failures()
    assert not sweep.queue()


KINDS = ("kill -9 worker", "kill -9 driver", "scontrol requeue", "scancel")


def strike(kind: str, sweep: Sweep, driver: Driver, rng: random.Random) -> bool:
    """Whether anything was there to be hit."""
    if kind == "kill -9 driver":
        driver.kill()
        return True
    if kind == "kill -9 worker":
        workers = sweep.workers()
        if workers:
            with suppress(ProcessLookupError):
                os.kill(rng.choice(workers), signal.SIGKILL)
        return bool(workers)
    running = sweep.queue("--states=RUNNING")
    if running:
        slurm(*kind.split(), rng.choice(running))
    return bool(running)


def test_a_driver_that_goes_and_comes_back_submits_nothing_twice(
    models: dict[str, str], inline: dict[str, Any], tmp_path: Path
) -> None:
    """By Ctrl-C first, then by kill -9. A second one at the same time is refused."""
    sweep = Sweep(tmp_path, {"b": models["b"]}, QUANTIZE, ENOUGH)
    driver = sweep.start("slurm", "--workers", "1")
    until(lambda: sweep.folder.running())

    counts = json.loads(sweep.ask("status", "--json"))
    (of,) = counts["models"]
    assert of["jobs"] == 9
    assert of["running"] == 3 - of["done"]
    assert of["jobs"] - of["done"] - of["running"] - of["failed"] == 6

    assert sweep.run("slurm") == OutputError.exit_code
    assert "another `sweep run` works in this directory" in sweep.said
    assert driver.process.poll() is None

    os.killpg(driver.process.pid, signal.SIGINT)  # as a terminal does it, to all that is in the foreground
    assert driver.end() == 130
    said = " ".join(driver.said.read_text().split())
    assert (order := re.search(r"(\d) tasks stay in Slurm's queue.*`(scancel --name \S+)` ends them", said)), said
    assert len(sweep.queue()) in (int(order[1]), int(order[1]) - 1)  # one may have ended since it asked
    assert sweep._name() in order[2]

    driver = sweep.start("slurm", "--workers", "1")
    until(lambda: sweep.folder.running() and sweep.folder.done())
    driver.kill()
    for path in sweep.out.glob("logs/*.files"):  # as if it had come no further than sbatch
        path.unlink()
    assert sweep.run("slurm", "--workers", "1") == 0, sweep.said
    assert list(sweep.out.glob("logs/*.files"))
    assert len(sweep.submissions()) == 1
    assert len(sweep.accounted()) == 3
    assert sweep.records() == {key: inline[key] for key in sweep.folder.done()}
    assert len(sweep.folder.done()) == 9


def test_what_is_in_the_queue_ends_by_what_ctrl_c_said(models: dict[str, str], tmp_path: Path) -> None:
    sweep = one_task(models, tmp_path, ENOUGH)
    driver = sweep.start("slurm")
    until(lambda: sweep.folder.running())
    driver.process.send_signal(signal.SIGINT)
    driver.end()
    order = re.search(r"`(scancel --name \S+)`", " ".join(driver.said.read_text().split()))
    assert order is not None
    slurm(*order[1].split())
    until(lambda: not sweep.queue())
    assert not sweep.workers()
    assert not list(sweep.scratch.iterdir())


def test_a_driver_that_is_killed_while_it_submits(
    models: dict[str, str], inline: dict[str, Any], tmp_path: Path
) -> None:
    """After sbatch has answered, before anything could be written down: such a job waits in vain, and is cancelled."""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/sh\n{shutil.which("sbatch")} "$@" && kill -9 $PPID\n')
    sbatch.chmod(0o755)
    sweep = one_task(models, tmp_path, ENOUGH)
    driver = sweep.start("slurm", PATH=f"{sbatch.parent}:{os.environ['PATH']}")
    assert driver.end() == -signal.SIGKILL
    assert len(sweep.queue()) == 1
    assert sweep.run("slurm") == 0, sweep.said
    states = [re.findall(r"JobState=(\w+)", line)[0] for line in sweep.accounted()]
    assert sorted(states) == ["CANCELLED", "COMPLETED"]
    assert sweep.records() == {key: inline[key] for key in sweep.folder.done()}
    assert len(sweep.folder.done()) == 3


def test_a_job_over_its_memory_gets_twice_as_much_and_is_then_put_down(models: dict[str, str], tmp_path: Path) -> None:
    sweep = one_task(models, tmp_path, "memory_gb = 0.1\nhours = 0.5\nattempts = 2")
    assert sweep.run("slurm") == EXIT_SWEEP
    assert sorted(memory(line) for line in sweep.accounted()) == ["102M", "204M"]
    failed = sweep.failures()
    assert len(failed) == 3
    assert {(f["exit_code"], f["attempt"]) for f in failed} == {(ResourceError.exit_code, 2)}
    assert {f["message"] for f in failed} == {"not enough memory, at last with 0.2 GB (2 attempts)"}

    raw = sweep.ask("logs", min(sweep.folder.failed()))
    assert raw.count("exceeded memory limit") >= 2, raw  # of both attempts, in Slurm's own words


def memory(line: str) -> str:
    found = re.search(r"Tres=\S*mem=(\w+)", line)
    assert found is not None
    return found[1]


def test_a_job_over_its_time_gets_twice_as_much_and_is_then_put_down(models: dict[str, str], tmp_path: Path) -> None:
    """Slurm's signal comes before the end, from its commands here, so that the test need not wait for that."""
    sweep = one_task(models, tmp_path, "memory_gb = 2\nhours = 0.01\nattempts = 2")
    driver = sweep.start("slurm")
    for _ in range(2):
        until(lambda: sweep.folder.running())
        slurm("scancel", "--signal=USR2", *sweep.queue("--states=RUNNING"))
        until(lambda: not sweep.folder.running())
    assert driver.end() == EXIT_SWEEP, sweep.said
    limits = sorted(re.findall(r"TimeLimit=(\d+)", "".join(sweep.accounted())))
    assert limits == ["1", "2"]
    failed = sweep.failures()
    assert {(f["exit_code"], f["attempt"]) for f in failed} == {(ResourceError.exit_code, 2)}
    assert {f["message"] for f in failed} == {"not enough time, at last with 2 min (2 attempts)"}
    assert not list(sweep.scratch.iterdir())


def test_what_sbatch_refuses_is_put_down_in_its_words(
    models: dict[str, str], inline: dict[str, Any], tmp_path: Path
) -> None:
    """A model that no node has the memory for does not keep the others from theirs."""
    huge = tmp_path / "huge" / "main"
    shutil.copytree(DEMO / "main", huge)
    config = json.loads((huge / "config.json").read_text())
    (huge / "config.json").write_text(json.dumps(config | {"hidden_size": 2**17, "intermediate_size": 2**19}))
    sweep = Sweep(
        tmp_path, {"huge": f"{huge.parent}/{{revision}}", "c": models["c"]}, QUANTIZE, "", revisions="main"
    )  # fmt: skip
    assert sweep.run("slurm") == EXIT_SWEEP
    failed = sweep.failures()
    assert len(failed) == 3
    for record in failed:
        assert record["exit_code"] == EnvironmentProblem.exit_code
        assert re.match("sbatch refused it, with .* GB, 1 cores, .* minutes: ", record["message"])
        assert "Requested node configuration is not available" in record["message"]
    assert sweep.records() == {key: inline[key] for key in sweep.folder.done()}
    assert len(sweep.folder.done()) == 3


def test_local_processes_find_the_same(models: dict[str, str], inline: dict[str, Any], tmp_path: Path) -> None:
    """Though one of them is killed, and the one that started them."""
    sweep = Sweep(tmp_path, {"a": models["a"]}, QUANTIZE, ENOUGH)
    driver = sweep.start("local", "--workers", "2")
    until(lambda: sweep.folder.running())
    driver.kill()
    driver = sweep.start("local", "--workers", "2")
    until(lambda: len(sweep.folder.running()) == 2 or sweep.folder.done())
    for worker in sweep.workers()[:1]:
        os.kill(worker, signal.SIGKILL)
    assert driver.end() == 0, sweep.said
    assert sweep.records() == {key: inline[key] for key in sweep.folder.done()}
    assert len(sweep.folder.done()) == 9


def test_a_job_that_slurm_finds_over_its_time_is_put_down(deaf: tuple[Sweep, Driver]) -> None:
    sweep, driver = deaf
    assert driver.end() == EXIT_SWEEP, sweep.said
    assert "JobState=TIMEOUT" in "".join(sweep.accounted())
    failed = sweep.failures()
    assert len(failed) == 3
    assert {f["exit_code"] for f in failed} == {ResourceError.exit_code}
    assert {f["message"] for f in failed} == {"not enough time, at last with 1 min (1 attempt)"}
