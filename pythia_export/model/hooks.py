"""The places inside the model whose values can be read and changed, by the names that TransformerLens gives them.

A **tap** is a kind of place, ``attn.z``; a **hook** is one place, ``blocks.3.attn.hook_z``. The names of hooks, their
shapes and what they mean are those of TransformerLens 4's TransformerBridge; the older names of HookedTransformer are
understood too. B rows of T tokens, of which P positions are read, K tokens to attend to.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from ..base.errors import RecipeError
from .neox import NeoXConfig

Shape = Literal["hidden", "heads", "pattern", "mlp", "vocab"]
SHAPES: dict[Shape, str] = {
    "hidden": "[B, P, d_model]",
    "heads": "[B, P, heads, d_head]",
    "pattern": "[B, heads, P, K]",
    "mlp": "[B, P, d_mlp]",
    "vocab": "[B, P, vocab]",
}


@dataclass(frozen=True)
class Tap:
    """One kind of place: `hook` and `older` are its names, with {} for the layer where each layer has one."""

    name: str
    hook: str
    older: str
    shape: Shape
    meaning: str

    @property
    def by_layer(self) -> bool:
        return "{}" in self.hook

    def hooks(self, config: NeoXConfig) -> tuple[str, ...]:
        """Return the names of its hooks, in the order of the layers."""
        return tuple(map(self.hook.format, range(config.num_layers))) if self.by_layer else (self.hook,)


# In the order in which a pass comes by them.
TAPS = (
    Tap("embed", "embed.hook_out", "hook_embed", "hidden", "the token's embedding"),
    Tap("resid_pre", "blocks.{}.hook_in", "blocks.{}.hook_resid_pre", "hidden", "the residual stream before a layer"),
    Tap("attn.q", "blocks.{}.attn.hook_q", "blocks.{}.attn.hook_q", "heads", "queries, before they are rotated"),
    Tap("attn.k", "blocks.{}.attn.hook_k", "blocks.{}.attn.hook_k", "heads", "keys, before they are rotated"),
    Tap("attn.v", "blocks.{}.attn.hook_v", "blocks.{}.attn.hook_v", "heads", "values"),
    Tap(
        "attn.pattern", "blocks.{}.attn.hook_pattern", "blocks.{}.attn.hook_pattern", "pattern",
        "how much each token attends to each, after softmax",
    ),
    Tap("attn.z", "blocks.{}.attn.hook_z", "blocks.{}.attn.hook_z", "heads", "what each head gives: pattern by values"),
    Tap("attn.out", "blocks.{}.attn.hook_out", "blocks.{}.hook_attn_out", "hidden", "what attention adds to it"),
    Tap("resid_mid", "blocks.{}.ln2.hook_in", "blocks.{}.hook_resid_mid", "hidden",
        "the stream between attention and MLP, of a model whose residual is sequential"),
    Tap("mlp.pre", "blocks.{}.mlp.hook_pre", "blocks.{}.mlp.hook_pre", "mlp", "the MLP before its activation function"),
    Tap("mlp.post", "blocks.{}.mlp.hook_post", "blocks.{}.mlp.hook_post", "mlp", "and after it: the neurons"),
    Tap("mlp.out", "blocks.{}.mlp.hook_out", "blocks.{}.hook_mlp_out", "hidden", "what the MLP adds to it"),
    Tap("resid_post", "blocks.{}.hook_out", "blocks.{}.hook_resid_post", "hidden", "the residual stream after a layer"),
    Tap("final", "ln_final.hook_normalized", "ln_final.hook_normalized", "hidden",
        "the last stream, normalised, before the norm's own scale and shift"),
)  # fmt: skip
BY_NAME = {tap.name: tap for tap in TAPS}
RESID = "resid"  # the stream at every boundary of layers, each once: resid_pre of all, and the last resid_post
ALL = "all"
GROUPS = {
    RESID: "`resid_pre` of every layer and `resid_post` of the last: the stream at each boundary, once",
    ALL: "every place",
}
LOGITS = "logits"  # every graph gives them
_HOOK = {tap.hook: tap for tap in TAPS}


def served(config: NeoXConfig) -> tuple[Tap, ...]:
    """Return the taps that a model of this architecture has."""
    return tuple(tap for tap in TAPS if not (tap.name == "resid_mid" and config.parallel_residual))


def tap_of(hook: str) -> tuple[Tap, int | None]:
    """Return the kind and the layer of a hook; KeyError of what is none."""
    layer = re.match(r"blocks\.(\d+)\.", hook)
    if layer is None:
        return _HOOK[hook], None
    return _HOOK[f"blocks.{{}}.{hook[layer.end() :]}"], int(layer[1])


def hooks_of(asked: Iterable[str], config: NeoXConfig) -> tuple[str, ...]:
    """Return the hooks that names stand for, each once, in the order of a pass.

    A name is a tap (``attn.z``: of every layer), a group (``resid``, ``all``) or one hook, new or old.

    Raises:
        RecipeError: a name that is none of them, with the nearest.
    """
    places = [(tap, hook) for tap in served(config) for hook in tap.hooks(config)]
    ordered = sorted((hook for _, hook in places), key=lambda hook: _order(hook, config))
    names = {ALL: set(ordered), RESID: {*BY_NAME["resid_pre"].hooks(config), BY_NAME["resid_post"].hooks(config)[-1]}}
    for tap, hook in places:
        names.setdefault(tap.name, set()).add(hook)
        names[hook] = {hook}
        layer = tap_of(hook)[1]
        names.setdefault(tap.older.format(layer), {hook})
    wanted: set[str] = set()
    for name in (asked,) if isinstance(asked, str) else asked:
        if name not in names:
            raise unknown(name, names)
        wanted |= names[name]
    return tuple(hook for hook in ordered if hook in wanted)


def unknown(name: str, known: Collection[str]) -> RecipeError:
    """Return the error of a name that is no hook, with the nearest of those that are."""
    layers = sorted({int(found[1]) for one in known if (found := re.match(r"blocks\.(\d+)\.", one))})
    if layers and re.sub(r"^blocks\.\d+\.", f"blocks.{layers[0]}.", str(name)) in known:
        return RecipeError(f"{name!r} is no place in this model: its layers are {layers[0]} to {layers[-1]}")
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    kinds = [n for n in known if n in GROUPS or n in BY_NAME]
    return RecipeError(
        f"{name!r} is no place in this model" + (f"; the nearest are {', '.join(near)}" if near else ""),
        hint=f"Every place is one of {', '.join(kinds)}, or one layer's, such as blocks.0.hook_in.",
    )


def _order(hook: str, config: NeoXConfig) -> tuple[int, int]:
    tap, layer = tap_of(hook)
    after = config.num_layers if tap.name == "final" else -1
    return (after if layer is None else layer, TAPS.index(tap))


def shape_of(hook: str, config: NeoXConfig, rows: int, positions: int, keys: int) -> tuple[int, ...]:
    """Return the shape of a hook's values, or of the logits."""
    kind = "vocab" if hook == LOGITS else tap_of(hook)[0].shape
    match kind:
        case "hidden":
            return (rows, positions, config.hidden_size)
        case "heads":
            return (rows, positions, config.num_heads, config.head_dim)
        case "pattern":
            return (rows, config.num_heads, positions, keys)
        case "mlp":
            return (rows, positions, config.intermediate_size)
        case "vocab":
            return (rows, positions, config.vocab_size)
