"""What the process of a contestant is told. Nothing but the standard library: see `process`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """Paths are absolute strings. `checkpoint` is a folder with a config.json, `weights` are its safetensors; both are
    empty where no contestant needs them. `contexts` are the tokens that are cached when decoding begins. `windows` is
    a .npy of token ids [N, S] whose perplexity is asked for, or None. `probe` is a .npz of `ids` [T] and of the
    original model's `logits` [2, V] after the last two of them, or None. `standard` is a graph of standard operators
    over the artifact's weights, or None where no contestant needs one."""

    module: str
    variant: str
    artifact: str
    checkpoint: str
    weights: list[str]
    scratch: str
    threads: int
    vocab_size: int
    prompt_tokens: int
    new_tokens: int
    contexts: list[int]
    windows: str | None = None
    probe: str | None = None
    standard: str | None = None

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Job:
        return cls(**json.loads(path.read_text()))

    @property
    def room(self) -> int:
        """Tokens that a cache must hold."""
        return max(self.prompt_tokens, *self.contexts) + self.new_tokens

    def folder(self, name: str) -> Path:
        """Where a contestant keeps what it made of the checkpoint."""
        return Path(self.scratch) / name
