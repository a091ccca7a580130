"""Scoring text: how much of the runtime's own prefill speed is left when the logits are also made into figures?

    python benchmarks/scoring.py [--artifact build/demo] [--size 160m] [--window 512] [--rounds 5]

An artifact, or the shapes of a size of the suite with random weights (int4 in groups of 128, level 4). "prefill"
is `Session.logits`, window by window: what ONNX Runtime takes, with logits of every token. "eval" is the
log-likelihood of the same windows by the harness's model; "verify" holds each token's distribution to the original's,
whose logits are there already. "short" are requests of 16 to 96 tokens with a continuation of 4, as multiple choice has
them, by the harness's model; "one at a time" has a batch of one. Contestants take turns; medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from graph import RandomWeights
from safetensors.torch import save_file

from pythia_export.artifact import Artifact
from pythia_export.base.machine import machine
from pythia_export.commands.run import run
from pythia_export.evaluate.model import PythiaOnnx
from pythia_export.model.neox import tensors
from pythia_export.model.suite import geometry
from pythia_export.proof.metrics import token_figures
from pythia_export.recipe import load_recipe

WINDOWS, REQUESTS = 8, 64
RECIPE = """
[model]
path = "checkpoint"
[quantize]
method = "rtn"
group_size = 128
[export]
accuracy_level = 4
[verify]
source = "python-stdlib"
tokens = 128
sequence_length = 64
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, default=Path("build/demo"))
    parser.add_argument("--size")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        artifact = made(args.size, args.artifact, Path(scratch)) if args.size else args.artifact
        model = PythiaOnnx(artifact)
        print(f"{args.size or artifact}, windows of {args.window} tokens, {model.speed} kernels; {machine()}\n")
        measure(model, PythiaOnnx(artifact, batch_size=1), args.window, args.rounds)


def made(size: str, tokenizer: Path, folder: Path) -> Path:
    """An artifact of a size's shapes; the tokenizer is another artifact's."""
    config = geometry(f"EleutherAI/pythia-{size}")
    assert config is not None, f"{size} is no size of the suite"
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    weights = RandomWeights(config)
    save_file(
        {spec.name: weights.tensor(spec.name).to(torch.float16) for spec in tensors(config)},
        checkpoint / "model.safetensors",
    )
    (checkpoint / "config.json").write_text(json.dumps(config.to_dict("float16")))
    (checkpoint / "tokenizer.json").write_text(Artifact.open(tokenizer).tokenizer().to_str())
    (folder / "recipe.toml").write_text(RECIPE)
    return run(load_recipe(str(folder / "recipe.toml")), folder / "artifact").folder


def measure(model: PythiaOnnx, single: PythiaOnnx, window: int, rounds: int) -> None:
    session, rng = model._session, np.random.default_rng(0)
    ids = rng.integers(0, 4096, (WINDOWS, window))
    reference = [session.logits(row[None])[0] for row in ids]
    whole = [(("", ""), [int(row[0])], [int(x) for x in row[1:]]) for row in ids]
    lengths = rng.integers(16, 97, REQUESTS)
    short = [(("", ""), rng.integers(0, 4096, n).tolist(), rng.integers(0, 4096, 4).tolist()) for n in lengths]
    n_short = int(lengths.sum()) + 3 * REQUESTS

    def prefill() -> None:
        for row in ids:
            session.logits(row[None])

    def verify() -> None:
        for row, expected in zip(ids, reference, strict=True):
            token_figures(expected[:-1], session.logits(row[None])[0, :-1], row[1:])

    contestants = {
        "prefill": (prefill, ids.size),
        "eval": (lambda: model._loglikelihood_tokens(whole, disable_tqdm=True), ids.size - len(ids)),
        "verify": (verify, ids.size),
        "short": (lambda: model._loglikelihood_tokens(short, disable_tqdm=True), n_short),
        "short, one at a time": (lambda: single._loglikelihood_tokens(short, disable_tqdm=True), n_short),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds + 1):  # the first warms up
        for name, (work, tokens) in contestants.items():
            time.sleep(0.1)  # the threads of the contestant before spin for a while
            began = time.perf_counter()
            work()
            speeds[name].append(tokens / (time.perf_counter() - began))
    print("| | tokens/s | of prefill |\n|---|---|---|")
    for name, found in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(found[1:], speeds["prefill"][1:], strict=True))
        print(f"| {name} | {statistics.median(found[1:]):,.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
