"""Tasks as jobs of a Slurm cluster: arrays that submitit submits, one a need of memory and time.

What is relied on is what every cluster has: `squeue` says which jobs there still are, our own records say what came of
them. `sacct` needs a database that many lack, and submitit knows a job that was killed by nothing else.

A driver may be killed at any time. Jobs stay in the queue, and the next driver finds them again: each submission has a
folder of its own, with the orders written into it before `sbatch` is called, and its name in the jobs' comment. Between
`sbatch` and the moment at which submitit has named a job's pickle, that job would wait for it in vain: it is cancelled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from ..base.errors import EnvironmentProblem
from ..base.progress import Progress
from .engines import Call, End, Order, how_it_ended, load_submitit
from .folder import Folder
from .schema import Resources
from .work import failure

ARRAY = 1000  # jobs of one array: Slurm's own default limit is 1001
AT_ONCE = 256  # running jobs, if not told otherwise
ASK_SECONDS = 5.0  # between two questions to the controller, which many users ask
PATIENCE_SECONDS = 60.0  # a client asks a controller that is away for minutes
AWAY_SECONDS = 1800.0  # a controller that is being restarted, or mended
SIGNAL_SECONDS = 10  # before the end of its time: a job is told

STATES: dict[str, End] = {"OUT_OF_MEMORY": "memory", "TIMEOUT": "time", "DEADLINE": "time"}


class Slurm:
    def __init__(
        self, folder: Folder, resources: Resources, workers: int | None, evict: bool, progress: Progress
    ) -> None:
        self._submitit = load_submitit()
        logging.getLogger("submitit").setLevel(logging.ERROR)
        if shutil.which("sbatch") is None or shutil.which("squeue") is None:
            raise EnvironmentProblem(
                "there is no Slurm here: sbatch and squeue are not found",
                hint="Run it on a machine that submits to the cluster, or with --engine local.",
            )
        self._folder, self._resources, self._progress = folder, resources, progress
        self._call = Call(folder, resources, evict)
        self._workers = workers if workers is not None else AT_ONCE
        self._name = f"pythia-sweep-{hashlib.sha256(str(folder.root.resolve()).encode()).hexdigest()[:8]}"
        self._asked_at = self._answered_at = self._told_away = 0.0
        self._held: set[str] = set()
        self._refused: list[Order] = []
        # Job id and submission of each order that is out; of those that another run left in the queue, the order that
        # this run would have given.
        self._out = dict(self._queue())
        for job, (order, at) in self._out.items():
            self._folder.put_output(order.task, _logs(at, job))
        self.found = {order.task for order, _ in self._out.values()}
        self._instead: dict[str, Order] = {}

    @property
    def busy(self) -> bool:
        return bool(self._out or self._refused)

    def submit(self, orders: Sequence[Order]) -> None:
        queued = {order.task for order, _ in self._out.values()}
        self._instead |= {order.task: order for order in orders if order.task in queued}
        needs: dict[tuple[float, float], list[Order]] = {}
        for order in orders:
            if order.task not in queued:
                needs.setdefault((order.memory_gb, order.hours), []).append(order)
        chunks = [(need, alike[i : i + ARRAY]) for need, alike in needs.items() for i in range(0, len(alike), ARRAY)]
        for (memory_gb, hours), chunk in chunks:
            self._submit(memory_gb, hours, chunk, max(1, self._workers // len(chunks)))

    def ended(self) -> list[tuple[Order, End]]:
        found: list[tuple[Order, End]] = [(order, "finished") for order in self._refused]
        self._refused = []
        if time.monotonic() - self._asked_at < ASK_SECONDS:
            return found
        try:
            queued = {job for job, _ in self._queue()}
        except EnvironmentProblem as e:
            if time.monotonic() - self._answered_at > AWAY_SECONDS:
                raise
            if self._told_away != self._answered_at:  # once each time it is away
                self._told_away = self._answered_at
                self._progress.note(f"{e}; asking again for {AWAY_SECONDS / 60:.0f} minutes")
            return found
        for job in [job for job in self._out if job not in queued]:
            order, folder = self._out.pop(job)
            instead = self._instead.pop(order.task, None)
            found.append((order, self._how(job, folder)) if instead is None else (instead, "elsewhere"))
        return found

    def close(self) -> None:
        if self._out:
            self._progress.note(
                f"{len(self._out)} tasks stay in Slurm's queue. `sweep run` waits for them again; "
                f"`scancel --name {self._name}` ends them."
            )

    def _submit(self, memory_gb: float, hours: float, orders: Sequence[Order], at_once: int) -> None:
        submission = uuid.uuid4().hex
        folder = self._folder.output(submission)
        folder.mkdir(parents=True)
        (folder / "orders.json").write_text(json.dumps([asdict(order) for order in orders]))
        python = f"{shlex.quote(sys.executable)} -P"  # not from the folder where the job runs (interpreter.py)
        executor = self._submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_python=python)
        minutes = math.ceil(60 * hours)
        executor.update_parameters(
            name=self._name, timeout_min=minutes, mem_gb=memory_gb, cpus_per_task=self._resources.cores,
            slurm_comment=submission, slurm_array_parallelism=at_once, slurm_signal_delay_s=SIGNAL_SECONDS,
            slurm_additional_parameters=dict(self._resources.slurm), **self._gpu(),
        )  # fmt: skip
        try:
            jobs = executor.map_array(self._call, orders)
        except Exception as e:  # of several kinds, with what sbatch said
            said = str(e).strip().splitlines()
            problem = EnvironmentProblem(
                f"sbatch refused it, with {memory_gb:.1f} GB, {self._resources.cores} cores, {minutes} minutes: "
                f"{said[-1] if said else type(e).__name__}",
                hint="[resources] of the sweep says what is asked for; `sinfo` what there is.",
            )
            for order in orders:
                for key in order.keys:
                    self._folder.put_failure(key, failure(problem, order.attempt))
            self._refused += orders
            return
        for order, job in zip(orders, jobs, strict=True):
            self._out[job.job_id] = order, folder
            self._folder.put_output(order.task, _logs(folder, job.job_id))

    def _gpu(self) -> dict[str, int]:
        """One, unless the sweep's file asks for it in its own words, as many a cluster wants it."""
        asked = any(option.startswith(("gres", "gpus")) for option in self._resources.slurm)
        return {"gpus_per_node": 1} if self._resources.device == "cuda" and not asked else {}

    def _queue(self) -> Iterator[tuple[str, tuple[Order, Path]]]:
        """What of ours is in the queue."""
        self._asked_at, doomed = time.monotonic(), []
        listed = self._ask("squeue", "--noheader", "--array", "--name", self._name, "--format", "%i|%k|%r")
        self._answered_at = time.monotonic()
        found = []
        for line in listed.splitlines():
            job, submission, reason = line.split("|", 2)
            folder = self._folder.output(submission)
            if not (folder / f"{job}_submitted.pkl").is_file():
                doomed.append(job)
                continue
            raw = json.loads((folder / "orders.json").read_text())[int(job.partition("_")[2] or 0)]
            found.append((job, (Order(**raw | {"keys": tuple(raw["keys"])}), folder)))
            if "held" in reason.lower() and job not in self._held:
                self._held.add(job)
                self._progress.note(f"Slurm holds job {job} ({reason}): `scontrol release {job}` lets it go on")
        if doomed:
            self._ask("scancel", *doomed)
        return iter(found)

    def _how(self, job: str, folder: Path) -> End:
        state = re.search(r"JobState=(\w+)", self._ask("scontrol", "--oneliner", "show", "job", job, unless_known=True))
        if state is not None and state[1] in STATES:
            return STATES[state[1]]
        return how_it_ended(Path(_logs(folder, job)[1]), folder / f"{job}_0_result.pkl")

    def _ask(self, *command: str, unless_known: bool = False) -> str:
        """Raises:
        EnvironmentProblem: Slurm does not answer. With `unless_known`, where our own records tell as well, that is
            no error.
        """
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
            said = done.stderr.strip()
        except subprocess.TimeoutExpired:
            done, said = None, f"no answer within {PATIENCE_SECONDS:.0f} s"
        if unless_known or (done is not None and done.returncode == 0):
            return done.stdout if done is not None else ""
        raise EnvironmentProblem(
            f"`{' '.join(command[:2])}`: {said}", hint="Jobs go on without this process; `sweep run` finds them again."
        )


def _logs(folder: Path, job: str) -> list[str]:
    """Its stdout and stderr, as submitit names them."""
    return [str(folder / f"{job}_0_log.{kind}") for kind in ("out", "err")]
