"""Slow and obvious: what the fast code is held to."""

from __future__ import annotations

import numpy as np


def gptq_textbook(W, H, bits, group_size, symmetric, act_order, damp, clip):
    """GPTQ in float64, a column at a time, re-inverting the Hessian of the free columns at each step (OBQ, eq. 3).

    Returns codes [out, in], scales [out, groups] and zero points [out, groups].
    """
    W, H = np.array(W.numpy(), np.float64), np.array(H.numpy(), np.float64)
    out, n = W.shape
    size = group_size if group_size > 0 else n
    dead = np.diag(H) == 0
    H[dead, dead] = np.diag(H)[~dead].mean() if not dead.all() else 1
    W[:, dead] = 0
    diagonal = np.diag(H).copy()
    H = H + damp * diagonal.mean() * np.eye(n)
    order = list(np.argsort(-diagonal, kind="stable")) if act_order else list(range(n))
    # What is left of a column's error when all columns after it have made up for theirs: 1 / (inverse of those)_jj.
    importance = np.zeros(n)
    for place, j in enumerate(order):
        rest = order[place:]
        importance[j] = 1 / np.linalg.inv(H[np.ix_(rest, rest)])[0, 0]
    groups = -(-n // size)
    scale, zero = np.zeros((out, groups)), np.zeros((out, groups))

    def take_grid(g):
        columns = slice(g * size, (g + 1) * size)
        scale[:, g], zero[:, g] = grid(W[:, columns], bits, symmetric, importance[columns] if clip else None)

    if act_order:
        for g in range(groups):
            take_grid(g)
    Q = np.zeros((out, n), int)
    free = list(order)
    for j in order:
        g = j // size
        if not act_order and j % size == 0:
            take_grid(g)
        inverse = np.linalg.inv(H[np.ix_(free, free)])
        Q[:, j] = np.clip(np.round(W[:, j] / scale[:, g] + zero[:, g]), 0, 2**bits - 1)
        error = W[:, j] - (Q[:, j] - zero[:, g]) * scale[:, g]
        W[:, free] -= np.outer(error / inverse[0, 0], inverse[0])
        free.remove(j)
    return Q, scale, zero


def beam_textbook(W, H, scale, zero, bits, size, damp, width, apart=None, block=None):
    """Codes [out, in] that a beam of `width` finds with act-order, on the grids of `gptq_textbook`, a row at a time.

    A partial rounding costs what the free columns cannot make up for: its errors against the Schur complement of H.
    After every `block` columns those are given up that differ from the best in a code that is `apart` columns old.
    """
    W, H = np.array(W.numpy(), np.float64), np.array(H.numpy(), np.float64)
    out, n = W.shape
    order = list(np.argsort(-np.diag(H), kind="stable"))
    H = H + damp * np.diag(H).mean() * np.eye(n)
    best = np.zeros((out, n), int)
    for row in range(out):
        kept = [()]  # codes of the columns so far, in order
        for place, j in enumerate(order):
            taken, rest = order[:place], order[place:]
            made_up = np.linalg.solve(H[np.ix_(rest, rest)], H[np.ix_(rest, taken)])
            later = order[place + 1 :]
            schur = H[np.ix_(order[: place + 1], order[: place + 1])]
            if later:
                across = H[np.ix_(later, order[: place + 1])]
                schur = schur - across.T @ np.linalg.solve(H[np.ix_(later, later)], across)
            found = []
            for codes in kept:
                value = [(c - zero[row, i // size]) * scale[row, i // size] for c, i in zip(codes, taken, strict=True)]
                errors = W[row, taken] - np.array(value)
                wanted = (W[row, j] + (made_up @ errors)[0]) / scale[row, j // size] + zero[row, j // size]
                near = int(np.clip(np.round(wanted), 0, 2**bits - 1))
                for code in {near, int(np.clip(near + (1 if wanted > near else -1), 0, 2**bits - 1))}:
                    error = W[row, j] - (code - zero[row, j // size]) * scale[row, j // size]
                    all_errors = np.append(errors, error)
                    found.append((all_errors @ schur @ all_errors, (*codes, code)))
            kept = [codes for _, codes in sorted(found)[:width]]
            if apart is not None and (place + 1) % block == 0:
                old = max(0, place + 1 - apart)
                kept = [codes for codes in kept if codes[:old] == kept[0][:old]]
        best[row, order] = kept[0]
    return best


def grid(W, bits, symmetric, importance=None):
    """Scale and zero point of each row, as a person would compute them, or try them out one share after another."""
    scales, zeros = [], []
    for row in W:
        tried, least = [(1.0, 1)], np.inf
        if importance is not None and symmetric:  # -8 .. 7 steps of the scale, or -7 .. 8 where that is negative
            longer = -1 if row.max() > -row.min() else 1
            tried = [(share, sign) for share in np.linspace(1, 0.3, 11) for sign in (longer, -longer)]
        elif importance is not None:
            tried = [(share, 1) for share in np.linspace(1, 0.3, 21)]
        for share, sign in tried:
            high, low = max(row.max(), 0) * share, min(row.min(), 0) * share
            if symmetric:
                scale, zero = 2 * max(high, -low) / (2**bits - 1), 2 ** (bits - 1)
            else:
                scale = (high - low) / (2**bits - 1)
                zero = np.clip(np.round(-low / scale), 0, 2**bits - 1) if scale else 0
            scale = sign * float(np.float32(scale or 1.0))
            rounded = (np.clip(np.round(row / scale + zero), 0, 2**bits - 1) - zero) * scale
            cost = 0 if importance is None else np.sum(importance * (row - rounded) ** 2)
            if cost < least:
                least, best = cost, (scale, zero)
        scales.append(best[0])
        zeros.append(best[1])
    return np.array(scales), np.array(zeros)


def output_error(W, quantized, H):
    """Relative squared error of the outputs over the inputs behind H: ``tr(E H E^T) / tr(W H W^T)``."""
    W, H = W.double().numpy(), H.double().numpy()
    E = W - quantized.dequantize().double().numpy()
    return np.trace(E @ H @ E.T) / np.trace(W @ H @ W.T)


def relative(got: np.ndarray, expected: np.ndarray, mask: np.ndarray) -> float:
    seen = mask.astype(bool)
    return float(np.abs(got - expected)[seen].max() / np.abs(expected[seen]).max())
