"""What `compare` found: several artifacts on one text, each beside the original, and each pair."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .parity import Clusters, Corpus, Mean, Share
from .record import Count, Figure, Record, Wide

COMPARISON_SCHEMA: Literal[1] = 1


class Contender(Record):
    """One artifact beside the baseline, on the same tokens."""

    name: str
    treatment: str
    """How its weights were rounded, in words."""
    made_by: str
    """`pythia-export`, or the tool that an imported artifact's weights are from."""
    bits_per_weight: Figure
    """Stored bits of a weight of the quantised linears, scales and zero points included."""
    bytes: Count
    """Size of its weights."""
    nll: Figure
    """Mean loss, nats per token."""
    ppl: Wide | None
    delta_nll: Mean
    """Its loss less the baseline's."""
    kld: Mean
    """KL(baseline || artifact), nats per token."""
    same_top: Share
    """Tokens where both find the same token likeliest."""


class Pair(Record):
    """One artifact less another, token by token."""

    name: str
    less: str
    delta_nll: Mean
    kld: Mean


class Comparison(Record):
    """What `compare --json` prints."""

    version: Annotated[Literal[1], Field(alias="schema")]  # COMPARISON_SCHEMA
    versions: dict[str, str]
    machine: str
    created: str
    """UTC."""
    corpus: Corpus
    """The text."""
    clusters: Clusters
    tokens: Count
    """Scored tokens."""
    baseline: Literal["original", "first"]
    """`first`: the first artifact took the original's place, and is no contender."""
    baseline_name: str
    baseline_nll: Figure
    baseline_ppl: Wide | None
    contenders: list[Contender]
    """As they were given."""
    pairs: list[Pair]
    """Each contender less each of those before it."""
