"""From logits to a token: greedy, or temperature, then top-k, then top-p, then one draw.

A draw is native where the kernels are built (drawing.py), else NumPy's.

Top-p is nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751): the smallest set of tokens whose probabilities sum
to p or more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from ..base.errors import NumericsError, RecipeError
from ..model.generation import Generation
from .drawing import NativeDraws
from .finite import all_finite, require_finite

_LEAST = (1e-1, 1e-3, 1e-5)  # weights, beside the likeliest's, down to which tokens are sorted
_AHEAD = 32  # numbers drawn at a time


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
    weights = _weights(logits, sampling)
    tokens, p = _drawable(logits, weights, sampling)
    if tokens is None:
        tokens = _by_weight(logits, np.arange(weights.size))
        p = weights[tokens] / weights.sum()
    return tokens, p


def distribution(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The probability of every token, [V] float64, 0 for those that may not be drawn; in the order of ids."""
    weights = _weights(logits, sampling)
    tokens, p = _drawable(logits, weights, sampling)
    if tokens is None:
        weights /= weights.sum()
        return weights
    found = np.zeros_like(weights)
    found[tokens] = p
    return found


def choose(logits: np.ndarray, sampling: Sampling, rng: np.random.Generator) -> int:
    """One token id from `logits` [V].

    Raises:
        NumericsError: a logit is NaN or infinite.
    """
    if not np.isfinite(logits).all():
        bad = np.flatnonzero(~np.isfinite(logits))
        raise NumericsError(f"{bad.size} of {logits.size} logits are not finite, the first that of token {bad[0]}")
    return int(logits.argmax()) if sampling.temperature == 0 else draw(logits, sampling, rng)


def draw(logits: np.ndarray, sampling: Sampling, rng: np.random.Generator) -> int:
    """One token id from finite `logits` [V], by a temperature above 0."""
    return Draws(sampling).token(logits[None], 0, rng.random())


class Draws:
    """Draws by one sampling, of a temperature above 0. Numbers in, tokens out: whoever asks has the generator."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._native = NativeDraws(sampling.temperature, sampling.top_k, sampling.top_p)

    def token(self, logits: np.ndarray, at: int, u: float) -> int:
        """Return the token id that `u`, drawn from [0, 1), stands for in row `at` of `logits` [B, V].

        Raises:
            NumericsError: a logit of the row is NaN or infinite.
        """
        native = self._native(logits, at, u)
        if native is not None:
            return native
        if not all_finite(logits[at]):
            require_finite(logits[:, None], np.ones((len(logits), 1)))
        return _draw(logits[at], self._sampling, u)


def ahead(rng: np.random.Generator) -> Iterator[float]:
    """Yield what `rng.random()` gives, call after call. Some are drawn at a time: a call costs a microsecond or two."""
    while True:
        yield from rng.random(_AHEAD).tolist()


def _draw(logits: np.ndarray, sampling: Sampling, u: float) -> int:
    weights = _weights(logits, sampling)
    tokens, p = _drawable(logits, weights, sampling)
    if tokens is None:  # as far down as the draw goes, in the same order
        u *= float(weights.sum())
        if u < 1:  # the likeliest's weight
            return int(logits.argmax())
        tokens = _head(logits, weights, 1, u)
        p = weights[tokens]
    at = int(np.searchsorted(np.cumsum(p), u, side="right"))
    return int(tokens[min(at, len(tokens) - 1)])  # the sum may fall short of 1 by a rounding


def _weights(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Probabilities [V] float64 that are not yet divided by their sum: the likeliest's is 1."""
    weights = logits.astype(np.float64)
    weights -= float(logits.max())
    if sampling.temperature != 1:
        with np.errstate(over="ignore"):  # a tiny temperature: all but the likeliest vanish
            weights /= sampling.temperature
    np.exp(weights, out=weights)
    return weights


def _drawable(logits: np.ndarray, weights: np.ndarray, sampling: Sampling) -> tuple[np.ndarray | None, np.ndarray]:
    """Return what top_k and top_p leave, likeliest first, and its probabilities; None and nothing where that is all."""
    k = min(sampling.top_k or weights.size, weights.size)
    if k == weights.size and sampling.top_p is None:
        return None, weights[:0]
    if k < weights.size:
        tokens = _head(logits, weights, k, 0)[:k]
        total = weights[tokens].sum()
    else:
        total = weights.sum()
        tokens = _head(logits, weights, 1, (sampling.top_p or 1) * total)
    p = weights[tokens] / total
    if sampling.top_p is not None:
        kept = int(np.searchsorted(np.cumsum(p), sampling.top_p * (1 - 1e-12))) + 1
        tokens, p = tokens[:kept], p[:kept] / p[:kept].sum()
    return tokens, p


def _head(logits: np.ndarray, weights: np.ndarray, count: int, mass: float) -> np.ndarray:
    """Return the likeliest tokens, in order: at least `count`, that weigh at least `mass`; or all.

    Sorting 50,000 to draw one is a waste: most draws fall on the first few.
    """
    for least in _LEAST:
        tokens = np.flatnonzero(weights >= least)
        if len(tokens) >= count and weights[tokens].sum() > mass * (1 + 1e-9):
            return _by_weight(logits, tokens)
    return _by_weight(logits, np.arange(weights.size))


def _by_weight(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Sort tokens by their logits, the largest first; of two equals the lower id."""
    ordered: np.ndarray = tokens[np.argsort(-logits[tokens], kind="stable")]
    return ordered
