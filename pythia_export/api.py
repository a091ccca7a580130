"""An artifact as Python programs use it: text in, text, log-probabilities or logits out. No torch.

from pythia_export import Artifact

artifact = Artifact.open("build/demo")
artifact.generate("def main(", max_new_tokens=32)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
from tokenizers import Tokenizer

from . import artifact, runtime
from .download import download_artifact
from .runtime.sampling import Sampling

CHUNK_LOGITS = 1 << 17  # logits in work at a time: 1 MiB in float64


class Artifact(artifact.Artifact):
    """A directory that `pythia-export run` or `export` wrote. `Artifact.open(path)` reads its manifest, `check()`
    hashes its files; the graph is opened when it is first needed, on the provider that the recipe targets."""

    @classmethod
    def from_hub(cls, repo: str, revision: str = "main") -> Self:
        """Fetch an artifact that `pythia-export push` put on the hub, into the hub's cache, and open it there.

        Raises:
            SourceError: no such repository or revision, offline and not in the cache, or it holds no artifact.
            IntegrityError: a file is not what the hub lists or the manifest says.
        """
        return cls.open(download_artifact(repo, revision))

    @cached_property
    def session(self) -> runtime.Session:
        return runtime.Session.open(self)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return self.tokenizer()

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 128,
        *,
        sample: bool = False,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> str:
        """What follows the prompt; `stream` gives it piece by piece.

        Raises:
            RecipeError: an empty prompt, a sampling value out of range, or more tokens than the model has positions.
        """
        pieces = self.stream(
            prompt,
            max_new_tokens,
            sample=sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop=stop,
        )
        return "".join(pieces)

    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 128,
        *,
        sample: bool = False,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Pieces of text as they become certain, until an end token, a stop string (which is left out) or the count.

        The likeliest token is taken every time, unless a `temperature` above 0 is given, or `sample`: that takes the
        temperature, top_k and top_p which are not given from generation_config.json, as transformers does. The end
        tokens and stop strings of that file always hold. Raises as `generate`.
        """
        sampling = Sampling.asked(self.generation, sample, temperature, top_k, top_p, seed)
        ends = (*((stop,) if isinstance(stop, str) else stop), *self.generation.stop_strings)
        return runtime.generate_text(self.session, self._tokenizer, prompt, max_new_tokens, sampling, ends)

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        max_new_tokens: int = 128,
        *,
        sample: bool = False,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> str:
        """Answer a conversation, in the chat template of the checkpoint: `artifact.chat("Who are you?")`.

        `messages` have a `role` and a `content`, as ``[{"role": "user", "content": "Who are you?"}]``, which a plain
        text stands for. The rest as `stream`.

        Raises:
            RecipeError: the checkpoint has no chat template, or it refuses the messages; and as `generate`.
        """
        conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        sampling = Sampling.asked(self.generation, sample, temperature, top_k, top_p, seed)
        ends = (*((stop,) if isinstance(stop, str) else stop), *self.generation.stop_strings)
        prompt = self.chat_prompt(conversation)
        return "".join(
            runtime.generate_text(self.session, self._tokenizer, prompt, max_new_tokens, sampling, ends, chat=True)
        )

    def score(self, text: str) -> np.ndarray:
        """Natural logarithm of the probability of each token of `text` but the first, [T - 1] float64.

        A text longer than the context is read in windows of `config.max_positions` tokens, each of which begins with
        the last token of the one before. ``exp(-mean)`` of the result is the perplexity.
        """
        ids = np.array(self._tokenizer.encode(text).ids, np.int64)
        window, found = self.config.max_positions, []
        for start in range(0, len(ids) - 1, window - 1):
            part = ids[start : start + window]
            logits = self.logits(part[None, :-1])[0]
            rows = max(1, CHUNK_LOGITS // logits.shape[1])
            for first in range(0, len(logits), rows):  # of a whole window, float64 alone is 800 MB, twice
                x = logits[first : first + rows].astype(np.float64)
                x -= x.max(-1, keepdims=True)
                came = np.take_along_axis(x, part[1:][first : first + rows, None], -1)[:, 0]
                found.append(came - np.log(np.exp(x).sum(-1)))
        return np.concatenate(found) if found else np.empty(0)

    def logits(self, ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        """Logits [B, S, vocab] float32 of `ids` [B, S] int64; the mask [B, S] is 0 at padding, which stands left."""
        return self.session.logits(ids, attention_mask)
