"""Regression mode: one artifact against another on the same tokens, from what their parity.json kept.

Both were scored on the same text, so their losses are subtracted document by document before anything is averaged. An
interval depends on each document's sums alone, and those are in parity.json: the other artifact need not be there.

The gate `regression` holds the difference of the KL divergences from the original, and not that of the losses. The
divergence is the loss that is to be expected if text came as the original predicts; which token did come is averaged
out, so its error is many times smaller: of the int8 demo, on 65,408 tokens, 0.00001 nats where the loss has 0.0002.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..base.errors import IntegrityError, SourceError
from ..base.strict_json import shown
from ..records.manifest import Checkpoint
from ..records.parity import PARITY_SCHEMA, Against, Bootstrap, Corpus, Exported, Parity, Scored, Worst
from ..records.record import checked
from .statistics import bootstrap, mean_of, mean_of_clusters

_HINT = "Run `verify` on both with the same recipe text, number of tokens and version of pythia-export."


def comparable(raw: object, where: str) -> Parity:
    """Return parsed JSON as another artifact's proof, before anything is opened.

    Raises:
        SourceError: not a whole parity.json, or of another version of the schema.
    """
    if not isinstance(raw, Mapping) or raw.get("schema") != PARITY_SCHEMA:
        found = raw.get("schema") if isinstance(raw, Mapping) else raw
        raise SourceError(
            f"{where}: schema {shown(found)}; a parity.json of schema {PARITY_SCHEMA} was expected", hint=_HINT
        )
    try:
        return checked(Parity, raw, where)
    except IntegrityError as e:
        raise SourceError(f"{e}: not a whole parity.json", hint=_HINT) from e


def require_same(source: Checkpoint, corpus: Corpus, other: Parity) -> None:
    """Before the long part: sections of this proof, and the other's whole.

    Raises:
        SourceError: other text, or another checkpoint.
    """
    for what, a, b in (
        ("held-out text (SHA-256)", corpus.sha256, other.corpus.sha256),
        ("source checkpoint", source.commit, other.source.commit),
    ):
        if a != b:
            raise SourceError(f"the two artifacts cannot be compared: {what}: {b} there, {a} here", hint=_HINT)


def compare(cost: Scored, exported: Exported, other: Parity) -> Against:
    """Return the differences of loss, divergence and same likeliest token, this proof's sections less the other.

    Raises:
        SourceError: the documents of the text were cut otherwise.
    """
    mine, theirs = cost.sums, other.cost.sums
    if mine.tokens != theirs.tokens:
        raise SourceError("the two artifacts cannot be compared: tokens of each document: differ", hint=_HINT)
    n = np.asarray(mine.tokens, np.float64)

    def difference(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
        return np.asarray(a, np.float64) - np.asarray(b, np.float64)

    delta = difference(mine.nll_quantized, theirs.nll_quantized)
    ends = bootstrap(n, delta)
    here, there = _worst(exported), _worst(other.export)
    return Against(
        created=other.created,
        machine=other.machine,
        versions=other.versions,
        tokens=int(n.sum()),
        clusters=cost.clusters,
        delta_nll=mean_of(mean_of_clusters(n, delta), None if ends is None else Bootstrap(low=ends[0], high=ends[1])),
        kld=mean_of(mean_of_clusters(n, difference(mine.kld, theirs.kld))),
        same_top=mean_of(mean_of_clusters(n, difference(mine.same_top, theirs.same_top))),
        export=Worst(max_abs=here[0], decode_max_abs=here[1], other_max_abs=there[0], other_decode_max_abs=there[1]),
    )


def _worst(exported: Exported) -> tuple[float, float]:
    """Return the largest `max_abs` and the largest `decode_max_abs` of the gated runs."""
    gated = [run for run in exported.runs if run.gated]
    return max(run.max_abs for run in gated), max(run.decode_max_abs for run in gated)
