"""A session that reads values from inside the model, and changes them: the tapped graph of an artifact, opened for what
is asked of it. Names and shapes are those of `model/hooks.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ..artifact import Artifact
from ..base.errors import NumericsError, RecipeError, ResourceError, SourceError
from ..model.hooks import GROUPS, LOGITS, hooks_of, shape_of, tap_of
from ..model.neox import NeoXConfig
from ..weights.names import TAPS
from .cache import Buffer, Cache
from .change import CHOSEN, Affine, Change, Spec, carrier, changes_of, inputs_of
from .pruned import Parts, pruned, read_parts
from .session import Session, _two_dimensions
from .speed import provider_of

POSITIONS, TURNS = "tap_positions", "tap_turns"
Positions = Literal["all", "last"] | Sequence[int]


class NotFinite(NumericsError):
    """A value that was read is NaN or infinite: the first is at a row of the batch, at the `read`-th that was read of
    it, padding aside."""

    def __init__(self, hook: str, row: int, read: int, dtype: np.dtype[Any]) -> None:
        self.hook, self.row, self.read, self.dtype = hook, row, read, dtype
        half = "This graph computes in float16, whose largest number is 65,504: export with dtype = 'float32'. "
        super().__init__(
            f"{hook} is not finite in row {row}, first at {read} of the tokens that are read of it, from 0",
            hint=f"{half if dtype == np.float16 else ''}A change may be too large.",
        )


class TapSession(Session):
    """The tapped graph, cut to the places that are read and those that may be changed.

    `TapSession(artifact, ["resid", "attn.pattern"])`. capture: taps, groups or hooks, and `logits`; `hooks` are the
    places that they stand for, in the order of a pass. change: the hooks that `read` may be given changes for. `graph`:
    the bytes of a tapped graph over the artifact's weights, in place of its own.

    Raises:
        RecipeError: a name that is no place of this model; a place that this artifact's graph does not give.
        SourceError: the artifact has no tapped graph.
        And as `Session`.
    """

    operators = Session.operators | {("", "GatherND")}

    def __init__(
        self,
        artifact: Artifact,
        capture: Iterable[str],
        change: Iterable[str] = (),
        *,
        graph: bytes | None = None,
        threads: int | None = None,
        native: bool = True,
        trust_graph: bool = False,
    ) -> None:
        capture, change = _names(capture), _names(change)
        where = f"{artifact.folder} (tapped graph)"
        parts = tapped(artifact, (*capture, *change)) if graph is None else read_parts(graph, where)
        self.hooks = _given(artifact, parts, capture, artifact.config)
        self.changed = _given(artifact, parts, change, artifact.config)
        settable = dict.fromkeys(name for hook in self.changed for name in inputs_of(hook))
        rewired = {f"{h}/choice": f"{h}/changed" for h in self.changed if tap_of(h)[0].name in CHOSEN}
        cut = pruned(parts, self.hooks, settable, rewired)
        left = read_parts(cut, where)
        self.settable = tuple(name for name in settable if name in left.inputs)
        self.inputs = (*Session.inputs, *(n for n in (POSITIONS, TURNS) if n in left.inputs), *self.settable)
        self.outputs = self.hooks
        self._turns = TURNS in left.inputs
        self._picks = POSITIONS in left.inputs
        layers = len({name.split(".")[1] for name in left.outputs if name.startswith("present.")})
        layout = artifact.manifest.layout
        super().__init__(
            cut, artifact.folder, replace(artifact.config, num_layers=layers), kv_cache=layout.kv_cache,
            kv_dtype=layout.kv_dtype, threads=threads, provider=provider_of(artifact), native=native,
            named=artifact.manifest.files, trust_graph=trust_graph,
        )  # fmt: skip
        self.config = artifact.config
        self.dtype = np.dtype(artifact.recipe.export.dtype)

    def read(
        self,
        ids: np.ndarray,
        mask: np.ndarray | None = None,
        positions: Positions = "all",
        changes: Mapping[str, Spec] | None = None,
        cache: Cache | None = None,
    ) -> dict[str, np.ndarray]:
        """Run `ids` [B, T] int64 and return the value of each hook, float32 (float16 of such a graph).

        Shapes: [B, P, d_model], [B, P, heads, d_head], [B, P, d_mlp], [B, P, vocab] of logits, and of patterns
        [B, heads, P, K]. P: T places with "all", which are those of `ids`, padding included; 1 with "last"; else as
        many as `positions` names, each counted in every row from its first token that is no padding, or from its end
        where it is negative. K: all tokens so far. mask [B, T] is 0 at padding, which is on the left.

        changes: by hook, what `change.changes_of` takes. `cache` (of `start`) has the tokens before, and gets these.

        Raises:
            RecipeError: a position beyond a row; a change of a hook that the session was not opened for, or that does
                not fit.
            NumericsError: a value that is read is NaN or infinite, or one that is set does not fit into float16.
        """
        batch, new = _two_dimensions(ids)
        mask = np.ones_like(ids) if mask is None else mask
        cache = self.start(batch, new) if cache is None else cache
        wanted: dict[str, tuple[Change, ...]] = {}
        for name, spec in (changes or {}).items():
            for hook in hooks_of([name], self.config):  # an older name, or a tap: of every layer
                wanted[hook] = wanted.get(hook, ()) + changes_of(hook, spec, self.config)
        if beyond := [hook for hook in wanted if hook not in self.changed]:
            raise RecipeError(f"{beyond[0]}: this session was not opened for changes of it")
        places = self._places(mask, positions)  # [B, P]
        # A pattern that may be changed is multiplied by all values: the graph needs all of it.
        whole = any(tap_of(hook)[0].name == "attn.pattern" for hook in self.changed)
        asked = np.tile(np.arange(new), (batch, 1)) if whole else places
        keys = cache.length + new
        shapes = {hook: shape_of(hook, self.config, batch, asked.shape[1], keys) for hook in self.hooks}
        kept = new if positions == "all" or not isinstance(positions, str) else 1
        if LOGITS in shapes:
            shapes[LOGITS] = (batch, kept if self.keeps else new, self.config.vocab_size)
        try:
            empty = {h: np.empty(s, np.float32 if h == LOGITS else self.dtype) for h, s in shapes.items()}
            buffers = {hook: Buffer(self._memory, array) for hook, array in empty.items()}
        except (MemoryError, RuntimeError) as e:
            raise ResourceError(
                f"no memory for what is read of {batch} rows of {new} tokens: {e}",
                hint="Read fewer places or positions, or fewer rows at once.",
            ) from e
        inputs = {name: array.astype(self.dtype) for name, array in self._affine(wanted, mask, keys).items()}
        if self._picks:
            inputs[POSITIONS] = np.ascontiguousarray(asked, np.int64)
        if self._turns:
            total = np.concatenate([cache.mask, mask], axis=1)
            turns = np.arange(keys)[None].repeat(batch, 0) if self._rotates_by_place else total.cumsum(1) - 1
            inputs[TURNS] = np.take_along_axis(np.clip(turns, 0, None)[:, cache.length :], asked, 1)
        values = {name: self._memory.value(np.ascontiguousarray(array)) for name, array in inputs.items()}
        cache.bind(values, {hook: buffer.value for hook, buffer in buffers.items()})
        self._advance(cache, ids, mask, kept)
        found = {hook: self._chosen(hook, buffer.read(), places, whole, new) for hook, buffer in buffers.items()}
        self._require_finite(found, np.take_along_axis(mask, places, 1))
        return found

    def _chosen(self, hook: str, value: np.ndarray, places: np.ndarray, whole: bool, new: int) -> np.ndarray:
        """Take what was asked for out of what the graph gave of more tokens."""
        axis = 2 if value.ndim == 4 and tap_of(hook)[0].shape == "pattern" else 1
        if hook == LOGITS:
            places = places - (new - value.shape[1])
        elif not whole:
            return value
        if value.shape[axis] == places.shape[1]:
            return value
        at = places.reshape([len(places), *([1] * (axis - 1)), -1, *([1] * (value.ndim - axis - 1))])
        return np.take_along_axis(value, at, axis)

    def _places(self, mask: np.ndarray, positions: Positions) -> np.ndarray:
        """Indices [B, P] among the tokens."""
        rows, new = mask.shape
        if isinstance(positions, str):
            if positions not in ("all", "last"):
                raise RecipeError(f"positions {positions!r}; 'all', 'last' or a list of numbers was expected")
            return np.tile(np.arange(new) if positions == "all" else [new - 1], (rows, 1))
        return np.array([places_of(positions, row) for row in mask], np.int64)

    def _require_finite(self, found: Mapping[str, np.ndarray], real: np.ndarray) -> None:
        """NotFinite where a value of a real token is NaN or infinite; `real` [B, P] is 0 at padding."""
        for hook, value in found.items():
            with np.errstate(all="ignore"):
                if np.isfinite(value.sum(dtype=np.float32)):  # one pass; a sum may overflow where no term did
                    continue
            by_token = np.isfinite(value).all(-1)
            if value.ndim == 4:  # heads of a token, or tokens of a head
                by_token = by_token.all(1 if tap_of(hook)[0].shape == "pattern" else 2)
            bad = ~by_token & (real != 0)
            if bad.any():
                row, at = np.argwhere(bad)[0]
                raise NotFinite(hook, int(row), int(real[row, :at].sum()), self.dtype)

    def _affine(self, wanted: Mapping[str, Sequence[Change]], mask: np.ndarray, keys: int) -> dict[str, np.ndarray]:
        carriers: dict[str, Affine] = {}
        for hook, several in wanted.items():
            affine = carriers.get(carrier(hook)) or Affine(hook, self.config, len(mask), mask.shape[1], keys)
            carriers[carrier(hook)] = affine
            for change in several:
                for row, real in enumerate(mask):
                    affine.apply(hook, change, row, places_of(change.positions, real))
        found: dict[str, np.ndarray] = {}
        for name, affine in carriers.items():
            found |= {f"{name}.scale": affine.scale, f"{name}.add": affine.add}
        if self.dtype == np.float16 and any(np.abs(array).max() > np.finfo(np.float16).max for array in found.values()):
            raise NumericsError(
                "a change does not fit into float16, in which this graph computes",
                hint="Its largest number is 65,504. Export with dtype = 'float32' for larger ones.",
            )
        idle = {name: np.ones(()) if name.endswith(".scale") else np.zeros(()) for name in self.settable}
        return idle | {name: array for name, array in found.items() if name in self.settable}


def places_of(positions: Sequence[int] | None, real: np.ndarray) -> np.ndarray:
    """Where in a row some of its tokens are: `real` [T] is 0 at padding. None is all of them.

    Raises:
        RecipeError: a position beyond the text.
    """
    tokens = np.flatnonzero(real)
    if positions is None:
        return tokens
    for position in positions:
        if not -len(tokens) <= position < len(tokens):
            raise RecipeError(
                f"position {position} of a text of {len(tokens):,} tokens; 0 to {len(tokens) - 1:,} was expected, or "
                "as far back from the end: -1 is the last"
            )
    return tokens[np.array(positions, np.int64)]


def _names(given: Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def tapped(artifact: Artifact, asked: Iterable[str] = ("resid",)) -> Parts:
    """Take the tapped graph of an artifact apart.

    Raises:
        SourceError: it has none; says what makes one for the places that are asked for.
    """
    if TAPS not in artifact.manifest.files:
        names = [name for name in asked if name != LOGITS]
        needed = ",".join(dict.fromkeys(n if n in GROUPS else tap_of(h)[0].name for n in names
                                        for h in hooks_of([n], artifact.config))) or "resid"  # fmt: skip
        raise SourceError(
            f"{artifact.folder} has no taps: no {TAPS}, the graph that gives values from inside the model",
            hint=f"`pythia-export export {artifact.folder} --taps {needed}` adds one, over the same weights.",
        )
    path = artifact.file(TAPS)
    return read_parts(path.read_bytes(), str(path))


def _given(artifact: Artifact, parts: Parts, asked: Sequence[str], config: NeoXConfig) -> tuple[str, ...]:
    """The hooks that names stand for, of those that this artifact's graph gives."""
    hooks = hooks_of((name for name in asked if name != LOGITS), config)
    if lacking := [hook for hook in hooks if hook not in parts.outputs]:
        has = dict.fromkeys(tap_of(hook)[0].name for hook in parts.outputs if "hook" in hook)
        needed = dict.fromkeys([*has, *(tap_of(hook)[0].name for hook in lacking)])
        raise RecipeError(
            f"{artifact.folder}: its {TAPS} does not give {lacking[0]}; it has {', '.join(has) or 'no place'}",
            hint=f"`pythia-export export {artifact.folder} --taps {','.join(needed)}` makes one that does.",
        )
    return (*hooks, LOGITS) if LOGITS in asked else hooks
