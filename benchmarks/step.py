"""What does a step cost beside the model's own work, what do more rows bring, and when does a draft pay?

    python benchmarks/step.py python   [--artifact build/demo] [--threads 1]
    python benchmarks/step.py batches  [--artifact build/demo]
    python benchmarks/step.py draft    --artifact models/410m --draft models/70m

The artifact is of any kind; `--size 70m` makes one of a size's shapes with random weights (int4 in groups of 128, level
4) with the tokenizer of `--artifact`, and `--draft-size` likewise.

"python" decodes a text by the loop of `generate` and separates what ONNX Runtime's run takes from the rest, which is
Python's share: medians over tokens. "bare step" is `Session.decode` alone. "first token" is a prompt of 16 tokens in a
new process, after load.

"batches" decodes rows that have 128 tokens, answers 256 prompts of 16 tokens with 16 tokens each, and scores 256 texts
of 32 tokens, some rows at a time.

"draft" times passes over 1 to 8 tokens after 128, and a token of the draft. From those follows how many times as fast a
text comes if each proposal is accepted with a given probability, by the number of proposals that is best for it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from scoring import made
from tokenizers import Tokenizer

from pythia_export.artifact import Artifact
from pythia_export.base.machine import machine
from pythia_export.runtime import Sampling, Session, continued, generate_batch, generation, score_rows, scoring

FIRST = """
import sys, time, numpy as np
from pythia_export.artifact import Artifact
from pythia_export.runtime import Session
session = Session.open(Artifact.open(sys.argv[1]), threads=int(sys.argv[2]))
ids = np.random.default_rng(0).integers(1, 4096, (1, 16))
began = time.perf_counter()
session.step(session.start(1, 144), ids, keep=1)
print(1000 * (time.perf_counter() - began))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("python", "batches", "draft"))
    parser.add_argument("--artifact", type=Path, default=Path("build/demo"))
    parser.add_argument("--size")
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--draft-size")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:

        def given(size: str | None, folder: Path) -> Path:
            if size is None:
                return folder
            (Path(scratch) / size).mkdir()
            return made(size, args.artifact, Path(scratch) / size)

        folder = given(args.size, args.artifact)
        artifact = Artifact.open(folder)
        session = Session.open(artifact, threads=args.threads)
        print(f"{args.size or folder.name}, {session.speed} ({session.why}), {args.threads} threads; {machine()}\n")
        if args.what == "python":
            python(artifact, session, args.threads)
        elif args.what == "batches":
            batches(session, artifact.tokenizer())
        else:
            draft = given(args.draft_size, args.draft or folder)
            passes(session, Session.open(Artifact.open(draft), threads=args.threads), args.draft_size or draft.name)


@contextmanager
def runs_timed(session: Session) -> Iterator[list[float]]:
    """Yield the seconds of every run of ONNX Runtime inside."""
    inner, seconds = session._session, list[float]()

    class Timed:
        def run_with_iobinding(self, binding: object) -> None:
            began = time.perf_counter()
            inner.run_with_iobinding(binding)
            seconds.append(time.perf_counter() - began)

        def __getattr__(self, name: str) -> object:
            return getattr(inner, name)

    session._session = Timed()
    try:
        yield seconds
    finally:
        session._session = inner


def python(artifact: Artifact, session: Session, threads: int) -> None:
    tokenizer, end = artifact.tokenizer(), session.config.max_positions
    prompt = np.random.default_rng(0).integers(1, 1000, 16).tolist()
    object.__setattr__(session.config, "eos_token_ids", ())  # to go on to the end of the context
    print("| | a token, us | ONNX Runtime's run | Python's share |\n|---|---|---|---|")
    samplings = {
        "greedy": Sampling(), "temperature 1": Sampling(1.0, seed=0), "and top_p 0.9": Sampling(1.0, top_p=0.9, seed=0),
        "temperature 1, top_k 40": Sampling(1.0, top_k=40, seed=0),
    }  # fmt: skip
    for name, sampling in samplings.items():
        with runs_timed(session) as inside:
            at = [time.perf_counter()]
            for piece in continued(session, tokenizer, [prompt], end - 16, sampling):
                if piece.token is not None:
                    at.append(time.perf_counter())
        whole = np.diff(at)[2:]  # without the prompt and the first step, which makes the buffers
        inner = np.array(inside[2:])
        for where, part in ((f"up to {end // 4}", slice(0, end // 4)), (f"up to {end}", slice(-end // 4, None))):
            row(f"{name}, context {where}", whole[part], inner[part])
    with runs_timed(session) as inside:
        cache, at = session.start(1, end), []
        session.step(cache, np.array([prompt]), keep=1)
        for token in [5] * (end - 16):
            at.append(time.perf_counter())
            session.decode(cache, [token])
    row("bare step", np.diff([*at, time.perf_counter()])[1:], np.array(inside[2:]))
    line = [sys.executable, "-c", FIRST, str(artifact.folder), str(threads)]
    first = sorted(float(subprocess.run(line, capture_output=True, text=True, check=True).stdout) for _ in range(7))
    print(f"\nFirst token of 16 after load: {statistics.median(first):.2f} ms ({first[0]:.2f} to {first[-1]:.2f}).")


def row(name: str, whole: np.ndarray, inside: np.ndarray) -> None:
    found = (1e6 * np.median(x) for x in (whole, inside, whole - inside))
    print(f"| {name} | " + " | ".join(f"{x:,.0f}" for x in found) + " |")


def batches(session: Session, tokenizer: Tokenizer) -> None:
    rng, vocabulary = np.random.default_rng(0), min(4096, session.config.vocab_size)
    prompts = rng.integers(1, vocabulary, (256, 16)).tolist()
    texts = rng.integers(1, vocabulary, (256, 32)).tolist()
    object.__setattr__(session.config, "eos_token_ids", ())
    print("| rows at a time | decode at 128, tokens/s | prompts answered/s | texts scored/s | scored, tokens/s |")
    print("|---|---|---|---|---|")
    for rows in (1, 2, 4, 8, 16, 32, 64):
        cache = session.start(rows, 128 + 64)
        session.step(cache, rng.integers(1, vocabulary, (rows, 128)), keep=1)
        tokens = rng.integers(1, vocabulary, rows).tolist()
        steps = max(8, 48 // rows)
        decode = rows / median(steps, session.decode, cache, tokens)
        count = min(256, max(8, 4 * rows))
        answered = count / median(1 if rows < 4 else 2, answer, session, tokenizer, prompts[:count], rows)
        scoring.TOKENS, scoring.LOGITS = 32 * rows, 1 << 40
        scored = count / median(3, score_rows, session, texts[:count])
        print(f"| {rows} | {decode:,.0f} | {answered:,.1f} | {scored:,.1f} | {31 * scored:,.0f} |")


def answer(session: Session, tokenizer: Tokenizer, prompts: list[list[int]], rows: int) -> None:
    generation.ROWS = rows
    assert all(len(x) == 16 for x in generate_batch(session, tokenizer, prompts, 16))


def median(rounds: int, call: Callable[..., object], *given: object) -> float:
    seconds = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        call(*given)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def passes(session: Session, draft: Session, name: str) -> None:
    ids = np.random.default_rng(0).integers(1, 4096, (1, 140))

    def timed(which: Session, tokens: int) -> float:
        cache = which.start(1, 140)
        which.step(cache, ids[:, :128], keep=1)

        def once() -> None:
            which.step(cache, ids[:, 128 : 128 + tokens], keep=tokens)
            cache.truncate(128)

        return median(24, once)

    target = [timed(session, tokens) for tokens in range(1, 9)]
    proposal = timed(draft, 1)
    print(f"A token of the draft, {name}: {1e3 * proposal:.2f} ms.\n")
    print("| tokens a pass | ms | beside one |\n|---|---|---|")
    for tokens, seconds in enumerate(target, 1):
        print(f"| {tokens} | {1e3 * seconds:.2f} | {seconds / target[0]:.2f} |")
    print("\n| accepted | best number of proposals | times as fast |\n|---|---|---|")
    for share in (0.5, 0.6, 0.7, 0.8, 0.9):
        gains = {k: (1 - share ** (k + 1)) / (1 - share) * target[0] / (target[k] + k * proposal) for k in range(1, 8)}
        best = max(gains, key=lambda k: gains[k])
        print(f"| {share:.0%} | {best} | {gains[best]:.2f} |")


if __name__ == "__main__":
    main()
