"""The verdict on a terminal: a rich renderable, in the order of the HTML page."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..records.parity import Parity, Run
from ..records.quantization import Quantization
from . import words

_STYLES = {"Passed": "bold green", "Failed": "bold red", "Inconclusive": "bold yellow", "Measured": "bold"}
_OUTCOMES = {"passed": "green", "failed": "bold red", "inconclusive": "yellow"}


def verdict(parity: Parity, quantization: Quantization | None) -> RenderableType:
    """In the order of the page; at the end the recovered share of round-to-nearest's error, where it is known."""
    word, scope = words.verdict(parity)
    parts: list[RenderableType] = [
        Text.assemble((word.upper(), _STYLES[word]), "  ", scope),
        "",
        _export(parity),
        "",
        _cost(parity),
    ]
    if parity.cost.subsets:
        parts += ["", _parts(parity)]
    if parity.inside is not None:
        parts += ["", _inside(parity)]
        if parity.inside.artifact.features:
            parts += ["", _features(parity)]
    if parity.gates:
        parts += ["", _gates(parity)]
    share = words.recovered(quantization.linears) if quantization and quantization.method == "gptq" else None
    if quantization is not None and share is not None:
        n = len(quantization.linears)
        parts += ["", Text(f"GPTQ recovered {100 * share:.0f} % of round-to-nearest's output error over {n} linears.")]
    return Group(*parts)


def _export(parity: Parity) -> RenderableType:
    export = parity.export
    note = f"ONNX Runtime against torch, same weights, {export.tokens:,} tokens"
    table = _table(*(run.name for run in export.runs))
    rows: tuple[tuple[str, Callable[[Run], str]], ...] = (
        ("largest logit difference", lambda run: words.power(run.max_abs)),
        ("99.9 % of logits within", lambda run: words.power(run.p999_abs)),
        ("cached, batched or padded", lambda run: words.power(run.decode_max_abs)),
        ("same likeliest token", lambda run: words.share(run.same_top)),
    )
    for label, shown in rows:
        table.add_row(label, *map(shown, export.runs))
    return _titled(words.questions(parity)[0], note, table)


def _cost(parity: Parity) -> RenderableType:
    cost = parity.cost
    beside = words.beside(parity)
    note = f"against the {beside}, {cost.tokens:,} held-out tokens"
    table = _table(beside, "artifact", "change", "95 % interval")
    ratio, delta, kld, top = cost.ppl_ratio, cost.delta_nll, cost.kld, cost.same_top

    table.add_row(
        "perplexity", words.number(cost.ppl_original, 3), words.number(cost.ppl_quantized, 3), *words.change(ratio)
    )  # fmt: skip
    table.add_row(
        "nats a token", words.number(cost.nll_original, 4), words.number(cost.nll_quantized, 4),
        words.signed(delta.mean), words.interval(delta.low, delta.high, words.signed),
    )  # fmt: skip
    change = cost.bits_per_byte_quantized - cost.bits_per_byte_original
    table.add_row(
        "bits a byte", words.number(cost.bits_per_byte_original, 4),
        words.number(cost.bits_per_byte_quantized, 4), words.signed(change), "",
    )  # fmt: skip
    table.add_row("KL divergence", "", "", words.power(kld.mean), words.interval(kld.low, kld.high, words.power))
    table.add_row(
        "same likeliest token", "", "", words.share(top.value), words.interval(top.low, top.high, words.share)
    )
    return _titled(words.questions(parity)[1], note, table)


def _parts(parity: Parity) -> RenderableType:
    table = _table("tokens", "perplexity", "95 % interval", "KL divergence")
    for part in parity.cost.subsets:
        name = "".join(c if c.isprintable() else " " for c in part.name)
        table.add_row(
            Text(name, overflow="ellipsis", no_wrap=True), f"{part.tokens:,}",
            *words.change(part.ppl_ratio), words.power(part.kld.mean),
        )  # fmt: skip
    return _titled("By part of the text", "change of perplexity, divergence from the original", table)


def _inside(parity: Parity) -> RenderableType:
    sides = ["artifact", "95 % interval"]
    if parity.inside is not None and parity.inside.rtn is not None:
        sides += ["round to nearest", "95 % interval"]
    table = _table(*sides)
    for label, cells in words.inside_rows(parity):
        table.add_row(label, *cells)
    return _titled(words.INSIDE, words.inside_note(parity), table)


def _features(parity: Parity) -> RenderableType:
    table = _table("survive", "95 % interval", "inherited", "unexplained, original", "artifact")
    for label, cells in words.feature_rows(parity):
        table.add_row(Text("".join(c if c.isprintable() else " " for c in label)), *cells[2:5], *cells[6:])
    return _titled("Features of sparse autoencoders", "share of those active, of variance", table)


def _gates(parity: Parity) -> RenderableType:
    table = _table("measured", "held to limit", "limit", "")
    for gate in parity.gates:
        name = gate.name
        table.add_row(
            words.GATES[name][0].lower().replace("kl ", "KL "),
            words.gate_value(name, gate.value),
            words.gate_value(name, gate.bound),
            f"{words.sign(name)} {words.gate_value(name, gate.limit)}",
            Text(words.outcome(gate) + (f": {gate.place}" if gate.place else ""), style=_OUTCOMES[gate.outcome]),
        )
    return _titled("Gates", "the worse end of the interval must meet the limit", table)


def _titled(title: str, note: str, table: Table) -> Group:
    return Group(Text.assemble((title, "bold"), "  ", (note, "dim")), table)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(" " * 30, overflow="fold")  # as wide as that where there is room, and narrower where there is not
    for name in columns:
        table.add_column(name, justify="right", header_style="dim", overflow="fold")
    return table
