"""Train the demo's step2000 on in two ways: at the peak learning rate, and down to a rate of zero.

    python demo/branches.py --out build/sweep-demo

OUT/constant/step2025 to step2300 keep the peak rate. OUT/decayed leaves them at step2150 and ends at step2300 too, so
that both have read the very same tokens: what differs is the learning rate alone. With their means, `make sweep-demo`
asks what arXiv 2510.06213 claims, that the decay makes a model costly to round and that a mean of checkpoints does not.

Model, text, batch and optimiser are those of demo/train.py. The optimiser's state at step2000 was not kept: it begins
anew, and the rate warms up over 50 steps.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from train import BATCH, CONTEXT, PEAK_LR, SEED, NeoX, on_disk, save_checkpoint, training_documents

DEMO = Path(__file__).resolve().parent
BEGIN, LEAVE, END, WARMUP, EVERY = 2000, 2150, 2300, 50, 25  # steps


def learning_rate(step: int, branch: str) -> float:
    """Return that of the step that follows `step` finished ones."""
    warm = min(1.0, (step + 1 - BEGIN) / WARMUP)
    return PEAK_LR * (warm if branch == "constant" else min(1.0, (END - step) / (END - LEAVE)))


def begin(folder: Path) -> NeoX:
    """Return the model whose weights a checkpoint's folder holds."""
    model, stored = NeoX(), load_file(folder / "model.safetensors")
    own = dict(zip(on_disk(model), model.state_dict(), strict=True))
    model.load_state_dict({own[name]: value.float() for name, value in stored.items()})
    return model


def optimiser(model: NeoX) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), fused=True)


def train(
    branch: str, model: NeoX, data: Tensor, tokenizer: Tokenizer, first: int, out: Path, state: Any = None
) -> Any:
    """Train one branch from `first` to its end; return model and optimiser as they were at `LEAVE`."""
    optimizer, left, began = optimiser(model), None, time.perf_counter()
    if state is not None:
        optimizer.load_state_dict(state)
    for step in range(first, END):
        # Windows of the step's own number: those of both branches are the same.
        at = np.random.default_rng((SEED, step)).integers(0, len(data) - CONTEXT - 1, BATCH)
        window = torch.stack([data[i : i + CONTEXT + 1] for i in at.tolist()])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, branch)
        loss = model(window[:, :-1], window[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if done % EVERY == 0:
            rate = learning_rate(step, branch)
            facts = {"step": done, "tokens": done * BATCH * CONTEXT, "learning_rate": rate, "seed": SEED}
            save_checkpoint(model, tokenizer, out / branch / f"step{done}", facts)
            speed = (done - first) * BATCH * CONTEXT / (time.perf_counter() - began)
            print(f"{branch} step {done} loss {loss.item():.4f} lr {rate:.2e} {speed:.0f} tok/s", flush=True)
        if done == LEAVE:
            left = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    return left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(DEMO / "main" / "tokenizer.json"))
    texts = training_documents()
    order = np.random.default_rng(SEED).permutation(len(texts))
    ids = np.concatenate([[0, *e.ids] for e in tokenizer.encode_batch([texts[i] for i in order])]).astype(np.int64)
    data = torch.from_numpy(ids)
    print(f"{len(texts)} documents, {len(data):,} tokens, Python {sys.version.split()[0]}", flush=True)
    model = begin(DEMO / f"step{BEGIN}")
    weights, state = train("constant", model, data, tokenizer, BEGIN, args.out)
    model.load_state_dict(weights)
    train("decayed", model, data, tokenizer, LEAVE, args.out, state)


if __name__ == "__main__":
    main()
