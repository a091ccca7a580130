"""What the quantiser found out beside the losses, in sentences. Each is empty where its figures were not recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..records.quantization import LinearRecord, Quantization
from .words import kind, percent, power

_NAMED = 3  # the worst of many
_LISTED = 6  # names that a sentence holds
_MEASURABLE = 1e30  # beyond it the part's own output was zero, and the quantiser's quotient is no number


@dataclass(frozen=True)
class Part:
    """One head's queries, keys or values and their error relative to their own energy; or a whole head (`of` is empty)
    and another figure."""

    layer: int
    head: int
    of: str
    error: float

    @property
    def place(self) -> str:
        return f"layer {self.layer} head {self.head} {self.of}".rstrip()


def parts(linears: Sequence[LinearRecord]) -> Iterator[Part]:
    for linear in linears:
        if linear.layer is None:
            continue
        for head, errors in enumerate(linear.heads or ()):
            for of, error in zip("qkv", errors, strict=True):
                if error < _MEASURABLE:
                    yield Part(linear.layer, head, of, error)


def sentences(quantization: Quantization) -> list[str]:
    """All of them."""
    linears = quantization.linears
    found = (residual(quantization), worst_heads(linears), costliest(quantization), budget(quantization))
    return [sentence for sentence in found if sentence]


def residual(quantization: Quantization) -> str:
    known = {x.layer: x.residual_error for x in quantization.layers if x.residual_error is not None}
    if not known:
        return ""
    last = max(known)
    return (
        f"Behind layer {last} the residual stream differs from the original model's "
        f"by {percent(known[last])} of its energy."
    )


def worst_heads(linears: Sequence[LinearRecord]) -> str:
    worst = sorted(parts(linears), key=lambda part: part.error, reverse=True)[:_NAMED]
    if not worst:
        return ""
    names = ", ".join(f"{part.place} ({percent(part.error)})" for part in worst)
    return f"Inside the fused QKV the largest relative errors are those of {names}."


def costliest(quantization: Quantization) -> str:
    """By the second-order model of the loss."""
    known = [(x.expected_cost, x.name) for x in quantization.linears if x.expected_cost is not None]
    if not known:
        return ""
    worst = sorted(known, key=lambda cost_and_name: cost_and_name[0], reverse=True)[:_NAMED]
    names = ", ".join(f"{_short(name)} ({power(cost)})" for cost, name in worst)
    return (
        f"Rounding is expected to cost {power(sum(cost for cost, _ in known))} nats a token "
        f"in {len(known)} linears, most in {names}."
    )


def budget(quantization: Quantization) -> str:
    """How a budget of bits was spent."""
    spent = quantization.allocation
    if not spent:
        return ""
    raised = spent.raised
    if len(raised) > _LISTED:
        kinds = Counter(kind(name) for name in raised)
        names = f"{len(raised)} linears ({', '.join(f'{n} {of}' for of, n in kinds.most_common())})"
    else:
        names = ", ".join(map(_short, raised)) or "none"
    return f"{spent.asked:g} bits a weight asked for, {spent.reached:.3f} reached; raised to 8 bits: {names}."


def _short(name: str) -> str:
    return str(name).removeprefix("gpt_neox.")
