"""The verdict in Markdown, for the page that a CI system shows of a job."""

from __future__ import annotations

from collections.abc import Iterator

from ..records.parity import Against, Parity
from . import words
from .markdown import parity_tables, plain, table

_MARKS = {"Passed": "✅", "Failed": "❌", "Inconclusive": "⚠️", "Measured": "📏"}


def summary(parity: Parity) -> str:
    """Verdict and gates first, what to look at, the comparison; then both questions' figures, folded away."""
    return "\n\n".join(_parts(parity)) + "\n"


def _parts(parity: Parity) -> Iterator[str]:
    word, scope = words.verdict(parity)
    source = parity.source
    yield f"## {_MARKS[word]} {plain(source.name)} at {plain(source.revision)}: {word.lower()}, {plain(scope)}"
    yield f"{words.export_sentence(parity)} {words.cost_sentence(parity)}"
    if parity.gates:
        yield table(
            ["Gate", "Measured", "Held to the limit", "Limit", ""],
            [
                [
                    f"`{gate.name}`",
                    words.gate_value(gate.name, gate.value),
                    words.gate_value(gate.name, gate.bound),
                    f"{words.sign(gate.name)} {words.gate_value(gate.name, gate.limit)}",
                    words.outcome(gate) if gate.passed else f"**{words.outcome(gate)}**",
                ]
                for gate in parity.gates
            ],
        )
    for line in (words.look_in_graph(parity), words.look_in_weights(parity)):
        if line:
            yield f"> {plain(line)}"
    if parity.against:
        yield from _against(parity.against)
    yield "<details><summary>All figures</summary>"
    yield from parity_tables(parity)
    yield f"Held-out text: {plain(parity.corpus.source)}, SHA-256 `{parity.corpus.sha256}`."
    yield "</details>"


def _against(against: Against) -> Iterator[str]:
    yield f"Against the other artifact, on the same {against.tokens:,} tokens:"
    rows = []
    for label, found, show in (
        ("Nats a token", against.delta_nll, words.signed),
        ("KL divergence from the original", against.kld, words.signed),
        ("Same likeliest token", against.same_top, words.signed_share),
    ):
        rows.append([label, show(found.mean), words.interval(found.low, found.high, show)])
    yield table(["This less the other", "Difference", "95 % interval"], rows)
