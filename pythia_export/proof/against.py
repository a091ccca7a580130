"""Regression mode: one artifact against another on the same tokens, from what their parity.json kept.

Both were scored on the same text, so their losses are subtracted document by document before anything is averaged. An
interval depends on each document's sums alone, and those are in parity.json: the other artifact need not be there.

The gate `regression` holds the difference of the KL divergences from the original, and not that of the losses. The
divergence is the loss that is to be expected if text came as the original predicts; which token did come is averaged
out, so its error is many times smaller: of the int8 demo, on 65,408 tokens, 0.00001 nats where the loss has 0.0002.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..base.errors import IntegrityError, SourceError
from ..base.strict_json import shown
from ..records.parity import PARITY_SCHEMA as SCHEMA
from ..records.parity import Parity
from ..records.record import checked
from .statistics import bootstrap, mean_json, mean_of_clusters

_HINT = "Run `verify` on both with the same recipe text, number of tokens and version of pythia-export."
Json = Mapping[str, Any]


def check_comparable(other: Json, where: str) -> None:
    """Before anything is opened.

    Raises:
        SourceError: not a whole parity.json, or of another version of the schema.
    """
    if not isinstance(other, Mapping) or other.get("schema") != SCHEMA:
        found = other.get("schema") if isinstance(other, Mapping) else other
        raise SourceError(f"{where}: schema {shown(found)}; a parity.json of schema {SCHEMA} was expected", hint=_HINT)
    try:
        checked(Parity, other, where)
    except IntegrityError as e:
        raise SourceError(f"{e}: not a whole parity.json", hint=_HINT) from e


def require_same(source: Json, corpus: Json, other: Json) -> None:
    """Before the long part: sections of this proof, and the other's whole.

    Raises:
        SourceError: other text, or another checkpoint.
    """
    for what, a, b in (
        ("held-out text (SHA-256)", corpus["sha256"], other["corpus"]["sha256"]),
        ("source checkpoint", source["commit"], other["source"]["commit"]),
    ):
        if a != b:
            raise SourceError(f"the two artifacts cannot be compared: {what}: {b} there, {a} here", hint=_HINT)


def compare(this: Json, other: Json) -> dict[str, Any]:
    """The section `against`: differences, this less the other, of loss, divergence and same likeliest token.

    Raises:
        SourceError: the documents of the text were cut otherwise.
    """
    if this["cost"]["sums"]["tokens"] != other["cost"]["sums"]["tokens"]:
        raise SourceError("the two artifacts cannot be compared: tokens of each document: differ", hint=_HINT)
    mine, theirs = this["cost"]["sums"], other["cost"]["sums"]
    n = np.asarray(mine["tokens"], np.float64)

    def difference(name: str) -> np.ndarray:
        return np.asarray(mine[name], np.float64) - np.asarray(theirs[name], np.float64)

    delta = difference("nll_quantized")
    ends = bootstrap(n, delta)
    return {
        "created": other.get("created"),
        "machine": other.get("machine"),
        "versions": other.get("versions"),
        "tokens": int(n.sum()),
        "clusters": this["cost"]["clusters"],
        "delta_nll": mean_json(mean_of_clusters(n, delta))
        | {"bootstrap": None if ends is None else {"low": ends[0], "high": ends[1]}},
        "kld": mean_json(mean_of_clusters(n, difference("kld"))),
        "same_top": mean_json(mean_of_clusters(n, difference("same_top"))),
        "export": _worst(this) | {f"other_{key}": value for key, value in _worst(other).items()},
    }


def _worst(parity: Json) -> dict[str, float]:
    gated = [run for run in parity["export"]["runs"] if run["gated"]]
    return {key: max(run[key] for run in gated) for key in ("max_abs", "decode_max_abs")}
