"""An artifact as a model of lm-evaluation-harness, by the name `pythia-onnx`.

The harness's own `hf` model is the measure of what a request means: how text is split into context and continuation,
what is cut where it is too long, which continuation counts as greedy. What differs is how it is computed. Requests are
taken longest first, so that a batch has rows of about one length; logits are computed of the continuation alone, and
scored inside the graph; and requests with the same input, as the choices of a question often are, are one row.

The harness (0.4.13) loads no models from other packages. `pythia-lm-eval` is its own command line with this one added;
in Python, importing this module registers it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import lm_eval.models  # the harness looks for its own models only while none is registered
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from ..artifact import Artifact
from ..base.errors import RecipeError
from ..runtime import Sampling, generate_batch
from .scores import ScoringSession

assert lm_eval.models

TOKENS = 512  # of a batch, padding included: more only takes memory
LOGIT_BYTES = 1 << 28  # of a batch
MAX_NEW_TOKENS = 256  # where a task says nothing, as the harness has it
TOP_K = 50  # where a task samples and says nothing: transformers' own default, and so the `hf` model's

Request = tuple[tuple[str, str], list[int], list[int]]  # texts, context, continuation


@register_model("pythia-onnx")
class PythiaOnnx(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """`artifact` is its directory; `batch_size` the most rows of a batch, "auto" (or "auto:4") for as many as fit;
    `threads` None for every core; `native` False leaves the native kernels out. The harness always
    gives a `device`, a GPU by default: an artifact runs where its recipe says."""

    cache_hook: CacheHook

    def __init__(
        self,
        artifact: str | Path,
        batch_size: int | str | None = "auto",
        threads: int | None = None,
        native: bool = True,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        opened = Artifact.open(Path(artifact))
        self._session = ScoringSession.of(opened, threads=threads, native=native)
        self.tokenizer = opened.tokenizer()
        of_model = opened.generation
        end = _first(opened.special_token("eos_token"), *of_model.eos_token_ids, 0)
        self._end, self._begin = end, _first(opened.special_token("bos_token"), end)
        self._rows = None if batch_size is None or str(batch_size).startswith("auto") else int(batch_size)
        self._rows = self._rows or max_batch_size
        self.max_length = self._session.config.max_positions

    @property
    def speed(self) -> str:
        """Return how the session runs: native, function or stock."""
        return self._session.speed

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's end token, as the harness's own `hf` model has it; the model's where it names none."""
        return self._end

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        return self._begin

    @property
    def tokenizer_name(self) -> str:
        return "pythia-onnx"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Pythia's tokenizer has nothing to add before or behind a text."""
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=bool(add_special_tokens)).ids
        return ids

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, and whether every token of it is the likeliest."""
        rows: dict[tuple[int, ...], list[int]] = {}
        for i, (_, context, continuation) in enumerate(requests):
            if not context or not continuation:
                raise RecipeError(f"request {i} has no {'context' if not context else 'continuation'} to score")
            if len(continuation) > self.max_length:
                raise RecipeError(
                    f"request {i} has a continuation of {len(continuation):,} tokens; this model has "
                    f"{self.max_length:,} positions"
                )
            rows.setdefault(tuple((context + continuation)[-(self.max_length + 1) : -1]), []).append(i)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        inputs = sorted(rows, key=lambda ids: (-len(ids), ids))
        kept = {ids: max(len(requests[i][2]) for i in rows[ids]) for ids in inputs}
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running loglikelihood requests") as bar:
            for batch in self._batches(inputs, kept):
                members = [rows[ids] for ids in batch]
                scored = self._scored(batch, [[requests[i][2] for i in row] for row in members])
                for i, answer in zip(chain(*members), chain(*scored), strict=True):
                    answers[i] = answer
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], answer)
                bar.update(sum(map(len, members)))
        return answers

    def _scored(
        self, batch: list[tuple[int, ...]], continuations: list[list[list[int]]]
    ) -> list[list[tuple[float, bool]]]:
        """Score every row's continuations. Each ends where its row ends; shorter rows are padded on the left."""
        longest, choices = max(map(len, batch)), max(map(len, continuations))
        kept = max(len(tokens) for row in continuations for tokens in row)
        ids, mask = (np.zeros((len(batch), longest), np.int64) for _ in range(2))
        targets = np.zeros((len(batch), kept, choices), np.int64)
        for row, tokens in enumerate(batch):
            ids[row, longest - len(tokens) :], mask[row, longest - len(tokens) :] = tokens, 1
            for choice, came in enumerate(continuations[row]):
                targets[row, kept - len(came) :, choice] = came
        scores, likeliest = self._session.score(ids, mask, targets)
        return [
            [
                (float(scores[row, kept - len(came) :, i].sum()), bool(likeliest[row, kept - len(came) :, i].all()))
                for i, came in enumerate(of_row)
            ]
            for row, of_row in enumerate(continuations)
        ]

    def _batches(
        self, inputs: list[tuple[int, ...]], kept: dict[tuple[int, ...], int]
    ) -> Iterator[list[tuple[int, ...]]]:
        """Runs of inputs, the longest first, that stay within the limits."""
        batch: list[tuple[int, ...]] = []
        for ids in inputs:
            grown = len(batch) + 1
            logits = 4 * grown * self._session.config.vocab_size * max(kept[x] for x in (*batch, ids))
            full = grown * len((*batch, ids)[0]) > TOKENS or logits > LOGIT_BYTES or grown > (self._rows or grown)
            if batch and full:
                yield batch
                batch = []
            batch.append(ids)
        if batch:
            yield batch

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts, in windows of the model's length that do not overlap."""
        windows: list[Request] = []
        counts = []
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            parts = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            found = [("", ""), *map(make_disjoint_window, parts)][1:]
            windows += [(("", ""), context, continuation) for context, continuation in found]
            counts.append(len(found))
        hook: CacheHook = self.cache_hook
        self.cache_hook = CacheHook(None)  # a window is no request of its own
        scores = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        self.cache_hook = hook
        answers = []
        for request, count in zip(requests, counts, strict=True):
            answers.append(sum(next(scores)[0] for _ in range(count)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answers[-1])
        return answers

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations, each cut before the first of its stop strings. A context too long loses its beginning.

        Where one is sampled, the streams of random numbers follow the harness's seed of NumPy, or the task's own.
        """
        alike: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(i)
        answers = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running generate_until requests") as bar:
            for members in alike.values():
                stop, new, sampling = _generation(
                    requests[members[0]].args[1], self.tokenizer.id_to_token(self.eot_token_id)
                )
                room = self.max_length - new
                if room < 1:
                    raise RecipeError(f"{new:,} new tokens of a model that has {self.max_length:,} positions")
                prompts = {i: self.tok_encode(requests[i].args[0])[-room:] or [self.prefix_token_id] for i in members}
                order = sorted(members, key=lambda i: (-len(prompts[i]), i))
                # A seed a batch: with one for all, a question that is asked several times would get one answer.
                seeds = np.random.default_rng(np.random.randint(2**31) if sampling.seed is None else sampling.seed)
                for batch in self._batches_of_prompts(order, prompts, new):
                    seeded = replace(sampling, seed=int(seeds.integers(2**31)))
                    asked = [prompts[i] for i in batch]
                    found = generate_batch(self._session, self.tokenizer, asked, new, seeded, stop)
                    for i, tokens in zip(batch, found, strict=True):
                        answers[i] = postprocess_generated_text(self.tokenizer.decode(tokens), stop, None)
                        self.cache_hook.add_partial("generate_until", requests[i].args, answers[i])
                    bar.update(len(batch))
        return answers

    def _batches_of_prompts(self, order: list[int], prompts: dict[int, list[int]], new: int) -> Iterator[list[int]]:
        at = 0
        while at < len(order):
            rows = max(1, TOKENS // (len(prompts[order[at]]) + new))
            rows = min(rows, self._rows or rows)
            yield order[at : at + rows]
            at += rows


def _generation(asked: dict[str, Any], eos: str) -> tuple[list[str], int, Sampling]:
    """Stop strings, number of tokens and sampling out of a task's `generation_kwargs`, read as the harness reads them.

    Raises:
        RecipeError: a setting that this model does not know.
    """
    left = normalize_gen_kwargs({name: x for name, x in asked.items() if x is not None}, MAX_NEW_TOKENS)
    stop, new = handle_stop_sequences(list(filter(None, left.pop("until"))), eos), left.pop("max_gen_toks")
    sampled, temperature = left.pop("do_sample"), float(left.pop("temperature", 0.0))
    top_k, top_p = left.pop("top_k", TOP_K) or None, left.pop("top_p", None)  # 0: of all
    seed, beams = left.pop("seed", None), left.pop("num_beams", 1)
    if beams != 1:
        raise RecipeError(f"generation setting num_beams {beams}; this model has no search by beams")
    if left:
        raise RecipeError(f"generation settings {', '.join(sorted(left))}; this model knows none of that name")
    if not sampled or temperature == 0:
        return stop, new, Sampling(seed=seed)
    return stop, new, Sampling(temperature, top_k, top_p, seed)


def _first(*candidates: int | None) -> int:
    return next(token for token in candidates if token is not None)


def main() -> None:
    """`pythia-lm-eval`: the harness's command line, which then also knows `--model pythia-onnx`."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
