"""Tables as a sweep writes them, drawn from a known law: what the report and the fit are tried on."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pythia_export.model import suite
from pythia_export.recipe import Quantize
from pythia_export.sweep.jobs import label
from pythia_export.sweep.table import COLUMNS, MARK, SUBSET_COLUMNS

LAW = {"k": 0.017, "β": 0.5251, "α": 0.2261, "γ": 5.4967}
STEPS = (0, 1, 8, 64, 512, 2000, 8000, 32000, 64000, 100000, 143000)
SUBSETS = ("Pile-CC", "Github", "ArXiv", "Wikipedia (en)")
# One process's factor on the cost of a method.
TIMES = {"gptq": 1.0, "rtn": 2.5}


def sweep(
    models=("70m", "160m", "410m", "1b"), steps=STEPS, bits=(2, 3, 4), groups=(-1,), methods=("gptq",), law=LAW,
    tau=0.1, noise=2e-4, by="training_tokens", subsets=SUBSETS, seed=0,
) -> tuple[pa.Table, pa.Table]:  # fmt: skip
    """by: what the law's D is, `learning_rate` where tokens are not the cause. noise: nats, of a cost."""
    random = np.random.default_rng(seed)
    made = {(b, g, m): Quantize(bits=b, group_size=g, method=m) for m in methods for g in groups for b in bits}
    labels = {key: label(quantize) for key, quantize in made.items()}
    plain = {key: quantize.model_dump() for key, quantize in made.items()}
    rows, parts = [], []
    for name in models:
        pythia = suite.named(name)
        for step in steps:
            revision = f"step{step}"
            tokens, rate = pythia.tokens(revision), pythia.learning_rate(revision)
            factor = {"training_tokens": tokens, "learning_rate": 1e15 * (rate or 0)}[by]
            for (b, g, m), words in labels.items():
                true = law["k"] * factor ** law["β"] / (pythia.non_embedding_parameters ** law["α"] * b ** law["γ"])
                true *= TIMES[m] * (0.7 if g > 0 else 1) * np.exp(tau * random.standard_normal())
                cost = _cost(true, noise, random, 32704)
                key = f"{len(rows):016x}"
                quantize = plain[b, g, m]
                rows.append(
                    {
                        "key": key, "name": pythia.name, "size": pythia.size, "family": pythia.family,
                        "data": pythia.data, "seed": _seed(pythia.name), "step": step, "training_tokens": tokens,
                        "learning_rate": rate, "parameters": pythia.config.parameters,
                        "non_embedding_parameters": pythia.non_embedding_parameters, "revision": revision,
                        "commit": f"{step:040x}", "quantization": words, "bits_per_weight": b + 0.25,
                        "expected_cost": true, "residual_error": 0.01, "seconds_share": 1.0, "seconds_quantize": 2.0,
                        "seconds_score": 1.0, "peak_memory_bytes": 10**9, "threads": 2, "attempt": 1,
                        "machine": "a machine, 2 cores", "when": "2026-11-26T02:06:16Z", "torch": "2.13.0",
                        "pythia_export": "0.1.0", "calibration": "c" * 64, "verify": "e" * 64,
                    }
                    | {n: quantize[n] for n in quantize if n in COLUMNS and n != "bits_per_weight"}
                    | {f"head_{n}": quantize["head"][n] for n in ("method", "bits", "group_size")}
                    | cost
                )  # fmt: skip
                for i, subset in enumerate(subsets):
                    part = _cost(true * (0.6 + 0.3 * i), 2 * noise, random, 8000)
                    parts.append({"key": key, "subset": subset} | part)
    return table(rows, COLUMNS), table(parts, SUBSET_COLUMNS)


def table(rows, columns) -> pa.Table:
    schema = pa.schema(list(columns.items()), metadata={MARK: b"1"})
    return pa.Table.from_pylist(rows, schema=schema)


def _seed(name: str) -> int | None:
    _, found, number = name.partition("seed")
    return int(number) if found else None


def _cost(true: float, noise: float, random: np.random.Generator, tokens: int) -> dict:
    se = noise * (1 + 0.1 * random.random()) + 0.02 * true
    delta = float(true + se * random.standard_normal())
    kld = max(float(0.8 * true + 0.1 * se * random.standard_normal()), 1e-9)
    nll = 2.5
    return {
        "tokens": tokens, "clusters": 40, "clustered_by": "document", "nll_original": nll, "nll_quantized": nll + delta,
        "ppl_original": 12.18, "ppl_quantized": 12.18 * float(np.exp(min(delta, 20))),
        "delta_nll": delta, "delta_nll_se": se, "delta_nll_low": delta - 2 * se, "delta_nll_high": delta + 2 * se,
        "kld": kld, "kld_se": 0.1 * kld, "kld_low": 0.8 * kld, "kld_high": 1.2 * kld, "kld_p99": 5 * kld,
        "same_top": 0.9, "same_top_se": 0.01, "same_top_low": 0.88, "same_top_high": 0.92,
        "bits_per_byte_original": 1.1, "bits_per_byte_quantized": 1.1 + delta / 3,
    }  # fmt: skip
