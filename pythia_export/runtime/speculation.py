"""Speculative decoding: a small model, the draft, proposes tokens; the target checks them all in one pass.

Leviathan, Kalman and Matias 2023 (arXiv 2211.17192). One pass over a few tokens reads the target's weights once, where
a pass for each reads them every time. The text is the target's own:

- Greedy, a proposal counts where it is the target's likeliest token. The first that is not is replaced by that one.
- Drawn, a proposal x from the draft's distribution q counts with probability min(1, p(x) / q(x)); p is the target's.
  The first that does not is replaced by a draw from max(0, p - q), scaled to sum to 1. What comes out has exactly the
  distribution p (appendix A.1 there). The same seed draws another text than without a draft.

**Ties.** A pass over several tokens may sum in another order than a pass over one. Logits then differ by a rounding,
and where two tokens are as good as equal, the wrong one could win. So the first tokens are computed both ways, which
measures that rounding. Where there is none (our kernels at accuracy level 4, up to eight tokens), that is all.
Elsewhere, if the two likeliest logits are closer than a multiple of the rounding, the target computes one token at a
time what it had computed several at a time. Every token is computed again at most once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from ..base.errors import RecipeError
from .sampling import Sampling, distribution
from .session import Session

MOST = 4  # proposals a pass: a sixth token and more cost a third of a pass each (benchmarks/README.md, "A draft")
FIRST = 8  # tokens without a draft, to measure rounding and speed by
_SAFETY = 8  # a difference of two logits counts if it is more than so many times the rounding that was seen
_A_TOKEN = 0.13  # cost of one token more in a pass, in passes: only how many are proposed depends on it


class Dice(Protocol):
    """Where chance comes in. A test puts in its place what goes through every outcome."""

    def index(self, p: np.ndarray) -> int:
        """Draw from the distribution p [V]."""
        ...

    def comes(self, probability: float) -> bool:
        """Return True with this probability."""
        ...


class Drawn:
    """Dice by a generator of random numbers."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def index(self, p: np.ndarray) -> int:
        cumulative = np.cumsum(p)
        at = int(np.searchsorted(cumulative, self._rng.random() * cumulative[-1], side="right"))
        return min(at, int(np.flatnonzero(p)[-1]))

    def comes(self, probability: float) -> bool:
        return bool(self._rng.random() < probability)


@dataclass
class Draft:
    """The session that proposes, and what became of its proposals, added up over all texts."""

    session: Session
    proposed: int = 0
    accepted: int = 0
    again: int = 0
    """Tokens that the target computed again, because two were as good as equal."""
    passes: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Passes with proposals, the tokens that came of them, and how long both models took."""
    single_seconds: list[float] = field(default_factory=list)
    """How long the target took alone, for each token that it gave so."""
    rounding: float | None = None
    """The largest difference of a logit, computed in a pass of several tokens and in one of its own."""

    @property
    def acceptance(self) -> float | None:
        """The share of proposals that counted; None before there was one."""
        return self.accepted / self.proposed if self.proposed else None

    @property
    def speed_up(self) -> float | None:
        """How many times as fast tokens came as by the target alone; None where one of the two was not seen.

        By the median of the single tokens: the first touch memory that later ones find ready.
        """
        if not (self.tokens and self.single_seconds):
            return None
        return statistics.median(self.single_seconds) * self.tokens / self.seconds


def require_same_tokens(target: Tokenizer, draft: Tokenizer) -> None:
    """Raise RecipeError where a token id does not mean the same text to both."""
    ours, theirs = target.get_vocab(), draft.get_vocab()
    if ours != theirs:
        differing = sum(theirs.get(token) != number for token, number in ours.items())
        raise RecipeError(
            f"the draft has another tokenizer: {differing:,} of the target's {len(ours):,} tokens are not among its "
            f"{len(theirs):,}, or have another id there",
            hint="A draft is a smaller model with the same tokenizer, such as pythia-70m for pythia-410m.",
        )


class Speculation:
    """One text. Iterate: token ids after `prompt`, until an end token (not among them) or the count.

    The caller stops at stop strings. `ids` are the prompt and what came after it; the target's cache holds all of them
    but the last. Of its columns the first `exact` are as without a draft, bit for bit.
    """

    def __init__(
        self, session: Session, draft: Draft, prompt: Sequence[int], count: int, sampling: Sampling, dice: Dice
    ) -> None:
        self._target, self._draft, self._sampling, self._dice = session, draft, sampling, dice
        self._greedy = sampling.temperature == 0
        self._ids, self._end = list(prompt), len(prompt) + count
        self._cache = session.start(1, self._end)
        self._exact = 0
        theirs = draft.session.config
        self._proposals = draft.session.start(1, min(self._end, theirs.max_positions))
        self._common = min(session.config.vocab_size, theirs.vocab_size)
        self._cost = _A_TOKEN + min(1.0, theirs.parameters / session.config.parameters)
        self._hits, self._tries = 4.0, 5.0  # as if four of five had counted before
        self._first: list[np.ndarray] = []

    def __iter__(self) -> Iterator[int]:
        ends = frozenset(self._target.config.eos_token_ids)
        logits = self._target.step(self._cache, np.array([self._ids], np.int64), keep=1)[0, -1]
        self._exact, found = self._cache.length, [self._choose(logits)]
        while True:
            for token in found:
                if token in ends:
                    return
                self._ids.append(token)
                yield token
                if len(self._ids) == self._end:
                    return
            began = time.perf_counter()
            width = self._width()
            if width:
                found = self._round(width)
                self._draft.passes += 1
                self._draft.tokens += len(found)
                self._draft.seconds += time.perf_counter() - began
            else:
                found = [self._single()]
                self._draft.single_seconds.append(time.perf_counter() - began)
                self._measure()

    def _width(self) -> int:
        """How many tokens to propose: what gives most for its time if proposals go on to count as they did.

        By counts alone, and not by the clock, so that a seed repeats a text.
        """
        room = min(self._end - 1, self._proposals.max_len + 1) - len(self._ids)
        if self._draft.rounding is None or room < 1 or max(self._ids[self._proposals.length :]) >= self._common:
            return 0
        share = min(self._hits / self._tries, 0.99)
        gains = [(1 - share ** (k + 1)) / (1 + k * self._cost) for k in range(1, MOST + 1)]
        return min(room, 1 + int(np.argmax(gains)))

    def _single(self) -> int:
        """A token by the target alone."""
        logits = self._target.decode(self._cache, self._ids[-1:])[0]
        if self._draft.rounding is None:
            self._first.append(logits.copy())
        if self._exact == self._cache.length - 1:
            self._exact += 1
        return self._choose(logits)

    def _measure(self) -> None:
        """After the first tokens of the first text: what a pass of several tokens makes of them."""
        if self._draft.rounding is not None or len(self._first) < FIRST:
            return
        if not self._greedy:  # a rounding of p is no matter
            self._draft.rounding = 0.0
            return
        end, several = self._cache.length, 1 + MOST
        self._cache.truncate(end - several)
        found = self._target.step(self._cache, np.array([self._ids[end - several : end]], np.int64))[0]
        self._draft.rounding = float(np.abs(found - np.stack(self._first[-several:])).max())
        if self._draft.rounding:
            self._exact = end - several

    def _round(self, width: int) -> list[int]:
        """Propose, check, and roll both caches back to what counts; return the tokens that do, and one more."""
        proposed, q = self._propose(width)
        before = self._cache.length
        fed = np.array([[self._ids[-1], *proposed]], np.int64)
        logits = self._target.step(self._cache, fed, keep=width + 1)[0]  # [width + 1, V]
        found = self._check(logits, proposed, before) if self._greedy else self._check_drawn(logits, proposed, q)
        self._cache.truncate(before + len(found))
        if not self._draft.rounding:
            self._exact = self._cache.length
        self._proposals.truncate(min(self._proposals.length, self._cache.length))
        accepted = sum(a == b for a, b in zip(found, proposed, strict=False))
        self._draft.proposed += width
        self._draft.accepted += accepted
        self._hits = 0.9 * self._hits + accepted
        self._tries = 0.9 * self._tries + min(accepted + 1, width)
        return found

    def _propose(self, width: int) -> tuple[list[int], list[np.ndarray]]:
        """Return the draft's next tokens and, if they are drawn, its distributions [common vocabulary]."""
        draft, cache, proposed, q = self._draft.session, self._proposals, list[int](), list[np.ndarray]()
        logits = draft.step(cache, np.array([self._ids[cache.length :]], np.int64), keep=1)[0, -1]
        while True:
            logits = logits[: self._common]
            if self._greedy:
                proposed.append(int(logits.argmax()))
            else:
                q.append(distribution(logits, self._sampling))
                proposed.append(self._dice.index(q[-1]))
            if len(proposed) == width:
                return proposed, q
            logits = draft.decode(cache, proposed[-1:])[0]

    def _check(self, logits: np.ndarray, proposed: Sequence[int], before: int) -> list[int]:
        """Proposals as far as they are the likeliest tokens, and the likeliest after those."""
        for i, row in enumerate(logits):
            token = self._likeliest(row, before + i, proposed)
            if i == len(proposed) or token != proposed[i] or self._cache.length <= before + i + 1:
                return [*proposed[:i], token]
        raise AssertionError("the last row ends it")

    def _check_drawn(self, logits: np.ndarray, proposed: Sequence[int], q: Sequence[np.ndarray]) -> list[int]:
        """Proposals as far as chance accepts them, and a token in place of the first that it does not."""
        for i, token in enumerate(proposed):
            p = distribution(logits[i], self._sampling)
            if not self._dice.comes(min(1.0, p[token] / q[i][token])):
                return [*proposed[:i], self._dice.index(rest(p, q[i]))]
        return [*proposed, self._dice.index(distribution(logits[-1], self._sampling))]

    def _choose(self, logits: np.ndarray) -> int:
        if self._greedy:
            return self._likeliest(logits, self._cache.length - 1, ())
        return self._dice.index(distribution(logits, self._sampling))

    def _likeliest(self, logits: np.ndarray, column: int, proposed: Sequence[int]) -> int:
        """The likeliest token after `column`, by the numbers that single steps give, should it matter."""
        likeliest = int(logits.argmax())
        if column < self._exact or not self._draft.rounding:
            return likeliest
        best, logits[likeliest] = float(logits[likeliest]), -np.inf
        second, logits[likeliest] = float(logits.max()), best
        if best - second > _SAFETY * self._draft.rounding:
            return likeliest
        ids = [*self._ids, *proposed][self._exact : column + 1]
        self._cache.truncate(self._exact)
        for token in ids:
            again = self._target.decode(self._cache, [token])[0]
        self._exact = self._cache.length
        self._draft.again += len(ids)
        self._draft.rounding = max(self._draft.rounding, float(np.abs(again - logits).max()))
        return int(again.argmax())


def rest(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The distribution that replaces a refused proposal: max(0, p - q) over its sum; p [V], q the first of V."""
    left = p.copy()
    left[: q.size] = np.maximum(left[: q.size] - q, 0)
    total = left.sum()
    return left / total if total > 0 else p  # p is q but for a rounding
