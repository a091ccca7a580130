"""Figures and facts in words, said the same way in the HTML report, the model card and the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..records.manifest import Origin, Requantized
from ..records.parity import Alike, Exported, Mean, Parity, Part, Ratio, Share, Verdict
from ..records.quantization import LinearRecord, Quantization

INSIDE = "Does it still compute alike?"
_KEPT, _COST = "Did the export keep the numbers?", "What did quantisation cost?"
ABSENT = "–"
NO_INTERVAL = "no interval"

GATES = {
    "export_max_abs": ("Export, in one pass", "largest logit difference"),
    "decode_max_abs": ("Export, cached, batched, padded", "largest logit difference to one pass"),
    "ppl_ratio": ("Perplexity", "ratio to the original's"),
    "delta_nll": ("Loss", "difference to the original's, nats a token"),
    "kld_mean": ("KL divergence", "mean, nats a token"),
    "same_top": ("Same likeliest token", "share of tokens"),
    "min_tokens": ("Held-out text", "tokens"),
    "regression": ("Regression", "mean KL divergence above the other artifact's"),
    "residual_error": ("Residual stream", "relative error, behind the worst layer"),
    "pattern_js": ("Attention pattern", "Jensen-Shannon divergence of the worst head, nats a token"),
    "induction_lost": ("Induction", "score that the worst head lost"),
    "lens_same_top": ("Logit lens", "same likeliest token, behind the worst layer"),
    "feature_survival": ("Features", "share of active ones that survive, of the worst autoencoder"),
}
AT_LEAST = (
    "same_top",
    "min_tokens",
    "lens_same_top",
    "feature_survival",
)  # the others are held to be at most their limits
_METHODS = {"gptq": "GPTQ", "rtn": "Round to nearest", "none": "Not quantised", "imported": "Imported"}
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def largest(export: Exported) -> float:
    """The largest logit difference of those runs that are held to limits."""
    return max(float(run.max_abs) for run in export.runs if run.gated)


def verdict(parity: Parity) -> tuple[str, str]:
    """One word and what it stands for: `("Passed", "all 3 gates")`."""
    gates = parity.gates
    failed, undecided = ([x for x in gates if x.outcome == outcome] for outcome in ("failed", "inconclusive"))
    if not gates:
        return "Measured", "the recipe sets no gate"
    if not failed and not undecided:
        return "Passed", "the one gate" if len(gates) == 1 else f"all {len(gates)} gates"
    scope = f"{len(failed or undecided)} of {len(gates)} gates: {_named(failed or undecided)}"
    if failed and undecided:
        scope += f"; {len(undecided)} more inconclusive: {_named(undecided)}"
    return "Failed" if failed else "Inconclusive", scope


def _named(gates: Sequence[Verdict]) -> str:
    return ", ".join(GATES[gate.name][0] for gate in gates)


def outcome(gate: Verdict) -> str:
    """``passed``, ``failed``, or ``inconclusive: about 12,000 more tokens would decide``."""
    if gate.outcome != "inconclusive":
        return str(gate.outcome)
    more = gate.more_tokens
    if more is None:
        return "inconclusive"
    return f"inconclusive: {'' if gate.name == 'min_tokens' else 'about '}{more:,} more tokens would decide"


def sign(gate: str) -> str:
    """How what is held to the limit has to stand to it."""
    return "≥" if gate in AT_LEAST else "≤"


def gate_sentence(gate: Verdict) -> str:
    """``Perplexity, ratio to the original's: 1.0202, its 95 % interval ends at 1.0223; limit ≤ 1.0500: passed``."""
    name = gate.name
    measured, bound, limit = (gate_value(name, x) for x in (gate.value, gate.bound, gate.limit))
    found = gate.run or gate.place
    where = f" ({found})" if found else ""
    if gate.confidence is None:
        held = ""
    elif gate.bound is None:
        held = ", without an interval"
    else:
        held = f", its {100 * gate.confidence:.4g} % interval ends at {bound}"
    return f"{', '.join(GATES[name])}: {measured}{where}{held}; limit {sign(name)} {limit}: {outcome(gate)}"


def unmet(parity: Parity) -> list[str]:
    """A line for each gate that did not pass, and where to look first."""
    lines = [f"Gate {gate.name}: {outcome(gate)}" for gate in parity.gates if not gate.passed]
    return lines + [line for line in (look_in_graph(parity), look_in_weights(parity)) if line]


def look_in_graph(parity: Parity) -> str:
    """Where the graph leaves the reference first; empty where nobody had to look."""
    found = parity.export.first_divergence
    if not found:
        return ""
    if found.op is None:
        said = f"Look first: none of {found.checked} operators differs from torch by itself, on its own inputs"
        cache = found.rounded_cache
        return said + (
            "." if cache is None else f"; but the KV cache is rounded to {cache}, for which limits are wider."
        )
    by = "has no such value" if found.error is None else f"differs by {power(found.error)}, relative"
    return f"Look first at {found.node} ({found.way}, {found.speed} speed): it {by}."


def look_in_weights(parity: Parity) -> str:
    found = parity.cost.suspects
    if not found:
        return ""
    first, worst, extreme = found.first, found.worst[0], found.extreme
    if extreme is not None:
        return (
            f"Look first at the weights of {extreme.name}: the largest is {power(extreme.largest)}, their mean "
            f"{power(extreme.mean)}; on a scale as wide as it needs, the weights beside it are rounded away."
        )
    if first is None:
        return (
            f"Look first: no weights are out of line; the worst, {worst.name}, have {worst.ratio:.2g} times the "
            "error of round-to-nearest."
        )
    return (
        f"Look first at the weights of {first.name}: their output error is {power(first.error)}, "
        f"{first.ratio:.2g} times that of round-to-nearest."
    )


def export_sentence(parity: Parity) -> str:
    by = power(largest(parity.export))
    if any(gate.name == "export_max_abs" and not gate.passed for gate in parity.gates):
        return f"ONNX Runtime differs from torch on the same weights by up to {by} in a logit."
    return f"ONNX Runtime computes what torch does on the same weights, to {by} in every logit."


def questions(parity: Parity) -> tuple[str, str]:
    return _KEPT, "What did the import cost?" if parity.cost.baseline == "imported" else _COST


def beside(parity: Parity) -> str:
    """Return what the artifact stands beside, as an adjective."""
    return parity.cost.baseline


def cost_sentence(parity: Parity, quantized: bool = True) -> str:
    """Say what was lost against what the artifact stands beside: the original, or the checkpoint that was imported."""
    alone = parity.cost.baseline == "imported"
    what = "Importing the weights" if alone else "Quantisation" if quantized else "Storing the weights so"
    unknown = " What quantisation cost is not known: no original was given (--original)." if alone else ""
    return f"{what} {_effect(parity.cost.ppl_ratio)}.{unknown}"


def inside_sentence(parity: Parity) -> str:
    """Say how near the artifact computes to the original inside; empty where that was not asked."""
    if parity.inside is None:
        return ""
    found = parity.inside.artifact
    worst = max(found.heads, key=lambda head: head.pattern_js.mean)
    return (
        f"Inside, its residual stream differs by {percent(found.residual_error.mean)} of its length; the attention "
        f"pattern that changed most is layer {worst.layer}, head {worst.head} ({power(worst.pattern_js.mean)} nats)."
    )


def inside_rows(parity: Parity) -> list[tuple[str, list[str]]]:
    """Return the figures of the third question: a label, then figure and interval of the artifact, then the same of
    round-to-nearest where it was set beside."""
    inside = parity.inside
    if inside is None:
        return []
    sides = [inside.artifact] if inside.rtn is None else [inside.artifact, inside.rtn]

    def row(label: str, show: Any, of: Any) -> tuple[str, list[str]]:
        return label, [cell for side in sides for cell in _estimate(of(side), show)]

    def ends(side: Alike) -> Mean:
        return max(side.heads, key=lambda head: head.induction_lost.mean).induction_lost

    return [
        row("residual stream, relative error", percent, lambda side: side.residual_error),
        row("residual stream, cosine", lambda x: f"{x:.5f}", lambda side: side.cosine),
        row("attention patterns, Jensen-Shannon", power, lambda side: side.pattern_js),
        row("induction score, most that a head lost", signed, ends),
        row("logit lens, KL divergence", power, lambda side: side.lens_kld),
        row("logit lens, same likeliest token", share, lambda side: side.lens_same_top),
        *([row("features that survive, all autoencoders", share, lambda side: side.feature_survival)]
          if inside.artifact.features else []),
    ]  # fmt: skip


def feature_rows(parity: Parity) -> list[tuple[str, list[str]]]:
    """Return what each autoencoder sees: its name and place, then active features per token of original and artifact,
    then figure and interval of survival and inheritance, then unexplained variance of original and artifact."""
    if parity.inside is None:
        return []
    return [
        (
            f"{one.name} ({one.architecture}, {one.features:,} at {one.hook})",
            [
                f"{one.active_original:.1f}", f"{one.active:.1f}", *_estimate(one.survived, share),
                *(("none", "") if one.inherited is None else _estimate(one.inherited, share)),
                percent(one.unexplained_original.mean), percent(one.unexplained.mean),
            ],
        )
        for one in parity.inside.artifact.features
    ]  # fmt: skip


FEATURE_HEADS = (
    "Autoencoder", "Active, original", "Active, artifact", "Survive", "95 % interval", "Inherited", "95 % interval",
    "Unexplained, original", "Unexplained, artifact",
)  # fmt: skip


def _estimate(found: Mean | Share, show: Any) -> tuple[str, str]:
    value = found.value if isinstance(found, Share) else found.mean
    return show(value), interval(found.low, found.high, show)


def inside_note(parity: Parity) -> str:
    """Say what the third question was asked of."""
    inside = parity.inside
    if inside is None:
        return ""
    rounded = ["activations"] if inside.activations == "int8" else []
    rounded += [] if inside.cache == "float32" else [f"a cache of {inside.cache}"]
    what = "the weights" if not rounded else f"the weights, with {' and '.join(rounded)} rounded as it ships,"
    places = "patterns, lens and features" if inside.artifact.features else "patterns and lens"
    return (
        f"{what} against the {beside(parity)}'s, in torch: {inside.tokens:,} tokens, {places} at "
        f"{inside.sampled:,} of them, induction on {inside.sequences} sequences of {inside.repeated} random tokens"
    )


def _effect(ratio: Ratio) -> str:
    if ratio.value is None:
        return "destroyed the model: the perplexity ratio is beyond what a float can hold"
    if ratio.low is None or ratio.high is None:
        return f"changes perplexity by {percent_change(ratio)}; the text allows no interval"
    if ratio.low <= 1 <= ratio.high:
        return f"has no effect on perplexity that could be told from none: {percent_change(ratio)}"
    verb = "raises" if ratio.value > 1 else "lowers"
    return f"{verb} perplexity: {percent_change(ratio)}"


def percent_change(ratio: Ratio) -> str:
    """``+1.70 % (95 % interval +1.51 to +1.89 %)``; two digits of the interval's width are shown."""
    value, ends = change(ratio)
    return value if ratio.value is None or ends == NO_INTERVAL else f"{value} (95 % interval {ends})"


def change(ratio: Ratio) -> tuple[str, str]:
    """Return a change in percent and its interval, both to the same digits: ``+1.70 %``, ``+1.51 to +1.89 %``."""
    value, low, high = (None if x is None else 100 * (x - 1) for x in (ratio.value, ratio.low, ratio.high))
    width = 0.0 if low is None or high is None else high - low
    digits = min(4, max(1, 1 - math.floor(math.log10(width)))) if width > 0 else 2
    ends = NO_INTERVAL if low is None or high is None else f"{low:+.{digits}f} to {high:+.{digits}f} %"
    return ABSENT if value is None else f"{value:+.{digits}f} %", ends


def signed(x: float) -> str:
    """Return a difference as `power` writes a figure, with its sign: ``+0.0200``, ``-1.9 × 10⁻⁵``."""
    return power(x) if x <= 0 else f"+{power(x)}"


def signed_share(x: float) -> str:
    """Return a difference of two shares: ``+0.120 %``."""
    return f"{100 * x:+.3f} %"


def gate_value(name: str, value: float | None) -> str:
    if value is None:
        return ABSENT
    if name == "ppl_ratio":
        return f"{value:.4f}"
    if name in ("same_top", "lens_same_top"):
        return share(value)
    if name == "min_tokens":
        return f"{value:,.0f}"
    return power(value)


def power(x: float | None) -> str:
    """``1.9 × 10⁻⁵``; three digits without a power where that is as short."""
    if x is None:
        return ABSENT
    if x == 0:
        return "0"
    if 0.001 <= abs(x) < 1000:
        return f"{x:#.3g}".rstrip(".")
    digits, _, exponent = f"{x:.1e}".partition("e")
    tens = f"10{superscript(int(exponent))}"
    return tens if digits == "1.0" else f"{digits} × {tens}"


def superscript(n: int) -> str:
    return str(n).translate(_SUPERSCRIPTS)


def share(x: float | None) -> str:
    """``97.14 %``; never rounded up to all."""
    if x is None:
        return ABSENT
    text = f"{100 * x:.2f}"
    return f"{'> 99.99' if text == '100.00' and x < 1 else '100' if x == 1 else text} %"


def percent(x: float) -> str:
    """``4.1 %``: two digits, for figures whose size matters more than their value."""
    rounded = float(f"{100 * x:.2g}")
    return f"{rounded:g} %" if rounded == 0 or 1e-4 <= rounded < 1e6 else f"{power(rounded)} %"


def number(x: float | None, digits: int) -> str:
    return ABSENT if x is None else f"{x:,.{digits}f}"


def interval(low: float | None, high: float | None, show: Any) -> str:
    if low is None or high is None:
        return NO_INTERVAL
    first, last = str(show(low)), str(show(high))
    return f"{first.removesuffix(' %') if last.endswith(' %') else first} to {last}"


def clusters(cost: Part) -> str:
    """How the intervals were made."""
    by, count = cost.clusters.by, cost.clusters.count
    return f"95 % intervals, clustered by {count:,} {by}s" + (": the text is one document" if by == "window" else "")


def scheme(linear: LinearRecord) -> str:
    """``int4, groups of 32``."""
    group = "a scale a row" if linear.group_size == -1 else f"groups of {linear.group_size}"
    return f"int{linear.bits}, {group}" + ("" if linear.symmetric else ", asymmetric")


def treatment(quantization: Quantization) -> str:
    """``GPTQ int4, groups of 32; head int8, groups of 128``, by what most of the linears got."""
    trunk = [scheme(x) for x in quantization.linears if x.layer is not None]
    head = [scheme(x) for x in quantization.linears if x.layer is None]
    method = method_name(quantization.method)
    if not trunk and not head:
        return method
    most = max(dict.fromkeys(trunk or head), key=(trunk or head).count)
    others = " (with exceptions)" if len(set(trunk)) > 1 else ""
    tail = "; head kept in float" if not head else "" if head[0] == most else f"; head {head[0]}"
    return f"{method} {most}{others}{tail}"


def imported_facts(origin: Origin) -> dict[str, str]:
    """Return where weights that another tool quantised are from, a name and a value each; empty of others."""
    found = origin.imported
    if found is None:
        return {}
    by = "" if found.tool is None else f" by {found.tool}"
    facts = {"Imported from": f"{found.name} at {found.revision}: {found.format}{by}", "its commit": found.commit}
    if found.requantized is not None:
        facts["Rounded again"] = rounded_again(found.requantized)
    return facts


def rounded_again(found: Requantized) -> str:
    """Say which linears of an import were rounded again, and what that cost."""
    cost = f"{signed(found.delta_nll.mean)} nats a token, {power(found.kld.mean)} of KL divergence"
    return f"{len(found.linears)} linears, to {found.bits} bits: {cost} from the weights imported"


def method_name(method: str) -> str:
    return _METHODS.get(method, method)


def kind(name: str) -> str:
    """``gpt_neox.layers.3.mlp.dense_h_to_4h`` is ``mlp.dense_h_to_4h``: the same linear of every layer."""
    return name.split(".", 3)[3] if name.startswith("gpt_neox.layers.") else name


def by_kind(linears: Sequence[LinearRecord]) -> dict[str, list[LinearRecord]]:
    """Linears that have a loss, by kind, in the model's order."""
    kinds: dict[str, list[LinearRecord]] = {}
    for linear in linears:
        if linear.loss is not None:
            kinds.setdefault(kind(linear.name), []).append(linear)
    return kinds


def recovered(linears: Sequence[LinearRecord]) -> float | None:
    """Share of round-to-nearest's error, summed over these linears, that the method took away."""
    pairs = [(x.rtn_loss, x.loss) for x in linears if x.rtn_loss is not None and x.loss is not None]
    nearest = sum(rtn for rtn, _ in pairs)
    return 1 - sum(loss for _, loss in pairs) / nearest if nearest else None


def recipe_toml(recipe: Mapping[str, Any]) -> str:
    """A recipe as the TOML that gives it again. What is not set is left out."""
    out: list[str] = []
    for name, section in recipe.items():
        if section is not None:
            _table(name, section, out)
    return "\n".join(out).strip() + "\n"


def _table(name: str, section: Mapping[str, Any], out: list[str], header: str = "[{}]") -> None:
    nested = {k: v for k, v in section.items() if isinstance(v, Mapping)}
    tables = {
        k: v for k, v in section.items() if isinstance(v, list | tuple) and isinstance(next(iter(v), {}), Mapping)
    }
    plain = {k: v for k, v in section.items() if v is not None and k not in nested and k not in tables}
    if plain or not nested:
        out += ["", header.format(name)]
        out += [f"{k} = {_toml(v)}" for k, v in plain.items()]
    for k, v in nested.items():
        _table(f"{name}.{k}", v, out)
    for k, rows in tables.items():
        for row in rows:
            _table(f"{name}.{k}", row, out, "[[{}]]")


def _toml(value: Any) -> str:
    """JSON's scalars and lists of them are TOML's, but for DEL, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
