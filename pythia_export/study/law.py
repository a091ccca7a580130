"""The law dNLL = k D^beta / (N^alpha P^gamma), fitted to what was measured, noise and negative costs included.

D training tokens, N non-embedding parameters, P bits of the rounded linears, dNLL in nats a token. The published
constants (Ouyang et al., Low-Bit Quantization Favors Undertrained LLMs, arXiv 2411.17691) are of these units: 300e9
tokens, 18.9e6 parameters and 4 bits give 0.201 nats.

A cost is measured with an error that does not shrink with it, so that small ones are as often below zero as noise
wants. Least squares on log(dNLL) would have to leave those out, and with them half of the rows near zero: it would
flatten the curve. Here the measured cost is that of the law, times a factor that the law does not know, plus the noise
of measuring:

    y = mu exp(eta) + epsilon,   mu = k D^beta / (N^alpha P^gamma),   sd(eta) = tau,   sd(epsilon) = se of the row

(Rocke and Durbin, A Model for Measurement Error for Gene Expression Arrays, J. Comput. Biol. 8, 2001). The generalised
logarithm makes its variance one and the same for all rows, whatever their size:

    h(y) = asinh(tau y / se) / tau        ~ log(y) / tau far above the noise,  ~ y / se within it

(Durbin, Hardin, Hawkins and Rocke, Bioinformatics 18 suppl. 1, 2002; Huber et al., ibid.). Both sides of the law are
transformed (Carroll and Ruppert, Biometrika 71, 1984), their difference r is minimised in Huber's loss, so that a few
broken checkpoints do not bend the curve, and tau is the value at which r has a robust spread of 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import brentq

from .rows import Array, Floats, Rows, joined

HUBER = 1.345  # 95 % efficient where all is normal
TAU_RANGE = (0.01, 2.0)
LEAST_SE = 1e-7  # nats; float32 resolves no finer
BOOTSTRAPS = 400
FEWEST_CHECKPOINTS = 8  # below that a bootstrap says little
FOLDS = 5
SEED = 0


@dataclass(frozen=True)
class Factor:
    """sign: how its exponent stands in the law. letter: of the exponent."""

    column: str
    letter: str
    sign: int
    word: str


TOKENS = Factor("training_tokens", "β", 1, "training tokens")
PARAMETERS = Factor("non_embedding_parameters", "α", -1, "parameters")
BITS = Factor("bits", "γ", -1, "bits")
RATE = Factor("learning_rate", "λ", 1, "learning rate")
LAW = (TOKENS, PARAMETERS, BITS)

PUBLISHED = {"k": 0.017, "β": 0.5251, "α": 0.2261, "γ": 5.4967}


def published(tokens: Array, parameters: Array, bits: Array) -> Floats:
    """Nats a token."""
    k, beta, alpha, gamma = PUBLISHED.values()
    return np.asarray(k * tokens**beta / (parameters**alpha * bits**gamma), dtype=np.float64)


@dataclass(frozen=True)
class Estimate:
    """low, high: of 95 %, None where there are too few checkpoints to resample."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Fit:
    """constants: `k` and the exponents that the data identifies, by their letters. unidentified: the others, and why.

    left_out: why rows were, and how many. tau: sd of the logarithm of what the law misses. centre: the factors at the
    middle of the rows (geometric mean), at_centre: the law there. residuals: log(measured / law) by the generalised
    logarithm, of `rows`; fitted: the law there.
    """

    constants: dict[str, Estimate]
    unidentified: dict[str, str]
    left_out: dict[str, int]
    checkpoints: int
    tau: float
    explained: float
    centre: dict[str, float]
    at_centre: Estimate
    rows: Rows
    fitted: Floats
    residuals: Floats


@dataclass(frozen=True)
class NoFit:
    why: str
    left_out: dict[str, int] = field(default_factory=dict)


def fit(rows: Rows, factors: Sequence[Factor] = LAW, bootstraps: int = BOOTSTRAPS) -> Fit | NoFit:
    """Fit the law to rows that share a setting. Deterministic."""
    usable, left_out = _usable(rows, factors)
    if not len(usable):
        return NoFit("no row has a cost with a standard error and all that the law asks for", left_out)
    kept, unidentified = identified(usable, factors)
    y, se = usable["delta_nll"], np.maximum(usable["delta_nll_se"], LEAST_SE)
    need = len(kept) + 3
    if len(usable) < need:
        return NoFit(f"{len(usable)} rows are too few for {len(kept) + 1} constants", left_out)
    if (clear := int((y > 2 * se).sum())) < need:
        return NoFit(
            f"the cost of {clear} of {len(usable)} rows is clear of noise: too few for {len(kept) + 1} constants. "
            "More held-out text or fewer bits would show more",
            left_out,
        )
    X, centre = _design(usable, kept)
    theta, tau = _estimate(X, y, se)
    drawn = _bootstrap(X, y, se, tau, theta, usable["checkpoint"], bootstraps)
    constants = {"k": _interval(np.exp(_origin(theta, centre)), [np.exp(_origin(t, centre)) for t in drawn])}
    for i, factor in enumerate(kept, 1):
        constants[factor.letter] = _interval(factor.sign * theta[i], [factor.sign * t[i] for t in drawn])
    fitted = np.exp(_log_law(X, theta))
    residuals = tau * _residual(y, fitted, se, tau)
    return Fit(
        constants, unidentified, left_out, usable.distinct("checkpoint"), tau, _explained(residuals, y, se, tau),
        {f.column: float(np.exp(c)) for f, c in zip(kept, centre, strict=True)},
        _interval(np.exp(theta[0]), [np.exp(t[0]) for t in drawn]), usable, fitted, residuals,
    )  # fmt: skip


def _usable(rows: Rows, factors: Sequence[Factor]) -> tuple[Rows, dict[str, int]]:
    """Rows of which the law can be asked; a negative cost is no reason to leave one out."""
    left_out: dict[str, int] = {}
    checks = [
        ("nothing was rounded", rows["method"] != "none"),
        ("the cost is not known", np.isfinite(rows["delta_nll"])),
        ("the cost has no standard error", np.isfinite(rows["delta_nll_se"])),
    ]
    for factor in factors:
        values = rows[factor.column]
        if np.isfinite(values).any():  # of none: it is not identified, and the others may be
            checks.append((f"the {factor.word} of the checkpoint are not known".replace("rate of the checkpoint are",
                           "rate is"), np.isfinite(values)))  # fmt: skip
            checks.append((f"{factor.word}: 0, of which the law knows no logarithm", ~(values <= 0)))
    keep = np.ones(len(rows), dtype=bool)
    for why, mask in checks:
        if n := int((keep & ~mask).sum()):
            left_out[why] = n
        keep &= mask
    return rows.where(keep), left_out


def identified(rows: Rows, factors: Sequence[Factor]) -> tuple[list[Factor], dict[str, str]]:
    """The factors that vary, and not only together with others; of the rest, why not."""
    kept: list[Factor] = []
    why: dict[str, str] = {}
    for factor in factors:
        values = rows[factor.column]
        if not np.isfinite(values).all():
            why[factor.letter] = f"the {factor.word} are not known".replace("rate are", "rate is")
        elif np.ptp(np.log(values)) < 1e-6:
            one = {"bits": "every row has the same bits", "training_tokens": "every row has the same training tokens",
                   "non_embedding_parameters": "every row has the same number of parameters"}  # fmt: skip
            why[factor.letter] = one.get(factor.column, "every row has the same learning rate")
        else:
            others = np.column_stack([np.ones(len(rows))] + [np.log(rows[f.column]) for f in kept])
            own = np.log(values)
            rest = own - others @ np.linalg.lstsq(others, own, rcond=None)[0]
            if kept and rest.std() < 1e-3 * own.std():
                why[factor.letter] = f"the {factor.word} vary only together with {joined([f.word for f in kept])}"
            else:
                kept.append(factor)
    return kept, why


def _design(rows: Rows, factors: Sequence[Factor]) -> tuple[Floats, Floats]:
    """Ones and the centred logarithms, [rows, 1 + factors]; and their centres."""
    logs = np.column_stack([np.log(rows[f.column]) for f in factors]) if factors else np.empty((len(rows), 0))
    centre = logs.mean(axis=0)
    return np.column_stack([np.ones(len(rows)), logs - centre]), centre


def _origin(theta: Floats, centre: Floats) -> float:
    """log k, from the constant at the centre."""
    return float(theta[0] - theta[1:] @ centre)


def _log_law(X: Floats, theta: Floats) -> Floats:
    return np.clip(X @ theta, -60.0, 60.0)


def _residual(y: Floats, mu: Floats, se: Floats, tau: float) -> Floats:
    """Return residuals; their standard deviation is 1 if tau is right."""
    return np.asarray((np.arcsinh(tau * y / se) - np.arcsinh(tau * mu / se)) / tau)


def _estimate(X: Floats, y: Floats, se: Floats) -> tuple[Floats, float]:
    """Constants and tau, in turns."""
    theta = _start(X, y, se)
    tau = 0.3
    for _ in range(30):
        theta = solve(X, y, se, tau, theta)
        mu, before = np.exp(_log_law(X, theta)), tau
        tau = _spread(y, mu, se, len(y) - X.shape[1])
        if abs(tau - before) < 1e-3 * tau:
            break
    return solve(X, y, se, tau, theta), tau


def _spread(y: Floats, mu: Floats, se: Floats, freedom: int) -> float:
    """The tau at which r has a median absolute value of 0.6745, as of a standard normal. Falls with tau: one root."""
    unit = 0.6745 * float(np.sqrt(freedom / len(y)))

    def excess(tau: float) -> float:
        return float(np.median(np.abs(_residual(y, mu, se, tau)))) - unit

    least, most = TAU_RANGE
    if excess(least) <= 0:
        return least
    return most if excess(most) >= 0 else float(brentq(excess, least, most, xtol=1e-5))


def solve(
    X: Floats, y: Floats, se: Floats, tau: float, theta: Floats, weights: Floats | None = None, steps: int = 60
) -> Floats:
    """Least Huber loss of the residuals: Gauss-Newton steps, damped as Levenberg and Marquardt do."""
    w = np.ones(len(y)) if weights is None else weights
    scaled, damping = np.arcsinh(tau * y / se) / tau, 1e-4

    def look(t: Floats) -> tuple[float, Floats, Floats]:
        mu = np.exp(_log_law(X, t)) / se
        r = scaled - np.arcsinh(tau * mu) / tau
        return float(w @ _huber(r)), r, mu

    loss, r, mu = look(theta)
    for _ in range(steps):
        J = X * (mu / np.sqrt(1 + (tau * mu) ** 2))[:, None]
        robust = w * np.minimum(1.0, HUBER / np.maximum(np.abs(r), 1e-12))
        H, g = J.T @ (J * robust[:, None]), J.T @ (robust * r)
        for _ in range(8):
            step = np.linalg.lstsq(H + damping * np.diag(np.diag(H) + 1e-12), g, rcond=None)[0]
            new_loss, new_r, new_mu = look(theta + step)
            if new_loss <= loss:
                break
            damping *= 10
        else:
            return theta
        done = loss - new_loss <= 1e-9 * (loss + 1e-12)
        theta, loss, r, mu, damping = theta + step, new_loss, new_r, new_mu, max(damping / 10, 1e-9)
        if done:
            break
    return theta


def _huber(r: Floats) -> Floats:
    size = np.abs(r)
    return np.asarray(np.where(size <= HUBER, 0.5 * r * r, HUBER * (size - 0.5 * HUBER)))


def _bootstrap(
    X: Floats, y: Floats, se: Floats, tau: float, theta: Floats, clusters: Array, times: int
) -> list[Floats]:
    """Fits to checkpoints drawn with replacement, all rows of each; from the estimate on few steps suffice."""
    names, of = np.unique(clusters.astype(str), return_inverse=True)
    if len(names) < FEWEST_CHECKPOINTS:
        return []
    random, found = np.random.default_rng(SEED), []
    for _ in range(times):
        weights = np.bincount(random.integers(0, len(names), len(names)), minlength=len(names))[of].astype(np.float64)
        drawn = weights > 0
        if np.linalg.matrix_rank(X[drawn]) == X.shape[1]:
            found.append(solve(X[drawn], y[drawn], se[drawn], tau, theta, weights[drawn], steps=6))
    return found


def _interval(value: float, drawn: list[float]) -> Estimate:
    if not drawn:
        return Estimate(float(value), None, None)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))


def _explained(residuals: Floats, y: Floats, se: Floats, tau: float) -> float:
    """R^2 on the generalised logarithm's scale."""
    total = np.arcsinh(tau * y / se)
    spread = float(((total - total.mean()) ** 2).sum())
    return 1 - float((residuals**2).sum()) / spread if spread > 0 else 0.0


@dataclass(frozen=True)
class Compared:
    """What tokens, the learning rate and both explain of the variance that parameters and bits leave, on the scale of
    the generalised logarithm: on the rows fitted, and on rows held out. held_out: what a fold was made of.

    correlation: of the ranks of tokens and learning rate over the checkpoints.
    """

    fitted: dict[str, float]
    predicted: dict[str, float]
    exponents: dict[str, dict[str, float]]
    held_out: str
    correlation: float
    rows: int


def compare(rows: Rows) -> Compared | NoFit:
    """Tokens against learning rate, on the same rows."""
    usable, left_out = _usable(rows, (*LAW, RATE))
    if not len(usable) or not np.isfinite(usable["learning_rate"]).all():
        return NoFit("the learning rates are not known", left_out)
    for factor in (TOKENS, RATE):
        if factor.letter in (why := identified(usable, (factor,))[1]):
            return NoFit(why[factor.letter], left_out)
    rest, _ = identified(usable, (PARAMETERS, BITS))
    y, se = usable["delta_nll"], np.maximum(usable["delta_nll_se"], LEAST_SE)
    if (y > 2 * se).sum() < len(rest) + 5:
        return NoFit("too few rows are clear of noise", left_out)
    _, tau = _estimate(_design(usable, identified(usable, (*rest, TOKENS))[0])[0], y, se)
    folds, held_out = _folds(usable)
    choices = {"none": [], "tokens": [TOKENS], "rate": [RATE], "both": [TOKENS, RATE]}
    errors: dict[str, tuple[float, float]] = {}
    exponents: dict[str, dict[str, float]] = {}
    for name, factors in choices.items():
        kept, _ = identified(usable, (*rest, *factors))
        X, _ = _design(usable, kept)
        theta = solve(X, y, se, tau, _start(X, y, se))
        exponents[name] = {f.letter: float(f.sign * t) for f, t in zip(kept, theta[1:], strict=True)}
        fitted = _residual(y, np.exp(_log_law(X, theta)), se, tau)
        predicted = np.zeros(len(y))
        for fold in range(FOLDS):
            out = folds == fold
            if not out.any() or out.all():
                return NoFit("too few checkpoints to hold some out", left_out)
            theta = solve(X[~out], y[~out], se[~out], tau, _start(X[~out], y[~out], se[~out]))
            predicted[out] = _residual(y[out], np.exp(_log_law(X[out], theta)), se[out], tau)
        errors[name] = float((fitted**2).sum()), float((predicted**2).sum())
    base = errors["none"]
    _, first = np.unique(usable["checkpoint"].astype(str), return_index=True)
    return Compared(
        {name: 1 - error[0] / base[0] for name, error in errors.items() if name != "none"},
        {name: 1 - error[1] / base[1] for name, error in errors.items() if name != "none"},
        exponents, held_out, rank_correlation(usable["training_tokens"][first], usable["learning_rate"][first]), len(y),
    )  # fmt: skip


def _start(X: Floats, y: Floats, se: Floats) -> Floats:
    return np.asarray(np.linalg.lstsq(X, np.log(np.maximum(y, se)), rcond=None)[0])


def _folds(rows: Rows) -> tuple[Array, str]:
    """Return the fold of each row, and what a fold is made of: whole runs if there are enough, else checkpoints."""
    by, word = ("name", "models") if rows.distinct("name") >= 2 * FOLDS else ("checkpoint", "checkpoints")
    names, of = np.unique(rows[by].astype(str), return_inverse=True)
    order = np.random.default_rng(SEED).permutation(len(names))
    return order[of] % FOLDS, word


def rank_correlation(a: Floats, b: Floats) -> float:
    """Spearman's."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic) if len(a) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0 else float("nan")
