"""What is measured of every contestant, in the same order and on the same tokens. NumPy alone."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from ..base.machine import peak_memory_bytes
from ..model.likelihood import log_probabilities
from .figures import Figures
from .job import Job

# Of one prompt: every other time its cache gets memory that has its pages already, and it is twice as fast.
PREFILLS = 4
NEAR = 0.5


class Opened(Protocol):
    """A model that is ready. Token ids are int64 [T]; logits are float32, of a batch of one."""

    files: list[Path]
    """What it loads."""

    def prefill(self, ids: np.ndarray) -> np.ndarray:
        """Forget everything, take `ids`; logits [V] of what follows."""
        ...

    def step(self, token: int) -> np.ndarray:
        """Take one token more; logits [V] of what follows."""
        ...

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Return logits of every token of `ids` with nothing before them: [T, V]."""
        ...


def measure(job: Job, began: float, open_contestant: Callable[[Job], Opened]) -> Figures:
    """`began` is when the process started to import the contestant (time.perf_counter).

    A prompt of random tokens is taken once before anything is timed but the first token. Memory is the peak before
    text is scored, which keeps logits of whole windows.

    Raises:
        ValueError: a logit is not finite, or the logits are not the model's.
    """
    opening = time.perf_counter()
    opened = open_contestant(job)
    loaded = time.perf_counter()
    ids = np.random.default_rng(0).integers(1, job.vocab_size, job.room)
    opened.prefill(ids[: job.prompt_tokens])
    first = time.perf_counter()
    opened.step(int(ids[0]))
    if job.probe is not None:
        with np.load(job.probe) as probe:
            require_near(opened, probe["ids"], probe["logits"])
    prefill, decode = [], {}
    for _ in range(PREFILLS):
        start = time.perf_counter()
        opened.prefill(ids[: job.prompt_tokens])
        prefill.append(job.prompt_tokens / (time.perf_counter() - start))
    for n in job.contexts:
        opened.prefill(ids[:n])
        start = time.perf_counter()
        for token in ids[n : n + job.new_tokens]:
            opened.step(int(token))
        decode[n] = job.new_tokens / (time.perf_counter() - start)
    found = Figures(
        import_seconds=opening - began,
        load_seconds=loaded - opening,
        first_token_seconds=first - began,
        prefill_tokens_per_second=statistics.median(prefill),
        decode_tokens_per_second={str(n): decode[n] for n in job.contexts},
        peak_memory_bytes=peak_memory_bytes(),
        size_bytes=sum(path.stat().st_size for path in opened.files),
    )
    if job.windows is None:
        return found
    windows = np.load(job.windows)
    nats = np.concatenate([nll(opened.logits(ids), ids) for ids in windows])
    return replace(found, perplexity=math.exp(nats.mean()))


def require_near(opened: Opened, ids: np.ndarray, expected: np.ndarray) -> None:
    """Compare the logits after a prompt, and after one token more, with the original model's: ids [T], expected [2, V].

    Raises:
        ValueError: they differ by more than rounding the weights explains.
    """
    found = np.stack([np.array(opened.prefill(ids[:-1])), np.array(opened.step(int(ids[-1])))]).astype(np.float64)
    error = distance(found, expected)
    if not error <= NEAR:
        raise ValueError(f"its logits are off the model's by {error:.2f} of their size; at most {NEAR} was expected")


def distance(logits: np.ndarray, expected: np.ndarray) -> float:
    """Return the error of `logits` [N, V] relative to `expected`, apart from what softmax does not see."""
    a, b = (x - x.mean(-1, keepdims=True) for x in (logits, expected))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def nll(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the nats of each token of `ids` [T] but the first, [T - 1] float64, by `logits` [T, V]."""
    if logits.shape[0] != len(ids) or not np.isfinite(logits).all():
        raise ValueError(f"logits {list(logits.shape)} of {len(ids)} tokens: too few, or not all of them finite")
    return -log_probabilities(logits[:-1], ids[1:])
