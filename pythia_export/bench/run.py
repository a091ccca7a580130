"""The run: every contestant prepared once, then rounds in turn, each in a process of its own; a figure is the median.

Turns mean that a machine that slows down slows everybody. A peer that cannot take part, or fails on the way, is told
with its reason, and the others go on.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..artifact import Artifact
from ..checkpoint import Accept, pull
from ..corpus import verify_windows
from ..errors import EnvironmentProblem, PythiaExportError, RecipeError
from ..machine import machine
from ..progress import SILENT, Progress
from ..runtime import speed_here
from . import process
from .job import Job
from .line_up import Contestant, chosen, interpreters_for

OURS = "pythia-export"
CONTEXTS = (512, 1500)  # beside that of the prompt, as far as the model's context reaches


class Failed(Exception):
    """What a contestant's process said last."""


def bench(
    artifact: Path,
    *,
    peers: Sequence[str] | None = (),
    peer_pythons: Sequence[Path] = (),
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    contexts: Sequence[int] | None = None,
    text_tokens: int = 4096,
    repeats: int = 3,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Prefill and decode tokens per second, load time, peak resident memory, size and perplexity of each contestant.

    `peers` are names (see `line_up`), none for all of them, None for nobody. What is not importable here is looked for
    in `peer_pythons`. Perplexity is that of the first `text_tokens` of the artifact's own held-out text, rounded up to
    whole windows; 0 leaves it out.

    Raises:
        RecipeError: the tokens do not fit into the model's context; a peer or an interpreter that there is not.
        EnvironmentProblem: our own runtime fails.
    """
    opened = Artifact.open(artifact)
    limit = opened.config.max_positions
    at = _contexts(prompt_tokens, new_tokens, limit) if contexts is None else sorted(set(contexts))
    if max(prompt_tokens, *at) + new_tokens > limit or min(at) < 1:
        asked = max(prompt_tokens, *at)
        raise RecipeError(f"contexts {at}, {asked:,} + {new_tokens:,} tokens; this model's context is {limit:,}")
    scheme = opened.recipe.quantize
    ours = f"{OURS} {'float' if scheme.method == 'none' else f'int{scheme.bits}'}"
    field = [Contestant(ours, "ours", "function", reads_checkpoint=False)]
    speed, why = speed_here(opened)
    if speed == "native":
        field.insert(0, Contestant(f"{ours}, native", "ours", "native", reads_checkpoint=False))
    own = [contestant.name for contestant in field]
    others = [] if peers is None else [peer for peer in chosen(peers) if peers or _of_its_kind(peer, scheme.bits)]
    where: dict[str, Path | str] = {name: Path(sys.executable) for name in own}
    where |= interpreters_for(others, peer_pythons)
    absent = {name: python for name, python in where.items() if isinstance(python, str)}
    field += [peer for peer in others if peer.name not in absent]

    with tempfile.TemporaryDirectory(prefix="pythia-export-bench-") as scratch:
        base = Job(
            module="", variant="", artifact=str(opened.folder), checkpoint="", weights=[], scratch=scratch,
            threads=threads or _cores(), vocab_size=opened.config.vocab_size, prompt_tokens=prompt_tokens,
            new_tokens=new_tokens, contexts=at,
        )  # fmt: skip
        text, file = _text(opened, text_tokens, Path(scratch), progress)
        base, no_checkpoint = _with_checkpoint(base, opened, field, progress)
        absent |= {c.name: no_checkpoint for c in field if no_checkpoint and c.reads_checkpoint}

        def run(what: Literal["prepare", "measure"], contestant: Contestant, job: Job) -> dict[str, Any] | None:
            """None, and the reason in `absent`, where a peer fails."""
            job = dataclasses.replace(job, module=contestant.module, variant=contestant.variant)
            try:
                return in_own_process(what, Path(where[contestant.name]), job)
            except Failed as e:
                if contestant.name in own:
                    raise EnvironmentProblem(f"the measurement of {contestant.name} failed: {e}") from e
                absent[contestant.name] = f"{'could not be prepared' if what == 'prepare' else 'failed'}: {e}"
                return None

        to_prepare = [c for c in field if c.prepares and c.name not in absent]
        with progress.track("Preparing", len(to_prepare)) as advance:
            for contestant in to_prepare:
                run("prepare", contestant, base)
                advance(1)
        versions: dict[str, dict[str, str]] = {}
        rounds: dict[str, list[dict[str, Any]]] = {contestant.name: [] for contestant in field}
        with progress.track("Measuring", repeats * len(field), "runs") as advance:
            for i in range(repeats):
                # What text costs does not change from one round to the next.
                job = dataclasses.replace(base, windows=file if i == 0 else None)
                for contestant in field:
                    if contestant.name not in absent and (measured := run("measure", contestant, job)):
                        versions[contestant.name] = measured.pop("versions")
                        rounds[contestant.name].append(measured)
                    advance(1)
    return {
        "machine": f"{machine()}, {base.threads} threads",
        "threads": base.threads,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "contexts": at,
        "text": text,
        "repeats": repeats,
        "speed": speed,
        "why": why,
        "rows": [
            {"name": name} | _medians(measured) | {"versions": versions[name], "rounds": measured}
            for name, measured in rounds.items()
            if name not in absent
        ],
        "absent": [{"name": peer.name, "why": absent[peer.name]} for peer in others if peer.name in absent],
    }


def _contexts(prompt: int, new: int, limit: int) -> list[int]:
    fit = [n for n in CONTEXTS if prompt < n <= limit - new]
    return [prompt, *(fit or [limit - new] * (limit - new > prompt))]


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _of_its_kind(peer: Contestant, bits: int) -> bool:
    """llama.cpp's quantisation of the artifact's width; the other one only where it is asked for."""
    return peer.variant != ("Q4_0" if bits == 8 else "Q8_0")


def _text(artifact: Artifact, tokens: int, scratch: Path, progress: Progress) -> tuple[dict[str, Any], str | None]:
    """What the text is, or why there is none; its windows in a file."""
    if not tokens:
        return {"why": "no text was asked for"}, None
    section = artifact.recipe.verify
    try:
        windows = verify_windows(section, artifact.tokenizer(), artifact.config, progress)
    except PythiaExportError as e:
        return {"why": str(e)}, None
    ids = windows.ids[: -(-tokens // section.sequence_length)]
    np.save(scratch / "windows.npy", ids)
    return {"source": windows.source, "tokens": int(ids.size), "windows": len(ids)}, str(scratch / "windows.npy")


def _with_checkpoint(job: Job, artifact: Artifact, field: Sequence[Contestant], progress: Progress) -> tuple[Job, str]:
    """The job with the artifact's checkpoint, if anyone reads it; why not, where that is not to be had."""
    if not any(contestant.reads_checkpoint for contestant in field):
        return job, ""
    origin, model = artifact.manifest["source"], artifact.recipe.model
    pinned = model if model.id in (None, "demo") else model.model_copy(update={"revision": origin["commit"]})
    try:
        pulled = pull(pinned, accept=Accept(duplicates="unasked"), progress=progress)
    except PythiaExportError as e:
        return job, f"no checkpoint: {e}"
    if pulled.commit != origin["commit"]:
        return job, f"no checkpoint: {pulled.name} changed since the artifact was made of {origin['commit']}"
    weights = [str(path.absolute()) for path in pulled.weights]
    return dataclasses.replace(job, checkpoint=str(pulled.folder.absolute()), weights=weights), ""


def in_own_process(what: Literal["prepare", "measure"], python: Path, job: Job) -> dict[str, Any]:
    """Raises:
    Failed: the process ended without a result.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": str(job.threads), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error",
    }  # fmt: skip
    if python != Path(sys.executable):
        environment.pop("PYTHONPATH", None)  # another interpreter's packages are not to be mixed with ours
    task, result = Path(job.scratch) / "job.json", Path(job.scratch) / "result.json"
    result.unlink(missing_ok=True)
    job.write(task)
    done = subprocess.run(
        [python, process.__file__, what, task, result],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
    )
    if done.returncode or not result.is_file():
        raise Failed(_reason(done))
    found: dict[str, Any] = json.loads(result.read_text())
    return found


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}" + (" (out of memory?)" if done.returncode == -9 else "")
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}, and no message"])[-1]
    return last if len(last) < 500 else f"{last[:500]} ..."


def _medians(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of numbers, and of numbers within a dict; of what not every round has, the ones that do."""
    medians: dict[str, Any] = {}
    for key in dict.fromkeys(key for measured in rounds for key in measured):
        values = [measured[key] for measured in rounds if key in measured]
        medians[key] = _medians(values) if isinstance(values[0], Mapping) else statistics.median(values)
    return medians
