"""From logits to a token: greedy, or temperature, then top-k, then top-p, then one draw. Pure numpy.

Top-p is nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751): the smallest set of tokens whose probabilities sum
to p or more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from ..base.errors import NumericsError, RecipeError
from ..model.generation import Generation


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy. `seed` None draws differently every time.

    Raises:
        RecipeError: a value out of range, or top_k, top_p given where greedy decoding would ignore them.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise RecipeError(f"temperature {self.temperature}; a number of 0 or more was expected")
        if self.top_k is not None and self.top_k < 1:
            raise RecipeError(f"top_k {self.top_k}; a number of 1 or more was expected")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise RecipeError(f"top_p {self.top_p}; a number above 0 and up to 1 was expected")
        if self.seed is not None and self.seed < 0:
            raise RecipeError(f"seed {self.seed}; a number of 0 or more was expected")
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise RecipeError(
                "top_k and top_p have no effect at temperature 0, which always takes the likeliest token",
                hint="Give a temperature too, for example 0.8.",
            )

    @classmethod
    def asked(
        cls,
        generation: Generation,
        sample: bool = False,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Self:
        """Return what the caller asked for; `sample` takes what is not given from generation_config.json.

        Without `sample` the file has no say, and a temperature that is not given is 0.
        """
        if sample:
            temperature = generation.temperature if temperature is None else temperature
            if temperature > 0:
                top_k = generation.top_k or None if top_k is None else top_k
                top_p = generation.top_p if top_p is None else top_p
        return cls(temperature or 0.0, top_k, top_p, seed)

    def generators(self, rows: int) -> list[np.random.Generator]:
        """One stream a row, so that a row's tokens do not depend on how many others are drawn beside it."""
        if self.seed is None:
            return [np.random.default_rng() for _ in range(rows)]
        return [np.random.default_rng([self.seed, row]) for row in range(rows)]


def probabilities(logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that may be drawn and their probabilities, both [M], likeliest first; of two equals the lower id.

    `logits` is [V]; the probabilities are float64 and sum to 1.
    """
    scaled = logits.astype(np.float64)
    k = min(sampling.top_k or scaled.size, scaled.size)
    candidates = np.arange(scaled.size)
    if k < scaled.size:  # sorting 50,000 to keep 40 is a waste
        candidates = np.flatnonzero(scaled >= np.partition(scaled, -k)[-k])
    tokens = candidates[np.argsort(-scaled[candidates], kind="stable")][:k]
    with np.errstate(over="ignore", under="ignore"):  # a tiny temperature: all but the likeliest vanish
        p = np.exp((scaled[tokens] - scaled[tokens[0]]) / sampling.temperature)
    p /= p.sum()
    if sampling.top_p is not None:
        kept = int(np.searchsorted(np.cumsum(p), sampling.top_p * (1 - 1e-12))) + 1
        tokens, p = tokens[:kept], p[:kept] / p[:kept].sum()
    return tokens, p


def choose(logits: np.ndarray, sampling: Sampling, rng: np.random.Generator) -> int:
    """One token id from `logits` [V].

    Raises:
        NumericsError: a logit is NaN or infinite.
    """
    if not np.isfinite(logits).all():
        bad = np.flatnonzero(~np.isfinite(logits))
        raise NumericsError(f"{bad.size} of {logits.size} logits are not finite, the first that of token {bad[0]}")
    if sampling.temperature == 0:
        return int(logits.argmax())
    tokens, p = probabilities(logits, sampling)
    at = int(np.searchsorted(np.cumsum(p), rng.random(), side="right"))
    return int(tokens[min(at, len(tokens) - 1)])  # the sum may fall short of 1 by a rounding
