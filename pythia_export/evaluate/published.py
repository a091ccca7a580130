"""What EleutherAI published of the real models, zero-shot: reference facts to hold a measurement against.

`zero_shot.csv.gz` has 16 models (70m to 12b, with and without near-duplicates in their text) at 27 steps of training,
from `evals/pythia-v1/*/zero-shot` of github.com/EleutherAI/pythia; `pythia-1b-bf16` there is the hub's `pythia-1b`. The
harness of 2023 computed them in half precision, and tasks were revised since: a difference of a standard error or two
says nothing.
"""

from __future__ import annotations

import csv
import gzip
from functools import cache
from importlib.resources import files

Figure = tuple[float, float]  # value, standard error
LAST_STEP = 143000


def published(name: str, revision: str) -> dict[tuple[str, str], Figure]:
    """By task and metric (`acc`, `acc_norm`, `perplexity`), of a hub id such as `EleutherAI/pythia-160m` at `main` or
    `step1000`. Empty where nothing was published of it."""
    owner, _, model = name.partition("/")
    step = str(LAST_STEP) if revision == "main" else revision.removeprefix("step")
    return _table().get((model, step), {}) if owner == "EleutherAI" else {}


@cache
def _table() -> dict[tuple[str, str], dict[tuple[str, str], Figure]]:
    found: dict[tuple[str, str], dict[tuple[str, str], Figure]] = {}
    with files(__package__).joinpath("zero_shot.csv.gz").open("rb") as raw, gzip.open(raw, "rt") as rows:
        for row in csv.DictReader(rows):
            of_model = found.setdefault((row["model"], row["step"]), {})
            of_model[row["task"], row["metric"]] = float(row["value"]), float(row["stderr"])
    return found
