"""Logits that are NaN or infinite: found in two passes, and named by an error."""

from __future__ import annotations

import math

import numpy as np

from ..base.errors import NumericsError

_smallest, _largest = np.minimum.reduce, np.maximum.reduce  # without the detour of ndarray.min through Python


def all_finite(logits: np.ndarray) -> bool:
    """Whether no number is NaN or infinite."""
    return -math.inf < float(_smallest(logits, axis=None)) and float(_largest(logits, axis=None)) < math.inf


def require_finite(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return logits [B, K, V] as they are. `mask` [B, K] is 0 for padding, whose logits may be anything.

    Raises:
        NumericsError: a logit of a real token is NaN or infinite.
    """
    with np.errstate(all="ignore"):
        if math.isfinite(float(logits.sum())):  # one pass; a sum may overflow where no term did
            return logits
    bad = ~np.isfinite(logits) & (mask != 0)[:, :, None]
    if bad.any():
        row, at, token = np.argwhere(bad)[0]
        raise NumericsError(
            f"{bad.sum():,} of {logits.size:,} logits are not finite, the first that of token {token} at place {at} of "
            f"row {row}",
            hint="With dtype = 'float16' an activation may overflow: try 'float32'. Otherwise a weight is at fault.",
        )
    return logits
