"""Do the features of a sparse autoencoder survive? The same autoencoder reads the original's and the artifact's value.

Of each token: which features are active in both, and what the autoencoder does not explain of each value. Sums by
document alone are kept; features are computed for as many tokens at a time as `FEATURES` allows, so that a wide
autoencoder takes no more memory than its own weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..base.errors import NumericsError, SourceError
from ..model.block import DENSE, DOWN, UP, normalise
from ..model.hooks import tap_of
from ..model.neox import QKV
from ..records import parity as records
from ..records.parity import Share
from .activations import Watched
from .autoencoder import Autoencoder, Loaded
from .statistics import mean_of, mean_of_clusters, share_of_clusters

FEATURES = 1 << 24  # in work at a time, of each side

_GIVEN = {"attn.q": QKV, "attn.k": QKV, "attn.v": QKV, "attn.out": DENSE, "resid_mid": DENSE, "mlp.pre": UP,
          "mlp.out": DOWN}  # fmt: skip
_READ = {"attn.z": DENSE, "mlp.post": DOWN}


def needed(of: Autoencoder) -> frozenset[str]:
    """Return the linears whose values an autoencoder's place is made of."""
    name = tap_of(of.hook)[0].name
    return frozenset(table[name] for table in (_GIVEN, _READ) if name in table)


def value_at(hook: str, head: int | None, block: Watched, x: Tensor, y: Tensor) -> Tensor:
    """Return the value of a hook [B, T, width], all heads in a row or one of them, from the block's last pass: x
    [B, T, hidden] went in and y came out."""
    name, config = tap_of(hook)[0].name, block.config
    match name:
        case "embed" | "resid_pre":
            return x
        case "resid_post":
            return y
        case "final":
            return normalise(y, config.layer_norm_eps)
        case "resid_mid":
            return x + block.gave[DENSE]
        case "attn.q" | "attn.k" | "attn.v":
            packed = block.gave[QKV].unflatten(-1, (config.num_heads, 3, config.head_dim))
            value: Tensor = packed[..., "qkv".index(name[-1]), :].flatten(-2)
        case _:
            value = block.read[_READ[name]] if name in _READ else block.gave[_GIVEN[name]]
    if head is None:
        return value
    one: Tensor = value.unflatten(-1, (config.num_heads, config.head_dim))[..., head, :]
    return one


class FeatureSums:
    """What one autoencoder found so far, of the original and of each side beside it."""

    def __init__(self, of: Autoencoder, sides: Sequence[str], clusters: int) -> None:
        self.of = of
        self._tokens = torch.zeros(clusters, dtype=torch.float64)
        self._original = _Values(of, clusters)
        self._sides = {name: (_Values(of, clusters), torch.zeros(clusters, dtype=torch.float64)) for name in sides}

    def add(self, loaded: Loaded, x: Tensor, others: Mapping[str, Tensor], labels: Tensor) -> None:
        """Add tokens x [N, d_in] of the original and those of the others, whose clusters are labels [N]."""
        step = max(1, FEATURES // self.of.d_sae)
        for part in (slice(i, i + step) for i in range(0, len(x), step)):
            at = labels[part]
            self._tokens += torch.bincount(at, minlength=len(self._tokens))
            active = self._original.add(loaded, x[part], at)
            for name, (values, both) in self._sides.items():
                theirs = values.add(loaded, others[name][part], at)
                both.index_add_(0, at, (active & theirs).sum(-1).double().cpu())

    def result(self, side: str) -> records.Features:
        """Return the figures of a side.

        Raises:
            NumericsError: a value is NaN or infinite.
            SourceError: no feature is ever active in the original.
        """
        of, (values, both) = self.of, self._sides[side]
        before, after = self._original.active.numpy(), values.active.numpy()
        tokens = self._tokens.numpy()
        if not before.any():
            raise SourceError(
                f"{of.folder}: none of its {of.d_sae:,} features is active in the original, on "
                f"{int(tokens.sum()):,} tokens",
                hint="Is it of this model, and does cfg.json name the place that it was trained on?",
            )
        return records.Features(
            name=of.name,
            sha256=of.sha256,
            architecture=of.architecture,
            hook=of.hook,
            head=of.head,
            features=of.d_sae,
            active_original=float(before.sum() / tokens.sum()),
            active=float(after.sum() / tokens.sum()),
            survived=_share(before, both.numpy()),
            inherited=_share(after, both.numpy()) if after.any() else None,
            unexplained_original=self._original.unexplained(tokens, of),
            unexplained=values.unexplained(tokens, of),
        )

    def counts(self, side: str) -> tuple[np.ndarray, np.ndarray]:
        """Return how many features were active in the original, and how many of those in the side too; both [G]."""
        return self._original.active.numpy(), self._sides[side][1].numpy()


class _Values:
    """Sums by cluster of one side's values: active features, squared errors, and what a variance needs."""

    def __init__(self, of: Autoencoder, clusters: int) -> None:
        self.active, self._error, self._square = (torch.zeros(clusters, dtype=torch.float64) for _ in range(3))
        self._sum = torch.zeros(clusters, of.d_in, dtype=torch.float64)

    def add(self, loaded: Loaded, x: Tensor, labels: Tensor) -> Tensor:
        """Add tokens x [N, d_in]; return which features are active in each, [N, d_sae]."""
        features = loaded.encode(x)
        error = (x - loaded.decode(features, x)).double().square().sum(-1)
        active, wide = features > 0, x.double().cpu()
        self.active.index_add_(0, labels, active.sum(-1).double().cpu())
        self._error.index_add_(0, labels, error.cpu())
        self._square.index_add_(0, labels, wide.square().sum(-1))
        self._sum.index_add_(0, labels, wide)
        return active

    def unexplained(self, tokens: np.ndarray, of: Autoencoder) -> records.Mean:
        """Return the share of the variance that is not explained, a ratio of sums over clusters; tokens [G]."""
        error, square, total = self._error.numpy(), self._square.numpy(), self._sum.numpy()
        if not (np.isfinite(error).all() and np.isfinite(square).all()):
            raise NumericsError(f"{of.folder}: at {of.hook} a value, or what is given back of it, is not finite")
        mean = total.sum(0) / tokens.sum()
        variance = np.maximum(0, square - 2 * total @ mean + tokens * (mean @ mean))
        some = variance > 0
        return mean_of(mean_of_clusters(variance[some], error[some]))


def pooled(found: Sequence[FeatureSums], side: str) -> Share | None:
    """Return the share of active features that survive, of all autoencoders together; None of none."""
    if not found:
        return None
    before, both = (sum(counts) for counts in zip(*(one.counts(side) for one in found), strict=True))
    return _share(np.asarray(before), np.asarray(both))


def _share(n: np.ndarray, hits: np.ndarray) -> Share:
    some = n > 0
    return share_of_clusters(n[some], hits[some])
