"""How far the figures can be trusted: intervals that know that tokens of one document are not independent.

The estimate of every mean is the plain mean over tokens. Its error is clustered by document (Miller 2024,
arXiv:2411.00640, does so for language-model evaluations: naive errors come out several times too small). Documents may
be few and of unequal length, where the usual clustered error with a normal quantile is too small again. So:

- The variance is the bias-reduced CR2 (Bell and McCaffrey 2002; Pustejovsky and Tipton 2018, arXiv:1601.01981). For a
  mean of N tokens, with n_g tokens and residuals e in document g, it is ``sum_g (sum e)^2 / (1 - n_g/N) / N^2``;
  with documents of one length, the textbook's ``G/(G-1)``.
- The quantile is Student's t with Satterthwaite's degrees of freedom: G - 1 for documents of one length, less where a
  few long ones dominate.

That interval decides. Beside it stands that of a bootstrap which draws whole documents (Efron and Tibshirani 1993,
chapter 13, percentiles; ratio of sums, so that documents weigh by their tokens): it assumes no shape of the
distribution and follows a skewed one, but it is too short when documents are few (of 12 it holds the truth in about
90 % of trials where 95 % are promised, and the other in 95 %; `tests/unit/proof/test_statistics.py` shows both).

Both models are scored on the same tokens, so the difference is taken token by token before anything is averaged. All of
this depends on a document's number of tokens and sums alone: they are kept, and two artifacts can be compared later.

Text that is a single document gives no hint how documents differ. It is clustered by window, and says so: its interval
is about that text only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from ..model.likelihood import Floats
from ..records.parity import Bootstrap, Change, Clusters, Mean, Ratio, Scored, Share, Subset, Sums, Tails
from .metrics import TokenFigures, bits_per_byte

LARGEST = 1e300  # perplexity, or ratio of two, that is recorded: as a percent it is finite still
CONFIDENCE = 0.95  # two-sided: each bound alone holds with 97.5 %
REPLICATES = 2000
SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval. One cluster allows none: `se`, `dof`, `low` and `high` are then None."""

    value: float
    se: float | None
    dof: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Tokens:
    """What was found of each scored token, all [T]; `clusters` tells the documents apart."""

    nll_original: Floats
    nll_quantized: Floats
    kld: Floats
    same_top: NDArray[np.bool_]
    clusters: NDArray[np.int64]

    def only(self, which: NDArray[np.bool_]) -> Tokens:
        return Tokens(*(x[which] for x in vars(self).values()))


def summarise(
    figures: TokenFigures,
    bytes_per_token: float,
    subsets: Mapping[str, tuple[ArrayLike, float]] | None = None,
) -> Scored:
    """What quantisation cost on a text. A bound that does not exist, or is beyond float64, is None.

    `subsets` are names of parts of the text, each with the documents in it and its bytes a token.
    """
    by, clusters = "document", figures.clusters
    if not len(clusters):
        raise ValueError("no token was scored")
    tokens = Tokens(figures.nll_original, figures.nll_quantized, figures.kld, figures.same_top, clusters)
    parts = []
    for name, (documents, bytes_each) in (subsets or {}).items():
        of_name = np.isin(clusters, np.asarray(documents))
        if of_name.any():
            parts.append(Subset(name=name, **_figures(tokens.only(of_name), "document", bytes_each)))
    if len(np.unique(clusters)) == 1:
        by, tokens = "window", replace(tokens, clusters=figures.windows)
    return Scored(**_figures(tokens, by, bytes_per_token), subsets=parts, sums=sums(tokens))


def sums(tokens: Tokens) -> Sums:
    """One entry a cluster, in the order in which they are read: all that an interval depends on."""
    labels, first, index = np.unique(tokens.clusters, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    kept: dict[str, list[Any]] = {"tokens": np.bincount(index)[order].tolist()}
    for name in ("nll_original", "nll_quantized", "kld"):
        kept[name] = np.bincount(index, weights=getattr(tokens, name))[order].tolist()
    kept["same_top"] = np.bincount(index[tokens.same_top], minlength=len(labels))[order].tolist()
    return Sums(**kept)


def _figures(tokens: Tokens, by: str, bytes_per_token: float) -> dict[str, Any]:
    """Return the fields of a `Part`."""
    n, delta_sums = _by_cluster(tokens.nll_quantized - tokens.nll_original, tokens.clusters)
    _, kld_sums = _by_cluster(tokens.kld, tokens.clusters)
    delta, divergence = mean_of_clusters(n, delta_sums), mean_of_clusters(n, kld_sums)
    top = clustered_share(tokens.same_top, tokens.clusters)
    # Of the probability that the token which came was given.
    moved = np.exp(-tokens.nll_quantized) - np.exp(-tokens.nll_original)
    square = clustered_mean(moved**2, tokens.clusters)
    nll_original, nll_quantized = float(tokens.nll_original.mean()), float(tokens.nll_quantized.mean())
    return {
        "tokens": len(tokens.kld),
        "clusters": Clusters.model_validate({"by": by, "count": len(n)}),
        "nll_original": nll_original,
        "nll_quantized": nll_quantized,
        "ppl_original": _exp(nll_original),
        "ppl_quantized": _exp(nll_quantized),
        "ppl_ratio": Ratio(value=_exp(delta.value), low=_exp(delta.low), high=_exp(delta.high)),
        "delta_nll": mean_of(delta, _interval(bootstrap(n, delta_sums))),
        "kld": Tails(
            mean=divergence.value,
            se=divergence.se,
            dof=divergence.dof,
            low=None if divergence.low is None else max(0.0, divergence.low),
            high=divergence.high,
            bootstrap=_interval(bootstrap(n, kld_sums)),
            median=float(np.median(tokens.kld)),
            p90=float(np.quantile(tokens.kld, 0.9)),
            p99=float(np.quantile(tokens.kld, 0.99)),
            p999=float(np.quantile(tokens.kld, 0.999)),
            max=float(tokens.kld.max()),
        ),
        "same_top": Share(
            value=top.value,
            se=top.se,
            dof=top.dof,
            low=top.low,
            high=top.high,
            independent_tokens=None if top.se is None else _trials(top.value, top.se, len(tokens.kld)),
        ),
        "delta_p": Change(
            mean=float(moved.mean()),
            rms=math.sqrt(square.value),
            low=None if square.low is None else math.sqrt(max(0.0, square.low)),
            high=None if square.high is None else math.sqrt(square.high),
        ),
        "bits_per_byte_original": bits_per_byte(nll_original, bytes_per_token),
        "bits_per_byte_quantized": bits_per_byte(nll_quantized, bytes_per_token),
    }


def mean_of(found: Estimate, *second: Bootstrap | None) -> Mean:
    """Return an estimate as a record; `second` is the interval beside it, if one was asked for."""
    own = Mean(mean=found.value, se=found.se, dof=found.dof, low=found.low, high=found.high)
    return own.model_copy(update={"bootstrap": second[0]}) if second else own


def clustered_mean(values: ArrayLike, clusters: ArrayLike) -> Estimate:
    """Mean of values [T] with its error clustered by the labels [T]; Student's t interval."""
    return mean_of_clusters(*_by_cluster(np.asarray(values, np.float64), clusters))


def mean_of_clusters(n: ArrayLike, totals: ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """The same from each cluster's number of tokens and sum of values, both [G]."""
    sizes, held = np.asarray(n, np.float64), np.asarray(totals, np.float64)
    N = sizes.sum()
    mean = float(held.sum() / N)
    if len(sizes) == 1:
        return Estimate(mean, None, None, None, None)
    share = sizes / N
    residuals = held - sizes * mean
    se = math.sqrt(float((residuals**2 / (1 - share)).sum())) / float(N)
    dof = _degrees_of_freedom(share)
    low, high = t_interval(mean, se, dof, confidence)
    return Estimate(mean, se, dof, low, high)


def t_interval(value: float, se: float, dof: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    half = student_t(dof, confidence) * se
    return value - half, value + half


def bootstrap(
    n: ArrayLike, totals: ArrayLike, confidence: float = CONFIDENCE, relative_to: ArrayLike | None = None
) -> tuple[float, float] | None:
    """Percentile interval of sum(totals) / sum(n) over draws of whole clusters; None of a single one.

    With `relative_to`, other totals of the same clusters, of ``1 - sum(totals) / sum(relative_to)``: a share that was
    taken away, in which both sums move together.
    """
    top = np.asarray(totals, np.float64)
    below = np.asarray(n if relative_to is None else relative_to, np.float64)
    if len(top) == 1:
        return None
    rng, found = np.random.default_rng(SEED), []
    step = max(1, (1 << 22) // len(top))
    for start in range(0, REPLICATES, step):
        drawn = rng.multinomial(len(top), np.full(len(top), 1 / len(top)), min(step, REPLICATES - start))
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append((drawn @ top) / (drawn @ below))
    every = np.concatenate(found) if relative_to is None else 1 - np.concatenate(found)
    low, high = np.quantile(every, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def clustered_share(hits: ArrayLike, clusters: ArrayLike) -> Estimate:
    """Share of hits [T] bool, with Wilson's interval (1927), which stays inside 0..1.

    Wilson's interval assumes independent trials, and tokens of one document are not. It is widened: the number of
    trials is that of the independent tokens that would have the clustered error (so Korn and Graubard 1998, for Clopper
    and Pearson's interval). All hits or none leave that error unknown: tokens then count as independent.
    """
    x = np.asarray(hits, np.bool_)
    found = clustered_mean(x, clusters)
    if found.se is None or found.dof is None:
        return found
    low, high = wilson(found.value, _trials(found.value, found.se, len(x)), student_t(found.dof))
    return Estimate(found.value, found.se, found.dof, low, high)


def share_of_clusters(n: ArrayLike, hits: ArrayLike) -> Share:
    """Return the same from each cluster's number of tokens and of hits, both [G]."""
    found, tokens = mean_of_clusters(n, hits), float(np.sum(n))
    value = min(1.0, max(0.0, found.value))
    if found.se is None or found.dof is None:
        return Share(value=value, se=None, dof=None, low=None, high=None, independent_tokens=None)
    trials = min(tokens, _trials(value, found.se, int(tokens)))
    low, high = wilson(value, trials, student_t(found.dof))
    return Share(value=value, se=found.se, dof=found.dof, low=low, high=high, independent_tokens=trials)


def _trials(p: float, se: float, tokens: int) -> float:
    return min(float(tokens), p * (1 - p) / se**2) if se > 0 else float(tokens)


def _interval(ends: tuple[float, float] | None) -> Bootstrap | None:
    return None if ends is None else Bootstrap(low=ends[0], high=ends[1], replicates=REPLICATES, seed=SEED)


def wilson(p: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's score interval of a share p of n trials, at quantile z. n need not be whole."""
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return min(p, max(0.0, low)), max(p, min(1.0, high))  # p = 0 or 1 may miss itself by a rounding


def student_t(dof: float, confidence: float = CONFIDENCE) -> float:
    """The quantile of a two-sided interval; `dof` >= 1 need not be whole."""
    return float(stdtrit(dof, (1 + confidence) / 2))


def _degrees_of_freedom(share: Floats) -> float:
    """Satterthwaite's, of the CR2 variance of a mean whose clusters hold `share` [G] of the tokens each, under
    independent errors: ``tr(B)^2 / tr(B^2)``, B the covariance of the adjusted cluster residuals,
    ``B_gg = s_g`` and ``B_gh = -s_g s_h / sqrt((1 - s_g)(1 - s_h))``."""
    weight = share**2 / (1 - share)
    square = float((share**2).sum() + weight.sum() ** 2 - (weight**2).sum())
    return max(1.0, 1 / square)


def _by_cluster(x: NDArray[Any], clusters: ArrayLike) -> tuple[Floats, Floats]:
    """Size and sum of each cluster, both [G]."""
    labels = np.asarray(clusters)
    if x.ndim != 1 or labels.shape != x.shape or not len(x):
        raise ValueError(f"values are {list(x.shape)}, clusters {list(labels.shape)}; both must be [T], T > 0")
    _, index = np.unique(labels, return_inverse=True)
    return np.bincount(index).astype(np.float64), np.bincount(index, weights=x.astype(np.float64)).astype(np.float64)


def _exp(x: float | None) -> float | None:
    if x is None or x > math.log(LARGEST):
        return None
    return math.exp(x)
