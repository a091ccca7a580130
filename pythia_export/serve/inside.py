"""What an artifact computes on its way through a text: the logit lens between layers, and what heads look at.

Our runtime computes it here, on the artifact's weights where they lie. The graphs are built in memory, so an artifact
needs no taps. Two artifacts of one shape are also compared, token by token and head by head.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from ..artifact import Artifact
from ..base.errors import IntegrityError, NumericsError, RecipeError
from ..graph.cache_scales import read_scales
from ..graph.decoder import build_decoder, build_lens, located
from ..model.hooks import hooks_of
from ..runtime.lens import Lens
from ..runtime.taps import TapSession
from ..weights.names import MODEL, data_name
from .prepare import AGAIN, Ready, state_of

TOKENS = 96  # of a text: a page shows no more side by side, and the head is the work of a layer's many
LIKELIEST = 8  # tokens at each place
_CAPTURE = ("resid", "attn.pattern")
_PATTERN = "attn.hook_pattern"
_TINY = 1e-30
Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Seen:
    """One artifact of L layers of H heads, on T tokens.

    `top` and `p` [L + 1][T][LIKELIEST]: the tokens that the lens finds likeliest, and their probabilities. `following`
    and `rank` [L + 1][T - 1]: probability and rank, 1 the likeliest, of the token that does follow. `heads` [L][H]: how
    much a head looks elsewhere than at the first token and its own.
    """

    top: list[list[list[int]]]
    p: list[list[list[float]]]
    following: list[list[float]]
    rank: list[list[int]]
    heads: list[list[float]]


@dataclass(frozen=True)
class Difference:
    """`kl` [L + 1][T]: KL(first || second) of what the lens sees, nats. `heads` [L][H]: Jensen-Shannon divergence of
    the two patterns, nats, mean over the tokens."""

    kl: list[list[float]]
    heads: list[list[float]]


@dataclass(frozen=True)
class Look:
    """A text seen inside: its first T `tokens` of `total`, one `Seen` an artifact. `difference`: None of one artifact,
    and of two that have other layers or heads."""

    tokens: list[int]
    total: int
    seen: list[Seen]
    difference: Difference | None
    seconds: float


@dataclass(frozen=True)
class Patterns:
    """The pattern of one head, an artifact each, None where that has no such head: by query, what it gives to each
    token up to its own."""

    rows: list[list[list[float]] | None]


class Inside:
    """One or two artifacts; `look` and `pattern` are asked one after another. Sessions open when they are first needed.

    Both raise:
        RecipeError: a text without tokens, or a head that is none.
        IntegrityError: the weights changed since they were hashed; and as `TapSession`.
        SourceError: weights without a graph, whose int8 cache has the scales of one.
        NumericsError: the model computes a NaN or an infinity.
        ResourceError: no memory for it.
    """

    def __init__(self, models: Sequence[Ready]) -> None:
        self._models = models
        self._one = threading.Lock()
        self._sides: list[_Side] = []
        self._read: tuple[tuple[int, ...], list[Values]] | None = None

    def look(self, text: str) -> Look:
        with self._one:
            began = time.perf_counter()
            ids, values = self._values(text)
            same = len(values) == 2 and self._shapes[0] == self._shapes[1]
            seen = [Seen([], [], [], [], [_rounded(_elsewhere(p)) for p in _patterns(of)]) for of in values]
            kl: list[list[float]] = []
            for hooks in zip_longest(*(_boundaries(of) for of in values)):
                logs = []
                for side, into, of, hook in zip(self._sides, seen, values, hooks, strict=True):
                    if hook is not None:
                        logs.append(_log_softmax(side.lens.logits(of[hook])))
                        _add(into, logs[-1], ids)
                if same:
                    kl.append(_rounded(_divergence(*logs)))
            return Look(
                tokens=list(ids),
                total=len(self._sides[0].encode(text)),
                seen=seen,
                difference=Difference(kl, [_rounded(_apart(*two)) for two in zip(*map(_patterns, values), strict=True)])
                if same
                else None,
                seconds=round(time.perf_counter() - began, 3),
            )

    def pattern(self, text: str, layer: int, head: int) -> Patterns:
        there = [0 <= layer < layers and 0 <= head < heads for layers, heads in self._shapes]
        if not any(there):
            layers, heads = self._shapes[0]
            raise RecipeError(f"head {head} of layer {layer}; {layers} layers of {heads} heads were expected")
        with self._one:
            _, values = self._values(text)
        return Patterns(
            [
                _triangle(of[f"blocks.{layer}.attn.hook_pattern"][head]) if has else None
                for of, has in zip(values, there, strict=True)
            ]
        )

    @property
    def _shapes(self) -> list[tuple[int, int]]:
        return [(model.about.layers, model.about.heads) for model in self._models]

    def _values(self, text: str) -> tuple[tuple[int, ...], list[Values]]:
        """Read the artifacts, or take what was read last: a page asks for one head of a text after another."""
        if not self._sides:
            self._sides = [_Side(model) for model in self._models]
        shown = min(TOKENS, *(model.about.positions for model in self._models))
        ids = tuple(self._sides[0].encode(text)[:shown])
        if not ids:
            raise RecipeError("There is no text to look into. <|endoftext|> begins a new document.")
        if self._read is None or self._read[0] != ids:
            self._read = ids, [side.read(ids) for side in self._sides]
        return self._read


class _Side:
    """One artifact's sessions."""

    def __init__(self, model: Ready) -> None:
        artifact = Artifact.open(model.folder)
        if state_of(artifact.weights_file) != model.states[model.weights]:
            raise IntegrityError(f"{artifact.weights_file.name} changed since it was hashed.", hint=AGAIN)
        config, layout, export = artifact.config, artifact.layout, artifact.recipe.export
        data = data_name(artifact.recipe)
        scales = None
        if export.static_scales:  # of the cache: measured when the artifact's own graph was built, and constants of it
            artifact.require_graph()
            scales = read_scales(artifact.file(MODEL), config)
        taps = build_decoder(config, layout, export, hooks_of(_CAPTURE, config), scales)
        self._tokenizer = artifact.tokenizer()
        self._session = TapSession(artifact, _CAPTURE, graph=located(taps, data))
        self.lens = Lens(artifact, located(build_lens(config, layout, export), data))

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def read(self, ids: Sequence[int]) -> Values:
        """Values by hook: [T, d_model], and [heads, T, T] of patterns."""
        return {hook: value[0] for hook, value in self._session.read(np.array([ids], np.int64)).items()}


def _boundaries(values: Values) -> list[str]:
    return [hook for hook in values if not hook.endswith(_PATTERN)]


def _patterns(values: Values) -> list[np.ndarray]:
    return [value.astype(np.float64) for hook, value in values.items() if hook.endswith(_PATTERN)]


def _add(seen: Seen, log: np.ndarray, ids: Sequence[int]) -> None:
    """Add one boundary, logarithms of probabilities [T, vocab]."""
    count = min(LIKELIEST, log.shape[-1])
    some = np.argpartition(log, -count, axis=-1)[:, -count:]
    some.sort(-1)  # of two equals the lower id comes first
    order = np.argsort(-np.take_along_axis(log, some, -1), axis=-1, kind="stable")
    top = np.take_along_axis(some, order, -1)
    seen.top.append(top.tolist())
    seen.p.append([_rounded(row) for row in np.exp(np.take_along_axis(log, top, -1))])
    follows = np.array(ids[1:], np.int64)[:, None]
    of = np.take_along_axis(log[:-1], follows, -1)
    seen.following.append(_rounded(np.exp(of[:, 0])))
    seen.rank.append((1 + (log[:-1] > of).sum(-1)).tolist())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log softmax [T, vocab]; `logits` is changed.

    Raises:
        NumericsError: one is NaN or infinite.
    """
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    if not np.isfinite(logits.sum(dtype=np.float64)):
        raise NumericsError("the logit lens holds a NaN or an infinity")
    return logits


def _divergence(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return KL(a || b) [T] of logarithms of probabilities [T, vocab]."""
    return np.asarray(np.maximum((np.exp(a) * (a - b)).sum(-1, dtype=np.float64), 0))


def _apart(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return the Jensen-Shannon divergence [heads] of patterns [heads, T, T], mean over the queries."""
    middle = np.maximum((p + q) / 2, _TINY)
    terms = p * np.log(np.maximum(p, _TINY) / middle) + q * np.log(np.maximum(q, _TINY) / middle)
    return np.asarray(np.maximum(terms.sum(-1).mean(-1) / 2, 0))


def _elsewhere(p: np.ndarray) -> np.ndarray:
    """Return what the heads [heads] give to other tokens than the first and the query's own, mean over the queries that
    have such."""
    if p.shape[-1] < 3:
        return np.zeros(len(p))
    others = 1 - p[..., 0] - np.diagonal(p, axis1=1, axis2=2)
    return np.asarray(np.maximum(others[:, 2:].mean(-1), 0))


def _triangle(pattern: np.ndarray) -> list[list[float]]:
    return [np.round(row[: i + 1], 5).tolist() for i, row in enumerate(pattern.astype(np.float64))]


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
