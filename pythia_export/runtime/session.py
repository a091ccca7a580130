"""An ONNX Runtime session whose KV cache is bound in place.

Two kinds of graph, told apart by the manifest's `layout.kv_cache`:

- "shared": one buffer [B, heads, max_len, head_dim] a layer and part is bound as past and as present; attention
  writes the new keys and values behind the valid ones. How many are valid, the graph reads from the mask's length.
- "growing": present is past + new, allocated by ONNX Runtime; one step's present is the next step's past.

Either way the cache never passes through Python: a step copies token ids in and logits out (runtime/cache.py).

Two speeds of the same graph: where it calls pythia.RotaryAttention (and pythia.LinearNBits) and the native kernels are
built, they compute it; elsewhere ONNX Runtime takes the functions that the graph carries. `Session.speed` says which,
`Session.why` why.

Left padding: the mask tells the real tokens, and a token's position counts the real tokens before it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..base.errors import EnvironmentProblem, IntegrityError, RecipeError, ResourceError
from ..model.neox import NeoXConfig, cache_bytes, cache_parts
from .cache import LOGITS, Buffer, Cache, Memory, zeros_in_one
from .finite import all_finite, require_finite
from .graph import KEEP, OPERATORS, read_graph, require_files, require_ours, settable
from .onnxruntime import Provider, is_memory, onnxruntime, open_graph
from .snapshot import as_blobs
from .speed import MODEL, provider_of, speed_of

if TYPE_CHECKING:
    from ..artifact import Artifact

_FEWER = "Use fewer rows or fewer tokens."
_TOKENS = ("input_ids", "attention_mask", "position_ids")


class Session:
    """One graph, opened. `load_seconds` is the time that took; `providers` are those in use, the first preferred.
    `speed` is "native", "function" or, for a graph without an operator of ours, "stock"; `why` explains it.

    `Session(model, folder, config, ...)` opens a graph that need not be published: `model` is its bytes or its path,
    `folder` holds the files that its external tensors name; where `named` is given, these alone. `native` False leaves
    our kernels out. `trust_graph` True lets the graph hold operators that we do not write.

    Raises:
        EnvironmentProblem: the kernels are built and do not load, both ONNX Runtime distributions are installed, or one
            that is too old, or the provider is not to be had.
        IntegrityError: the graph is garbled, holds an operator that we do not write, or names data outside the folder
            (all of which is found before ONNX Runtime sees it); ONNX Runtime refuses the graph; or its inputs and
            outputs are not the configuration's.
        ResourceError: there is no memory for its weights.
    """

    inputs: tuple[str, ...] = (*_TOKENS, KEEP)  # of the graph, and its outputs, beside the cache
    outputs: tuple[str, ...] = ("logits",)
    operators: frozenset[tuple[str, str]] = OPERATORS  # that it may hold: (domain, name)

    def __init__(
        self,
        model: bytes | Path,
        folder: Path,
        config: NeoXConfig,
        *,
        kv_cache: str,
        kv_dtype: str = "float32",
        threads: int | None = None,
        provider: Provider = "cpu",
        native: bool = True,
        named: Collection[str] | None = None,
        trust_graph: bool = False,
    ) -> None:
        if kv_cache not in ("shared", "growing") or kv_dtype not in ("float32", "float16", "int8"):
            raise IntegrityError(
                f"{folder}: kv_cache {kv_cache!r} of {kv_dtype!r}; shared or growing of float32, float16 or int8 was "
                "expected"
            )
        began = time.perf_counter()
        self.config = config
        self.kv_cache = kv_cache
        self.kv_dtype = np.dtype(kv_dtype)
        self._ort = onnxruntime()
        graph = model if isinstance(model, bytes) else model.read_bytes()
        where = f"{folder} (graph)" if isinstance(model, bytes) else str(model)
        contents = read_graph(graph, where)
        require_files(contents, folder, named, where)
        if not trust_graph:
            require_ours(contents, where, self.operators)
        graph = settable(graph, contents)
        self.keeps = KEEP in contents.inputs | contents.initializers  # tools that fold constants take it out
        self.speed, self.why, library = speed_of(graph, provider, native)
        # GroupQueryAttention rotates by the place in the cache, where it rotates by itself (graph/ops.py).
        self._rotates_by_place = self.speed != "native" and b"do_rotary" in graph and config.rotary_dim % 16 == 0
        self._memory = Memory(self._ort, provider)
        self._vocabulary = config.vocab_size
        self._session = open_graph(self._ort, *as_blobs(graph, folder), threads, provider, library)
        self.providers: list[str] = self._session.get_providers()
        # Codes of int8 whose scales are constants of the graph have no inputs for them (graph/cache_scales.py).
        self.static_scales = kv_dtype == "int8" and "past_key_values.0.key_scale" not in contents.inputs
        names = cache_parts(kv_dtype, self.static_scales)
        parts = [f"{layer}.{part}" for layer in range(config.num_layers) for part in names]
        self._present_of = {f"past_key_values.{part}": f"present.{part}" for part in parts}
        self._check_interface(folder)
        self.load_seconds = time.perf_counter() - began

    @classmethod
    def open(
        cls,
        artifact: Artifact,
        *,
        threads: int | None = None,
        accuracy_level: int | None = None,
        model_bytes: bytes | None = None,
        provider: Provider | None = None,
        native: bool = True,
        trust_graph: bool = False,
    ) -> Self:
        """Open a published artifact on the provider its recipe targets, or on `provider`.

        `accuracy_level` None is as shipped. Another one needs another graph, given as `model_bytes`; editing graphs
        takes onnx, which the runtime does without.
        """
        export = artifact.recipe.export
        if model_bytes is None and accuracy_level not in (None, export.accuracy_level):
            raise ValueError(
                f"the artifact ships accuracy level {export.accuracy_level}; level {accuracy_level} needs model_bytes"
            )
        layout = artifact.manifest.layout
        return cls(
            artifact.file(MODEL) if model_bytes is None else model_bytes,
            artifact.folder,
            artifact.config,
            kv_cache=layout.kv_cache,
            kv_dtype=layout.kv_dtype,
            threads=threads,
            provider=provider or provider_of(artifact),
            native=native,
            named=artifact.manifest.files,
            trust_graph=trust_graph,
        )

    def logits(self, ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        """Logits [B, S, V] float32 of `ids` [B, S] int64 with nothing before them; the mask [B, S] is 1 or 0."""
        batch, length = _two_dimensions(ids)
        return self.step(self.start(batch, length), ids, attention_mask)

    def start(self, batch: int, max_len: int) -> Cache:
        """An empty cache for `batch` rows of up to `max_len` tokens, padding included.

        Raises:
            RecipeError: `max_len` exceeds the positions that the model was trained on.
            ResourceError: the cache does not fit into memory.
        """
        if batch < 1 or max_len < 1:
            raise ValueError(f"a cache of {batch} rows of {max_len} tokens")
        if max_len > self.config.max_positions:
            raise RecipeError(
                f"{max_len:,} tokens of context; this model has {self.config.max_positions:,} positions",
                hint="Shorten the prompt or ask for fewer new tokens.",
            )
        room = max_len if self.kv_cache == "shared" else 0
        shape = (batch, self.config.num_heads, room, self.config.head_dim)
        kinds = {past: past.endswith("_scale") for past in self._present_of}
        forms = {
            past: (shape[:3], np.dtype(np.float32)) if of else (shape, self.kv_dtype) for past, of in kinds.items()
        }
        try:
            # Zeros and not garbage: attention multiplies what it masks by zero, and zero times NaN is NaN.
            arrays = zeros_in_one(forms)
            binding = self._session.io_binding()
            return Cache(batch, max_len, arrays, self._present_of, binding, self._memory, self.kv_cache == "growing")
        except (MemoryError, OSError, OverflowError, RuntimeError) as e:
            nbytes = cache_bytes(self.config, self.kv_dtype.name, batch * room, self.static_scales)
            raise ResourceError(f"no memory for a KV cache of {nbytes:,} bytes: {e}", hint=_FEWER) from e

    def step(
        self, cache: Cache, ids: np.ndarray, mask: np.ndarray | None = None, *, keep: int | None = None
    ) -> np.ndarray:
        """Append `ids` [B, T] int64 to the cache; return their logits [B, T, V] float32, or those of the last `keep`.

        `mask` [B, T] is of these tokens alone (the cache remembers the earlier ones'): 0 for padding. None: all real.

        Raises:
            RecipeError: the cache has no room for T more tokens.
            NumericsError: a logit is NaN or infinite.
            EnvironmentProblem: padding lies between a row's tokens, which ONNX Runtime's own attention gets wrong.
        """
        batch, new = _two_dimensions(ids)
        kept = new if keep is None else min(keep, new)
        if kept < 1:
            raise ValueError(f"logits of the last {keep} tokens; 1 or more was expected")
        try:
            logits = Buffer(self._memory, np.empty((batch, kept if self.keeps else new, self._vocabulary), np.float32))
        except (MemoryError, RuntimeError) as e:
            raise ResourceError(f"no memory for the logits of {batch} rows of {kept} tokens: {e}", hint=_FEWER) from e
        cache.bind({}, {LOGITS: logits.value})
        self._advance(cache, ids, mask, kept)
        found = logits.read()
        return require_finite(found[:, found.shape[1] - kept :], cache.mask[:, -kept:])

    def decode(self, cache: Cache, tokens: Sequence[int], *, unchecked: bool = False) -> np.ndarray:
        """Append one token to each row; return what may follow it, logits [B, V] float32. Raises as `step`.

        The next call writes over them: the buffer is the cache's own. `unchecked` logits may be NaN or infinite: the
        caller finds that where it reads them anyway.
        """
        count = self._vocabulary
        unfit = len(tokens) != cache.batch or cache.length == cache.max_len
        if unfit or (cache.padded and self._rotates_by_place) or min(tokens) < 0 or max(tokens) >= count:
            self._check_step(cache, np.array(tokens, np.int64)[:, None], None)
        logits = cache.feed_single(tokens, count)
        if self.keeps:
            cache.bind_keep(KEEP, 1, self._count)
        self._run(cache, 1)
        found = logits.read()
        if not unchecked and not all_finite(found):
            require_finite(found, cache.mask[:, -1:])
        return found[:, 0]

    def _advance(self, cache: Cache, ids: np.ndarray, mask: np.ndarray | None, kept: int) -> None:
        """Append `ids` to the cache; what is wanted of the last `kept` tokens is bound already."""
        self._check_step(cache, ids, mask)
        cache.feed(ids, mask)
        if self.keeps:
            cache.bind_keep(KEEP, kept, self._count)
        self._run(cache, ids.shape[1])

    def _run(self, cache: Cache, new: int) -> None:
        """Compute what is bound: `new` tokens a row, which are part of the cache then."""
        try:
            self._session.run_with_iobinding(cache.binding)
        except Exception as e:  # a class of ONNX Runtime's own, by the status of the node
            if is_memory(e):
                raise ResourceError(f"no memory to run {cache.batch} rows of {new} tokens: {e}", hint=_FEWER) from e
            if self._memory.device == "cuda" and "CUDA" in str(e):
                raise EnvironmentProblem(f"the GPU failed: {e}", hint="Check `nvidia-smi` and the driver.") from e
            raise IntegrityError(
                f"ONNX Runtime {self._ort.__version__} opened the graph and cannot run it: {e}",
                hint="Copy the artifact again, or export it again.",
            ) from e
        cache.advance(new)

    def _count(self, kept: int) -> Any:
        """A number for a graph to read, on the CPU."""
        return self._ort.OrtValue.ortvalue_from_numpy(np.array(kept, np.int64))

    @property
    def moves_rows(self) -> bool:
        """Whether keys mean the same in every column, so that rows may join a cache in the middle."""
        return not self._rotates_by_place

    def _check_step(self, cache: Cache, ids: np.ndarray, mask: np.ndarray | None) -> None:
        batch, new = ids.shape
        if batch != cache.batch or new < 1:
            raise ValueError(f"ids of shape {ids.shape}; [{cache.batch}, 1 or more] was expected")
        if cache.length + new > cache.max_len:
            raise RecipeError(
                f"the cache has room for {cache.max_len:,} tokens and holds {cache.length:,}; {new:,} more do not fit"
            )
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise IntegrityError(
                f"token ids {ids.min()} to {ids.max()}; the model's vocabulary is 0 to {self.config.vocab_size - 1}",
                hint="Does the tokenizer belong to this model?",
            )
        if mask is not None:
            if mask.shape != ids.shape or not np.isin(mask, (0, 1)).all():
                raise ValueError(f"a mask of 0 and 1 of the ids' shape {ids.shape} was expected, not {mask.shape}")
            if not ((cache.counts > 0) | mask.any(axis=1)).all():
                raise ValueError("a row of padding alone")
        if self._rotates_by_place:
            after_padding = cache.ends_in_padding.astype(np.int64)  # how often tokens begin behind padding
            if mask is not None:
                before = np.concatenate([1 - after_padding[:, None], mask], axis=1)
                after_padding = (np.diff(before, axis=1) > 0).sum(axis=1)
            again = after_padding > (cache.counts == 0)
            if again.any():
                raise EnvironmentProblem(
                    f"row {again.argmax()} has padding between its tokens; at {self.speed} speed ({self.why}) it has "
                    "to come before them all",
                    hint="Pad on the left of the first step alone, use the native kernels (`make kernels`), or export "
                    "with rotary = 'onnx'.",
                )

    def _check_interface(self, folder: Path) -> None:
        graph = self._session
        values = (*graph.get_inputs(), *graph.get_overridable_initializers(), *graph.get_outputs())
        found = {value.name for value in values}
        inputs = {name for name in self.inputs if name != KEEP or self.keeps}
        expected = {*inputs, *self.outputs, *self._present_of, *self._present_of.values()}
        if found != expected:
            missing, extra = sorted(expected - found), sorted(found - expected)
            raise IntegrityError(
                f"{folder}: the graph does not match a {self.config.num_layers}-layer config.json; "
                f"missing {', '.join(missing) or 'nothing'}, not expected {', '.join(extra) or 'nothing'}",
                hint="Made by another version? `pythia-export export` builds the graph anew over the same weights.",
            )
        cached = next(value for value in graph.get_inputs() if value.name == "past_key_values.0.key")
        wanted = f"tensor({'float' if self.kv_dtype == np.float32 else self.kv_dtype.name})"
        if cached.type != wanted:
            raise IntegrityError(
                f"{folder}: the graph caches {cached.type}, its manifest says {wanted}",
                hint="Has manifest.json been edited? `pythia-export export` writes both anew.",
            )


def check_graph(artifact: Artifact) -> None:
    """Look at an artifact's graph as `Session` does: for those who give it to others to open.

    Raises:
        IntegrityError: it is garbled, holds an operator that we do not write, or names data outside the artifact.
    """
    path = artifact.file(MODEL)
    contents = read_graph(path.read_bytes(), str(path))
    require_files(contents, artifact.folder, artifact.manifest.files, str(path))
    require_ours(contents, str(path))


def check_runnable(artifact: Artifact) -> None:
    """Read all that `generate` reads before it opens a session: graph, generation settings, tokenizer.

    Raises:
        IntegrityError: one of them is not what pythia-export writes; the file is named.
    """
    if artifact.has_graph:
        check_graph(artifact)
    _ = artifact.generation
    if "tokenizer.json" in artifact.manifest.files:
        artifact.tokenizer()


def _two_dimensions(ids: np.ndarray) -> tuple[int, int]:
    if ids.ndim != 2 or ids.dtype != np.int64:
        raise ValueError(f"ids of shape {ids.shape} and dtype {ids.dtype}; [batch, tokens] int64 was expected")
    return ids.shape[0], ids.shape[1]
