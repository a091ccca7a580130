"""Train the embedded demo checkpoint: a GPT-NeoX model of pythia-14m's trunk on Python's own standard library.

    python demo/train.py --out build/demo --steps 8000

Model: hidden 128, 6 layers, 4 heads of 32 of which 8 dims rotate, parallel residual, untied embeddings, a
byte-level BPE of 4,096 entries. Optimiser: AdamW, betas (0.9, 0.95), weight decay 0.1 on matrices, gradient
norm clipped at 1; the learning rate warms up for 200 steps, stays, and falls linearly to zero over the last
`DECAY` of the run (the decay is what makes a small model costly to round). Because only that last stretch depends on
--steps, a run stopped early can be finished with fewer steps: --resume goes on from OUT/state.pt.

Beside the weights of each revision that --save keeps lies `training.json`, with the tokens that it was trained on and
its learning rate, for `pythia-export sweep`. (`make sweep-demo` trains demo/branches.py's runs.)

Everything that is read is the interpreter's own (`pythia_export.corpus.stdlib`) plus its `test` package where
there is one, less the tests of held-out modules.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from pythia_export.corpus.stdlib import HELD_OUT, stdlib_documents  # noqa: E402

VOCAB, HIDDEN, LAYERS, HEADS, ROTARY_PCT, CONTEXT = 4096, 128, 6, 4, 0.25, 512
BATCH, PEAK_LR, WARMUP, DECAY, SEED = 8, 3e-3, 200, 0.4, 20261123
HEAD_DIM = HIDDEN // HEADS
ROTARY = int(HEAD_DIM * ROTARY_PCT)


def training_documents() -> list[str]:
    texts = [text for _, text in stdlib_documents("train")]
    root = Path(sysconfig.get_path("stdlib"))
    for package in ("test", "idlelib", "lib2to3"):
        for path in sorted((root / package).rglob("*.py")):
            stem = path.relative_to(root).as_posix()
            if any(name in stem for name in HELD_OUT) or path.stat().st_size > 400_000:
                continue
            texts.append(path.read_text(encoding="utf-8", errors="replace"))
    return texts


def train_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(HIDDEN)
        self.post_attention_layernorm = nn.LayerNorm(HIDDEN)
        self.query_key_value = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.dense = nn.Linear(HIDDEN, HIDDEN)
        self.dense_h_to_4h = nn.Linear(HIDDEN, 4 * HIDDEN)
        self.dense_4h_to_h = nn.Linear(4 * HIDDEN, HIDDEN)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, _ = x.shape
        qkv = self.query_key_value(self.input_layernorm(x)).view(B, T, HEADS, 3 * HEAD_DIM).transpose(1, 2)
        q, k, v = qkv.split(HEAD_DIM, dim=-1)  # each [B, heads, T, head_dim]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, HIDDEN)
        m = F.gelu(self.dense_h_to_4h(self.post_attention_layernorm(x)))
        return x + self.dense(a) + self.dense_4h_to_h(m)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    r, rest = x[..., :ROTARY], x[..., ROTARY:]
    a, b = r.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


class NeoX(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_in = nn.Embedding(VOCAB, HIDDEN)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.final_layer_norm = nn.LayerNorm(HIDDEN)
        self.embed_out = nn.Linear(HIDDEN, VOCAB, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:  # GPT-NeoX's small init, and its Wang init where a product enters the residual
                residual = name.endswith(("dense.weight", "dense_4h_to_h.weight"))
                nn.init.normal_(p, std=2 / LAYERS / math.sqrt(HIDDEN) if residual else math.sqrt(2 / (5 * HIDDEN)))
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        inv_freq = 10000.0 ** (-torch.arange(0, ROTARY, 2, dtype=torch.float64) / ROTARY)
        angle = torch.outer(torch.arange(CONTEXT, dtype=torch.float64), inv_freq)
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        T = ids.shape[1]
        x = self.embed_in(ids)
        for layer in self.layers:
            x = layer(x, self.cos[:T], self.sin[:T])
        return F.cross_entropy(self.embed_out(self.final_layer_norm(x)).flatten(0, 1), targets.flatten())


def on_disk(model: NeoX) -> dict[str, Tensor]:
    """The hub's tensor names, float16."""
    out = {}
    for name, p in model.state_dict().items():
        for part in ("query_key_value", "dense"):
            name = name.replace(f".{part}.", f".attention.{part}.")
        for part in ("dense_h_to_4h", "dense_4h_to_h"):
            name = name.replace(f".{part}.", f".mlp.{part}.")
        out[name if name.startswith("embed_out") else f"gpt_neox.{name}"] = p.detach().half().cpu().contiguous()
    return out


CONFIG = {
    "architectures": ["GPTNeoXForCausalLM"],
    "attention_bias": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": 4 * HIDDEN,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": CONTEXT,
    "model_type": "gpt_neox",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "rotary_emb_base": 10000,
    "rotary_pct": ROTARY_PCT,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "use_parallel_residual": True,
    "vocab_size": VOCAB,
}


def save_checkpoint(model: NeoX, tokenizer: Tokenizer, folder: Path, training: dict[str, int | float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training.json").write_text(json.dumps(training) + "\n")
    save_file(on_disk(model), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    special = {f"{kind}_token": "<|endoftext|>" for kind in ("bos", "eos", "unk")}
    for name, value in {
        "config.json": CONFIG,
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": 0},
        "special_tokens_map.json": special,
        "tokenizer_config.json": special
        | {"add_prefix_space": False, "model_max_length": CONTEXT, "tokenizer_class": "GPTNeoXTokenizerFast"},
    }.items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")


@torch.no_grad()
def heldout_bits_per_byte(model: NeoX, tokenizer: Tokenizer) -> tuple[float, int]:
    texts = [text for _, text in stdlib_documents("heldout")]
    ids = [i for e in tokenizer.encode_batch(texts) for i in (0, *e.ids)]
    n = (len(ids) - 1) // CONTEXT
    x = torch.tensor(ids[: n * CONTEXT + 1], device=model.cos.device)
    total = 0.0
    for i in range(n):
        w = x[i * CONTEXT : (i + 1) * CONTEXT + 1]
        total += model(w[None, :-1], w[None, 1:]).item() * CONTEXT
    tokens = n * CONTEXT
    n_bytes = sum(len(t.encode()) for t in texts) * tokens / len(ids)
    return total / math.log(2) / n_bytes, tokens


def learning_rate(step: int, steps: int) -> float:
    """Of the step that follows `step` finished ones."""
    return PEAK_LR * min(1, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--save", type=int, nargs="*", default=[], help="steps to keep as revisions")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"windows of {CONTEXT} tokens a step (%(default)s)")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--device", default="cpu", help="of torch, as `cuda` (%(default)s)")
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    keep = set(args.save)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)

    texts = training_documents()
    if (args.out / "tokenizer.json").exists():
        tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    else:
        tokenizer = train_tokenizer(texts)
        tokenizer.save(str(args.out / "tokenizer.json"))
    order = np.random.default_rng(SEED).permutation(len(texts))
    ids = np.concatenate([[0, *e.ids] for e in tokenizer.encode_batch([texts[i] for i in order])]).astype(np.int64)
    data = torch.from_numpy(ids)
    print(f"{len(texts)} documents, {sum(map(len, texts)):,} characters, {len(data):,} tokens", flush=True)

    model = NeoX().to(args.device)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=PEAK_LR, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    start = 0
    if args.resume:
        state = torch.load(args.out / "state.pt", weights_only=True, map_location=args.device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    step_fn = model if args.no_compile else torch.compile(model)

    def keep_as(name: str, done: int) -> None:
        rate = learning_rate(max(0, done - 1), args.steps) if done else 0.0
        training = {"step": done, "tokens": done * args.batch * CONTEXT, "learning_rate": rate, "seed": SEED}
        save_checkpoint(model, tokenizer, args.out / name, training)

    began, smoothed = time.perf_counter(), None
    if start == 0 and 0 in keep:
        keep_as("step0", 0)
    for step in range(start, args.steps):
        # Windows start at random offsets, drawn from the step number alone so that a resumed run sees the same.
        at = torch.from_numpy(np.random.default_rng((SEED, step)).integers(0, len(data) - CONTEXT - 1, args.batch))
        window = torch.stack([data[i : i + CONTEXT + 1] for i in at.tolist()])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps)
        window = window.to(args.device)
        loss = step_fn(window[:, :-1], window[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        smoothed = loss.item() if smoothed is None else 0.99 * smoothed + 0.01 * loss.item()
        done = step + 1
        if done % 50 == 0:
            rate = (done - start) * args.batch * CONTEXT / (time.perf_counter() - began)
            print(
                f"step {done} loss {smoothed:.4f} lr {learning_rate(step, args.steps):.2e} {rate:.0f} tok/s", flush=True
            )
        if done % 200 == 0 or done == args.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": done}
            torch.save(state, args.out / "state.tmp")
            (args.out / "state.tmp").replace(args.out / "state.pt")
        if done in keep and done < args.steps:
            keep_as(f"step{done}", done)
    keep_as("main", args.steps)
    bpb, n = heldout_bits_per_byte(model, tokenizer)
    summary = {
        "steps": args.steps, "tokens": args.steps * args.batch * CONTEXT, "seed": SEED, "peak_lr": PEAK_LR,
        "heldout_bits_per_byte": round(bpb, 4), "heldout_tokens": n,
        "training_tokens_unique": len(data), "python": sys.version.split()[0],
    }  # fmt: skip
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
