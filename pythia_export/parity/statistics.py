"""How far the figures can be trusted: intervals that know that tokens of one document are not independent.

The estimate of every mean is the plain mean over tokens. Its error is clustered by document (Miller 2024,
arXiv:2411.00640, does so for language-model evaluations: naive errors come out several times too small). Documents may
be few and of unequal length, where the usual clustered error with a normal quantile is too small again. So:

- The variance is the bias-reduced CR2 (Bell and McCaffrey 2002; Pustejovsky and Tipton 2018, arXiv:1601.01981). For a
  mean of N tokens, with n_g tokens and residuals e in document g, it is ``sum_g (sum e)^2 / (1 - n_g/N) / N^2``;
  with documents of one length, the textbook's ``G/(G-1)``.
- The quantile is Student's t with Satterthwaite's degrees of freedom: G - 1 for documents of one length, less where a
  few long ones dominate.

A bootstrap over documents was not chosen: its percentile interval is too short when documents are few.
Both models are scored on the same tokens, so the difference is taken token by token before anything is averaged.

Text that is a single document gives no hint how documents differ. It is clustered by window, and says so: its interval
is about that text only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .metrics import Floats, TokenFigures, bits_per_byte

CONFIDENCE = 0.95  # two-sided: each bound alone holds with 97.5 %


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval. One cluster allows none: `se`, `low` and `high` are then None."""

    value: float
    se: float | None
    low: float | None
    high: float | None


def summarise(figures: TokenFigures, bytes_per_token: float) -> dict[str, Any]:
    """The section `cost` of parity.json. A bound that does not exist, or is beyond float64, is None."""
    original, quantized, kld = figures.nll_original, figures.nll_quantized, figures.kld
    if not len(original):
        raise ValueError("no token was scored")
    by, clusters = "document", figures.clusters
    if len(np.unique(clusters)) == 1:
        by, clusters = "window", figures.windows
    delta = clustered_mean(quantized - original, clusters)
    divergence = clustered_mean(kld, clusters)
    top = clustered_share(figures.same_top, clusters)
    nll_original, nll_quantized = float(original.mean()), float(quantized.mean())
    return {
        "tokens": len(original),
        "clusters": {"by": by, "count": len(np.unique(clusters))},
        "nll_original": nll_original,
        "nll_quantized": nll_quantized,
        "ppl_original": _exp(nll_original),
        "ppl_quantized": _exp(nll_quantized),
        "ppl_ratio": {"value": _exp(delta.value), "low": _exp(delta.low), "high": _exp(delta.high)},
        "delta_nll": {"mean": delta.value, "se": delta.se, "low": delta.low, "high": delta.high},
        "kld": {
            "mean": divergence.value,
            "se": divergence.se,
            "low": None if divergence.low is None else max(0.0, divergence.low),
            "high": divergence.high,
            "median": float(np.median(kld)),
            "p99": float(np.quantile(kld, 0.99)),
            "max": float(kld.max()),
        },
        "same_top": {"value": top.value, "low": top.low, "high": top.high},
        "bits_per_byte_original": bits_per_byte(nll_original, bytes_per_token),
        "bits_per_byte_quantized": bits_per_byte(nll_quantized, bytes_per_token),
    }


def clustered_mean(values: ArrayLike, clusters: ArrayLike) -> Estimate:
    """Mean of values [T] with its error clustered by the labels [T]; Student's t interval."""
    x = np.asarray(values, np.float64)
    n, totals = _by_cluster(x, clusters)
    mean = float(x.mean())
    if len(n) == 1:
        return Estimate(mean, None, None, None)
    share = n / n.sum()
    residuals = totals - n * mean
    se = math.sqrt(float((residuals**2 / (1 - share)).sum())) / len(x)
    half = student_t(_degrees_of_freedom(share)) * se
    return Estimate(mean, se, mean - half, mean + half)


def clustered_share(hits: ArrayLike, clusters: ArrayLike) -> Estimate:
    """Share of hits [T] bool, with Wilson's interval (1927), which stays inside 0..1.

    The number of trials is that of the independent tokens that would have the clustered error (so Korn and Graubard
    1998, for Clopper and Pearson's interval). All hits or none leave it unknown: tokens then count as independent.
    """
    x = np.asarray(hits, np.bool_)
    found, p, n = clustered_mean(x, clusters), float(x.mean()), float(len(x))
    if found.se is None:
        return found
    if found.se > 0:
        n = min(n, p * (1 - p) / found.se**2)
    low, high = wilson(p, n, student_t(_degrees_of_freedom(_by_cluster(x, clusters)[0] / len(x))))
    return Estimate(p, found.se, low, high)


def wilson(p: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's score interval of a share p of n trials, at quantile z. n need not be whole."""
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return min(p, max(0.0, low)), max(p, min(1.0, high))  # p = 0 or 1 may miss itself by a rounding


def student_t(dof: float, confidence: float = CONFIDENCE) -> float:
    """The quantile of a two-sided interval; `dof` >= 1 need not be whole.

    With t = sqrt(dof) tan(a), the density of the angle a is proportional to cos(a)^(dof-1): summed over a grid fine
    enough for six digits, in place of an incomplete beta function.
    """
    widest = min(math.pi / 2, 12 / math.sqrt(dof))  # beyond 12 standard deviations there is nothing left to sum
    angle = np.linspace(0, widest, 20_001)
    with np.errstate(divide="ignore"):
        density = np.exp((dof - 1) * np.log(np.cos(angle))) if dof > 1 else np.ones_like(angle)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(dof) * math.tan(float(np.interp(confidence, mass / mass[-1], angle)))


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
    if x is None or x > math.log(np.finfo(np.float64).max):
        return None
    return math.exp(x)
