"""The proof's figures as Markdown tables, for the model card and for the page that a CI system shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ..records.parity import Parity
from . import words


def parity_tables(parity: Parity) -> Iterator[str]:
    export, corpus, cost = parity.export, parity.corpus, parity.cost
    tokens = f"{export.tokens:,} tokens"
    yield f"{words.questions(parity)[0]} ONNX Runtime against torch on the same dequantised weights, {tokens}:"
    runs = export.runs
    yield table(
        ["", *(run.name.capitalize() for run in runs)],
        [
            ["Largest logit difference", *(words.power(s.max_abs) for s in runs)],
            ["99.9 % of logits within", *(words.power(s.p999_abs) for s in runs)],
            [
                "Over the cache, batched, padded; largest difference to one pass",
                *(words.power(s.decode_max_abs) for s in runs),
            ],
            ["Same likeliest token", *(words.share(s.same_top) for s in runs)],
        ],
    )
    kld, top, delta = cost.kld, cost.same_top, cost.delta_nll
    yield (
        f"{words.questions(parity)[1]} The artifact as it ships against the {words.beside(parity)} checkpoint on "
        f"{cost.tokens:,} held-out tokens of {plain(corpus.source)} "
        f"({words.clusters(cost)}):"
    )
    yield table(
        ["", words.beside(parity).capitalize(), "Artifact", "Change", "95 % interval"],
        [
            [
                "Perplexity", words.number(cost.ppl_original, 3), words.number(cost.ppl_quantized, 3),
                *words.change(cost.ppl_ratio),
            ],
            [
                "Nats a token", words.number(cost.nll_original, 4), words.number(cost.nll_quantized, 4),
                words.signed(delta.mean), words.interval(delta.low, delta.high, words.signed),
            ],
            [
                "Bits a byte", words.number(cost.bits_per_byte_original, 4),
                words.number(cost.bits_per_byte_quantized, 4),
                words.signed(cost.bits_per_byte_quantized - cost.bits_per_byte_original), "",
            ],
            [
                "KL divergence, nats a token", "", "", words.power(kld.mean),
                words.interval(kld.low, kld.high, words.power),
            ],
            [
                "Same likeliest token", "", "", words.share(top.value),
                words.interval(top.low, top.high, words.share),
            ],
        ],
    )  # fmt: skip
    if parity.inside is not None:
        yield f"{words.INSIDE} Here {words.inside_note(parity)}:"
        sides = ["Artifact", "95 % interval"]
        sides += ["Round to nearest", "95 % interval"] if parity.inside.rtn is not None else []
        yield table(
            ["", *sides], [[label[0].upper() + label[1:], *cells] for label, cells in words.inside_rows(parity)]
        )
        if parity.inside.artifact.features:
            yield "Features of sparse autoencoders: active per token, the share that survive, the variance unexplained:"
            yield table([*words.FEATURE_HEADS], [[label, *cells] for label, cells in words.feature_rows(parity)])
    if parity.gates:
        yield "Gates of the recipe; the worse end of an estimate's interval must meet the limit:"
        yield table(
            ["Gate", "Measured", "Held to the limit", "Limit", "Verdict"],
            [
                [
                    words.GATES[gate.name][0],
                    words.gate_value(gate.name, gate.value),
                    words.gate_value(gate.name, gate.bound),
                    words.gate_value(gate.name, gate.limit),
                    "passed" if gate.passed else f"**{words.outcome(gate)}**",
                ]
                for gate in parity.gates
            ],
        )


def table(header: Any, rows: list[list[str]]) -> str:
    lines = [list(header), ["---", *["---:" if len(header) > 2 or header[-1] else "---"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def plain(text: str) -> str:
    """Text from outside, on one line and without meaning to Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(text.split())).replace("\\_", "_")
