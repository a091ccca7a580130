"""Changes to values inside the model, as what the tapped graph takes: for every number ``value * scale + add``.

A change is TransformerLens's: an `op` of

- ``set``: the value becomes `value`; ``add``: `value` is added to it
- ``scale``: it is multiplied by the number `factor`; ``suppress``: it becomes 0

at the tokens `pos`, one or several, all if not given, and at the heads `heads` where the place has heads. Several
changes of one place are applied one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..base.errors import NumericsError, RecipeError
from ..base.strict_json import shown
from ..model.hooks import tap_of
from ..model.neox import NeoXConfig

_KEYS = {"set": {"value"}, "add": {"value"}, "scale": {"factor"}, "suppress": set[str]()}
_EXAMPLE = 'A change is {"op": "suppress", "pos": 3}, for example, or {"op": "scale", "factor": 0}.'
CHOSEN = ("attn.pattern", "final")  # taps whose changed path stands beside the plain one
Spec = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Change:
    """One change of one hook; `value` float32, also the factor of ``scale``; None is every token, every head."""

    op: str
    value: np.ndarray
    positions: tuple[int, ...] | None
    heads: tuple[int, ...] | None


def changes_of(hook: str, spec: Spec, config: NeoXConfig) -> tuple[Change, ...]:
    """Read what is to happen at one hook: one change, or several in their order.

    Raises:
        RecipeError: an unknown op or key, one that is missing, heads where there are none, a value that is no number.
    """
    if callable(spec):
        raise RecipeError(
            f"{hook}: a function; what ONNX Runtime computes takes no Python",
            hint='Say it as {"op": "set", "value": array, "pos": 3}, or read the value, change it and set it.',
        )
    several = (spec,) if isinstance(spec, Mapping) else spec
    if isinstance(several, str) or not isinstance(several, Sequence):
        raise RecipeError(f"{hook}: {shown(spec)}", hint=_EXAMPLE)
    return tuple(_change(hook, one, config) for one in several)


def _change(hook: str, spec: Mapping[str, Any], config: NeoXConfig) -> Change:
    op = spec.get("op") if isinstance(spec, Mapping) else None
    if op not in _KEYS:
        keys = sorted(map(str, spec)) if isinstance(spec, Mapping) else []
        found = f"op {shown(op)}" if "op" in keys else f"no `op` beside {', '.join(keys)}" if keys else shown(spec)
        raise RecipeError(f"{hook}: {found}; one of {', '.join(_KEYS)} was expected", hint=_EXAMPLE)
    needed, allowed = _KEYS[op], _KEYS[op] | {"op", "pos", "heads"}
    if extra := set(spec) - allowed:
        raise RecipeError(f"{hook}: {op} with {', '.join(sorted(extra))}; it takes {', '.join(sorted(allowed))}")
    if missing := needed - set(spec):
        raise RecipeError(f"{hook}: {op} without {', '.join(missing)}")
    try:
        value = np.asarray(spec.get("value", spec.get("factor", 0.0)), np.float32)
    except (TypeError, ValueError) as e:
        raise RecipeError(f"{hook}: the {', '.join(needed)} of {op} is no array of numbers: {e}") from None
    if not np.isfinite(value).all():
        raise NumericsError(f"{hook}: the {', '.join(needed)} of {op} is not finite")
    if op == "scale" and value.ndim:
        raise RecipeError(f"{hook}: a factor of shape {value.shape}; one number was expected")
    heads = _whole(hook, "heads", spec.get("heads"))
    if heads is not None:
        if tap_of(hook)[0].shape not in ("heads", "pattern"):
            raise RecipeError(f"{hook} has no heads", hint="q, k, v, z and the pattern have.")
        if beyond := [head for head in heads if not 0 <= head < config.num_heads]:
            raise RecipeError(f"{hook}: head {beyond[0]}; heads are 0 to {config.num_heads - 1}")
    return Change(op, value, _whole(hook, "pos", spec.get("pos")), heads)


def _whole(hook: str, key: str, given: Any) -> tuple[int, ...] | None:
    if given is None:
        return None
    found = np.asarray(given)
    if found.dtype.kind not in "iu" or found.ndim > 1:
        raise RecipeError(f"{hook}: {key} {shown(given)}; a whole number, or a list of them, was expected")
    return tuple(map(int, found.reshape(-1)))


def carrier(hook: str) -> str:
    """Return what the graph calls the value that a hook is in: q, k and v are packed in one."""
    tap, layer = tap_of(hook)
    return f"blocks.{layer}.attn.qkv" if tap.name in ("attn.q", "attn.k", "attn.v") else hook


def inputs_of(hook: str) -> tuple[str, str]:
    """Return the names of the graph's scale and add for a hook."""
    return f"{carrier(hook)}.scale", f"{carrier(hook)}.add"


class Affine:
    """What is asked of one carrier, as `scale` and `add`, of the carrier's shape in one batch."""

    def __init__(self, hook: str, config: NeoXConfig, rows: int, tokens: int, keys: int) -> None:
        tap, h = tap_of(hook)[0], config.num_heads
        width = config.intermediate_size if tap.shape == "mlp" else config.hidden_size
        shape = (rows, tokens, 3 * width if carrier(hook) != hook else width)
        self._config = config
        self.scale = np.ones((rows, h, tokens, keys) if tap.shape == "pattern" else shape, np.float32)
        self.add = np.zeros_like(self.scale)

    def apply(self, hook: str, change: Change, row: int, tokens: np.ndarray) -> None:
        """Let `change` happen in one row, at these places among its tokens.

        Raises:
            RecipeError: its value does not fit.
        """
        scale, add = (self._region(hook, array[row]) for array in (self.scale, self.add))
        shape = tap_of(hook)[0].shape
        heads: Any = slice(None) if change.heads is None else np.array(change.heads)
        if shape == "heads":
            at: Any = (tokens[:, None], np.arange(self._config.num_heads)[heads][None])
        elif shape == "pattern":
            at = (np.arange(self._config.num_heads)[heads][:, None], tokens[None])
        else:
            at = (tokens,)
        value, wanted = change.value, shape_of_change(hook, change, len(tokens), scale.shape[-1], self._config)
        if value.ndim == len(wanted) + 1 and value.shape[0] == len(self.scale):
            value = value[row]
        value = stretched(hook, value, wanted)
        if change.op == "add":
            add[at] += value
        elif change.op == "scale":
            scale[at] *= value
            add[at] *= value
        else:
            scale[at], add[at] = 0.0, value

    def _region(self, hook: str, of_row: np.ndarray) -> np.ndarray:
        """The part of a row that a hook is, a view: [tokens, width], [tokens, heads, d_head], [heads, tokens, keys]."""
        tap = tap_of(hook)[0]
        if tap.shape != "heads":
            return of_row
        c = self._config
        parts = of_row.reshape(len(of_row), -1, c.num_heads, c.head_dim)
        return parts[:, "qkv".index(tap.name[-1]) if carrier(hook) != hook else 0]


def shape_of_change(hook: str, change: Change, tokens: int, keys: int, config: NeoXConfig) -> tuple[int, ...]:
    """Return the shape of what is changed in one text, at so many of its tokens."""
    heads = config.num_heads if change.heads is None else len(change.heads)
    match tap_of(hook)[0].shape:
        case "heads":
            return (tokens, heads, config.head_dim)
        case "pattern":
            return (heads, tokens, keys)
        case "mlp":
            return (tokens, config.intermediate_size)
        case _:
            return (tokens, config.hidden_size)


def stretched(hook: str, value: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    """Return a change's value as NumPy stretches it to a shape.

    Raises:
        RecipeError: it does not.
    """
    try:
        return np.broadcast_to(value, wanted)
    except ValueError:
        axes = {"heads": "tokens, heads, d_head", "pattern": "heads, tokens, keys"}
        raise RecipeError(
            f"{hook}: a value of shape {list(value.shape)}; a number, or what NumPy stretches to "
            f"{list(wanted)} ({axes.get(tap_of(hook)[0].shape, 'tokens, width')}), was expected"
        ) from None
