"""The run: every contestant prepared once, then rounds in turn, each in a process of its own; a figure is the median.

Turns mean that a machine that slows down slows everybody. A peer that cannot take part, or fails on the way, is told
with its reason, and the others go on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..artifact import Artifact
from ..base import errors
from ..base.compute import Compute
from ..base.errors import EnvironmentProblem, PythiaExportError, RecipeError
from ..base.interpreter import isolated_environment
from ..base.machine import cores, machine
from ..base.progress import SILENT, Progress
from ..checkpoint import Accept, Checkpoint, open_checkpoint, pull
from ..commands.whereabouts import located
from ..corpus import verify_windows
from ..disk import unwinding_on_sigterm
from ..proof.reference import Reference
from ..recipe import Recipe
from ..runtime import check_graph, speed_here
from . import process
from .figures import Measured, medians
from .job import Job
from .line_up import Contestant, chosen, interpreters_for
from .result import Absent, NoText, Result, Row, Text
from .standard import write_standard

OURS = "pythia-export"
What = Literal["prepare", "measure"]
PROBED = 24  # tokens, of which a peer's logits are compared with the original's before anything is timed
CONTEXTS = (512, 1500)  # beside that of the prompt, as far as the model's context reaches


class Failed(Exception):
    """What a contestant's process said last; `error` where it is an error of ours."""

    def __init__(self, message: str, error: PythiaExportError | None = None) -> None:
        super().__init__(message)
        self.error = error


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
) -> Result:
    """Prefill and decode tokens per second, load time, peak resident memory, size and perplexity of each contestant.

    `peers` are names (see `line_up`), none for all of them, None for nobody. What is not importable here is looked for
    in `peer_pythons`. Perplexity is that of the first `text_tokens` of the artifact's own held-out text, rounded up to
    whole windows; 0 leaves it out.

    Raises:
        RecipeError: the tokens do not fit into the model's context; a peer or an interpreter that there is not.
        EnvironmentProblem: our own runtime fails; or the error that it ends in.
    """
    opened = Artifact.open(artifact)
    opened.require_graph()
    check_graph(opened)  # others will open it, too
    at = _contexts(prompt_tokens, new_tokens, contexts, opened.config.max_positions)
    bits, speed = opened.recipe.quantize.bits, speed_here(opened)
    ours = _ours(opened, native=speed[0] == "native")
    others = [] if peers is None else [peer for peer in chosen(peers) if peers or _of_its_kind(peer, bits)]
    turns = _Turns({contestant.name: Path(sys.executable) for contestant in ours})
    for name, found in interpreters_for(others, peer_pythons).items():
        if isinstance(found, str):
            turns.absent[name] = found
        else:
            turns.where[name] = found
    taking_part = [contestant for contestant in (*ours, *others) if contestant.name in turns.where]

    # Its process is killed, and its files are removed, on SIGTERM too.
    with unwinding_on_sigterm(), tempfile.TemporaryDirectory(prefix="pythia-export-bench-") as scratch:
        job = Job(
            module="", variant="", artifact=str(opened.folder), checkpoint="", weights=[], scratch=scratch,
            threads=threads or cores(), vocab_size=opened.config.vocab_size, prompt_tokens=prompt_tokens,
            new_tokens=new_tokens, contexts=at,
        )  # fmt: skip
        text, windows = _text(opened, text_tokens, Path(scratch), progress)
        if any(contestant.reads_checkpoint for contestant in taking_part):
            original = _checkpoint(opened, progress)
            if isinstance(original, str):
                turns.absent |= {contestant.name: original for contestant in taking_part if contestant.reads_checkpoint}
            else:
                job = _reading(job, original, windows, progress)
        if any(contestant.standard for contestant in taking_part):
            job = replace(job, standard=str(write_standard(opened, Path(scratch) / "standard")))
        turns.prepare(taking_part, job, progress)
        rows = turns.measure(taking_part, job, windows, repeats, progress)
    return Result(
        machine=f"{machine()}, {job.threads} threads",
        threads=job.threads,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        contexts=at,
        text=text,
        repeats=repeats,
        speed=speed[0],
        why=speed[1],
        rows=rows,
        absent=[Absent(peer.name, turns.absent[peer.name]) for peer in others if peer.name in turns.absent],
    )


@dataclass
class _Turns:
    """`where` is the interpreter of each contestant that there is, `absent` the reason of each that is out."""

    where: dict[str, Path]
    absent: dict[str, str] = field(default_factory=dict)

    def prepare(self, contestants: Sequence[Contestant], job: Job, progress: Progress) -> None:
        todo = [contestant for contestant in contestants if contestant.prepares and contestant.name not in self.absent]
        with progress.track("Preparing", len(todo)) as advance:
            for contestant in todo:
                self._run("prepare", contestant, job)
                advance(1)

    def measure(
        self, contestants: Sequence[Contestant], job: Job, windows: str | None, repeats: int, progress: Progress
    ) -> list[Row]:
        """A row each: medians, versions and every round. Text is scored in the first: its cost does not change."""
        rounds: dict[str, list[Measured]] = {contestant.name: [] for contestant in contestants}
        with progress.track("Measuring", repeats * len(contestants), "runs") as advance:
            for i in range(repeats):
                for contestant in contestants:
                    measured = self._run("measure", contestant, replace(job, windows=None if i else windows))
                    if measured is not None:
                        rounds[contestant.name].append(measured)
                    advance(1)
        return [
            Row(name, medians([x.figures for x in found]), found[0].versions, [x.figures for x in found])
            for name, found in rounds.items() if name not in self.absent
        ]  # fmt: skip

    def _run(self, what: What, contestant: Contestant, job: Job) -> Measured | None:
        """None for a contestant that is out, or is so from now on, and for one that was prepared."""
        if contestant.name in self.absent:
            return None
        try:
            job = replace(job, module=contestant.module, variant=contestant.variant)
            job = job if contestant.reads_checkpoint else replace(job, probe=None)
            return in_own_process(what, self.where[contestant.name], job)
        except Failed as e:
            if contestant.module == "ours":
                if e.error is not None:
                    raise e.error from e
                raise EnvironmentProblem(f"the measurement of {contestant.name} failed: {e}") from e
            self.absent[contestant.name] = f"{'could not be prepared' if what == 'prepare' else 'failed'}: {e}"
            return None


def _ours(artifact: Artifact, native: bool) -> list[Contestant]:
    scheme = artifact.recipe.quantize
    name = f"{OURS} {'float' if scheme.method == 'none' else f'int{scheme.bits}'}"
    function = Contestant(name, "ours", "function", reads_checkpoint=False)
    return [*([replace(function, name=f"{name}, native", variant="native")] if native else []), function]


def _contexts(prompt: int, new: int, asked: Sequence[int] | None, limit: int) -> list[int]:
    """Those that were asked for; else the prompt's and as many of CONTEXTS as fit, or the longest that does."""
    if asked is None:
        fit = [n for n in CONTEXTS if prompt < n <= limit - new]
        asked = [prompt, *(fit or [limit - new] * (limit - new > prompt))]
    longest = max(prompt, *asked)
    if longest + new > limit or min(asked) < 1:
        raise RecipeError(
            f"contexts of {', '.join(map(str, asked))} tokens and a prompt of {prompt:,}; with {new:,} more that is "
            f"up to {longest:,} + {new:,}, and this model's context is {limit:,}"
        )
    return sorted(set(asked))


def _of_its_kind(peer: Contestant, bits: int) -> bool:
    """llama.cpp's quantisation of the artifact's width; the other one only where it is asked for."""
    return not peer.variant.startswith("Q4_0" if bits == 8 else "Q8_0")


def _text(artifact: Artifact, tokens: int, scratch: Path, progress: Progress) -> tuple[Text | NoText, str | None]:
    """What the text is, or why there is none; its windows in a file."""
    if not tokens:
        return NoText("no text was asked for"), None
    try:
        section = _located(artifact, "verify.path").verify
        windows = verify_windows(section, artifact.tokenizer(), artifact.config, progress)
    except PythiaExportError as e:
        return NoText(str(e)), None
    ids = windows.ids[: -(-tokens // section.sequence_length)]
    np.save(scratch / "windows.npy", ids)
    return Text(windows.source, int(ids.size), len(ids)), str(scratch / "windows.npy")


def _located(artifact: Artifact, needed: str) -> Recipe:
    return located(artifact.recipe, artifact.manifest.source.commit, artifact.folder, needed=(needed,))


def _checkpoint(artifact: Artifact, progress: Progress) -> Checkpoint | str:
    """The artifact's checkpoint; why not, where that is not to be had."""
    origin, model = artifact.manifest.source, artifact.recipe.model
    if model.adapter is not None:
        return "its checkpoint is merged with an adapter as it is read, which only pythia-export does"
    if origin.averaged:
        return "its checkpoint is the mean of several, which only pythia-export reads as one"
    try:
        model = _located(artifact, "model.path").model
        pinned = model if model.id in (None, "demo") else model.model_copy(update={"revision": origin.commit})
        original = open_checkpoint(pull(pinned, accept=Accept(duplicates="unasked"), progress=progress), progress)
    except PythiaExportError as e:
        return f"no checkpoint: {e}"
    if original.pulled.commit != origin.commit:
        return f"no checkpoint: {original.pulled.name} changed since the artifact was made of {origin.commit}"
    return original


def _reading(job: Job, original: Checkpoint, windows: str | None, progress: Progress) -> Job:
    """The job of those who read a checkpoint, with what the original makes of some tokens: theirs is held to that."""
    if windows is None:
        ids = np.random.default_rng(1).integers(1, job.vocab_size, PROBED)
    else:
        ids = np.load(windows)[0, :PROBED]
    reference = Reference(original, original.config, ids[None], "The original's logits", Compute(progress=progress))
    probe = Path(job.scratch) / "probe.npz"
    np.savez(probe, ids=ids, logits=reference.logits(0)[-2:])
    weights = [str(path.absolute()) for path in original.pulled.weights]
    return replace(job, checkpoint=str(original.pulled.folder.absolute()), weights=weights, probe=str(probe))


def in_own_process(what: What, python: Path, job: Job) -> Measured | None:
    """Return what was measured, or None of a preparation.

    Raises:
        Failed: the process ended without a result.
    """
    environment = isolated_environment() | {
        "OMP_NUM_THREADS": str(job.threads), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error",
    }  # fmt: skip
    if python != Path(sys.executable):
        environment.pop("PYTHONPATH", None)  # another interpreter's packages are not to be mixed with ours
    task, result = Path(job.scratch) / "job.json", Path(job.scratch) / "result.json"
    result.unlink(missing_ok=True)
    job.write(task)
    done = subprocess.run(
        [python, Path(process.__file__).resolve(), what, task, result],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
    )
    if done.returncode or not result.is_file():
        raise Failed(_reason(done))
    found = json.loads(result.read_text())
    if "error" in found:
        kind, message, hint = found["error"]
        raise Failed(message, getattr(errors, kind)(message, hint=hint))
    return Measured.from_json(found) if what == "measure" else None


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}" + (" (out of memory?)" if done.returncode == -9 else "")
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}, and no message"])[-1]
    return last if len(last) < 500 else f"{last[:500]} ..."
