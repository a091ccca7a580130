"""Slow and obvious: what the fast code is held to."""

from __future__ import annotations

import numpy as np


def gptq_textbook(W, H, bits, group_size, symmetric, act_order, damp):
    """GPTQ in float64, a column at a time, re-inverting the Hessian of the free columns at each step (OBQ, eq. 3).

    Returns codes [out, in], scales [out, groups] and zero points [out, groups].
    """
    W, H = np.asarray(W).astype(np.float64), np.asarray(H).astype(np.float64)
    out, n = W.shape
    size = group_size if group_size > 0 else n
    dead = np.diag(H) == 0
    H[dead, dead] = 1
    W[:, dead] = 0
    diagonal = np.diag(H).copy()
    H = H + damp * diagonal.mean() * np.eye(n)
    order = list(np.argsort(-diagonal, kind="stable")) if act_order else list(range(n))
    groups = -(-n // size)
    scale, zero = np.zeros((out, groups)), np.zeros((out, groups))
    if act_order:
        for g in range(groups):
            scale[:, g], zero[:, g] = grid(W[:, g * size : (g + 1) * size], bits, symmetric)
    Q = np.zeros((out, n), int)
    free = list(order)
    for j in order:
        g = j // size
        if not act_order and j % size == 0:
            scale[:, g], zero[:, g] = grid(W[:, g * size : (g + 1) * size], bits, symmetric)
        inverse = np.linalg.inv(H[np.ix_(free, free)])
        Q[:, j] = np.clip(np.round(W[:, j] / scale[:, g] + zero[:, g]), 0, 2**bits - 1)
        error = W[:, j] - (Q[:, j] - zero[:, g]) * scale[:, g]
        W[:, free] -= np.outer(error / inverse[0, 0], inverse[0])
        free.remove(j)
    return Q, scale, zero


def grid(W, bits, symmetric):
    """Scale and zero point of each row, as a person would compute them."""
    scales, zeros = [], []
    for row in np.asarray(W, np.float64):
        high, low = max(row.max(), 0), min(row.min(), 0)
        if symmetric:
            scale, zero = 2 * max(high, -low) / (2**bits - 1), 2 ** (bits - 1)
        else:
            scale = (high - low) / (2**bits - 1)
            zero = np.clip(np.round(-low / scale), 0, 2**bits - 1) if scale else 0
        scales.append(scale or 1.0)
        zeros.append(zero)
    return np.array(scales), np.array(zeros)
