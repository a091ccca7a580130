"""What was read of many texts, in files: written as it comes, and taken up again where it stopped.

A folder has `trace.json`, which says what was asked, and shards ``00000.safetensors``, each of consecutive texts and
either whole or absent. In a shard every hook is one array, the texts' values one behind the other: ``blocks.3.hook_in``
[sum of P, d_model]. `rows` [texts + 1] int64 says where each text's begin, `tokens` and `starts` are the same for token
ids, `positions` [sum of P] names the tokens that were read. A pattern is a square of its own for each text,
``blocks.3.attn.hook_pattern/17`` [heads, P, T] of text 17.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..base.errors import IntegrityError, NumericsError, OutputError, ResourceError, SourceError
from ..base.progress import SILENT, Progress
from ..base.strict_json import read_json
from ..disk import explained, held
from ..disk.siblings import is_stale
from ..disk.write import write_atomically
from ..model.hooks import LOGITS, shape_of, tap_of
from ..model.neox import NeoXConfig
from ..records.record import Count, Record, Sha256, checked
from ..runtime.change import Spec
from ..runtime.taps import Positions, TapSession
from .texts import TextTrace, require_fit, trace_texts

TRACE = "trace.json"
SHARD_BYTES = 64 << 20  # of a shard's values, about: what is lost when it ends in the middle of one
Dtype = Literal["float32", "float16"]


class Asked(Record):
    """The content of trace.json: what a folder holds, or will when it is whole."""

    artifact: Sha256
    """SHA-256 of its tapped graph and weights, as its manifest names them."""
    hooks: list[str]
    """In the order of a pass."""
    positions: Literal["all", "last"] | list[int]
    changes: Sha256 | None
    """SHA-256 of what was changed; null for nothing."""
    dtype: Dtype
    texts: Sha256
    """SHA-256 of all token ids."""
    tokens: Count
    shards: list[Count]
    """The first text of each shard, and behind the last the number of texts."""


class Traces:
    """A folder of traces, read text by text: ``for seen in Traces.open("build/seen")``. Values are read when asked for.

    `len` is the number of texts that are there. `whole` says whether it is all of them.
    """

    def __init__(self, folder: Path, asked: Asked) -> None:
        self.folder = folder
        self.hooks = tuple(asked.hooks)
        self._asked = asked

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Raises:
        SourceError: no such folder, or one without trace.json.
        IntegrityError: trace.json is none of ours.
        """
        path = Path(folder)
        if not (path / TRACE).is_file():
            raise SourceError(f"{path}: no {TRACE}; a folder that `trace` wrote was expected")
        return cls(path, checked(Asked, read_json(path / TRACE), path / TRACE))

    @property
    def whole(self) -> bool:
        return len(self) == self._asked.shards[-1]

    def shards(self) -> list[Path]:
        """Return the files that are there, in the order of the texts."""
        return [path for i in range(len(self._asked.shards) - 1) if (path := _shard(self.folder, i)).is_file()]

    def __len__(self) -> int:
        bounds = self._asked.shards
        return sum(b - a for i, (a, b) in enumerate(zip(bounds, bounds[1:], strict=False)) if self._has(i))

    def __iter__(self) -> Iterator[TextTrace]:
        return (self[index] for i in range(len(self._asked.shards) - 1) if self._has(i) for index in self._texts(i))

    def __getitem__(self, index: int) -> TextTrace:
        """Return one text's trace; IndexError of one that is not there."""
        for shard in range(len(self._asked.shards) - 1):
            texts = self._texts(shard)
            if index in texts and self._has(shard):
                return self._read(shard, index, index - texts.start)
        raise IndexError(f"{self.folder}: no text {index}; it has {len(self):,}")

    def _has(self, shard: int) -> bool:
        return _shard(self.folder, shard).is_file()

    def _texts(self, shard: int) -> range:
        return range(self._asked.shards[shard], self._asked.shards[shard + 1])

    def _read(self, shard: int, index: int, at: int) -> TextTrace:
        path = _shard(self.folder, shard)
        try:
            with safe_open(path, "np") as file:
                start, end = file.get_tensor("starts")[at : at + 2].tolist()
                first, last = file.get_tensor("rows")[at : at + 2].tolist()
                values = {
                    hook: file.get_tensor(f"{hook}/{index}") if _by_text(hook) else file.get_slice(hook)[first:last]
                    for hook in self.hooks
                }
                ids = file.get_slice("tokens")[start:end]
                return TextTrace(index, ids, file.get_slice("positions")[first:last], values)
        except SafetensorError as e:
            raise IntegrityError(f"{path}: not a shard of a trace: {e}", hint="Delete it and trace again.") from e


def write_traces(
    session: TapSession,
    graph: str,
    texts: Sequence[np.ndarray],
    out: Path,
    positions: Positions = "all",
    changes: Mapping[str, Spec] | None = None,
    dtype: Dtype = "float32",
    progress: Progress = SILENT,
) -> Traces:
    """Write what `session` reads of each text, token ids [T], into the folder `out`; go on where an earlier call ended.

    `graph` is a SHA-256 that stands for graph and weights. Every file is whole, however this ends.

    Raises:
        RecipeError: a text that is empty or longer than the context, a position beyond one, a change that does not fit.
        OutputError: `out` holds something else, or the trace of something else; or it cannot be written.
        ResourceError: too little room on the disk, before or while it is written.
        NumericsError: a value is NaN or infinite, or too large for float16.
    """
    require_fit(texts, positions, session.config, changes)
    sizes = [_nbytes(session.hooks, session.config, len(text), positions, dtype) for text in texts]
    asked = Asked(
        artifact=graph,
        hooks=list(session.hooks),
        positions=positions if isinstance(positions, str) else [int(position) for position in positions],
        changes=_digest(changes) if changes else None,
        dtype=dtype,
        texts=_sum_of(texts),
        tokens=sum(map(len, texts)),
        shards=_bounds(sizes),
    )
    with explained(out, _GOES_ON), held(out):
        out.mkdir(parents=True, exist_ok=True)
        _require_same(out, asked)
        for stray in out.glob(".*.tmp-*"):  # of a process that was killed while it wrote
            if is_stale(stray):
                stray.unlink()
        left = [i for i in range(len(asked.shards) - 1) if not _shard(out, i).is_file()]
        needed = sum(sum(sizes[asked.shards[i] : asked.shards[i + 1]]) for i in left)
        _require_room(out, needed, progress)
        write_atomically(out / TRACE, (json.dumps(asked.to_json(), indent=2) + "\n").encode())
        with progress.track("Tracing", asked.tokens, "tokens") as advance:
            for i in range(len(asked.shards) - 1):
                group = texts[asked.shards[i] : asked.shards[i + 1]]
                if i not in left:
                    advance(sum(map(len, group)))
                    continue
                seen = []
                for trace in trace_texts(session, group, positions, changes, first=asked.shards[i]):
                    seen.append(trace)
                    advance(len(trace.tokens))
                write_atomically(_shard(out, i), save(_arrays(seen, dtype)))
    return Traces(out, asked)


_GOES_ON = "Free some space and give the same command again: it goes on behind the last file that is there."


def _arrays(seen: Sequence[TextTrace], dtype: Dtype) -> dict[str, np.ndarray]:
    found = {
        "tokens": np.concatenate([trace.tokens for trace in seen]),
        "starts": np.cumsum([0, *(len(trace.tokens) for trace in seen)]),
        "positions": np.concatenate([trace.positions for trace in seen]),
        "rows": np.cumsum([0, *(len(trace.positions) for trace in seen)]),
    }
    for hook in seen[0].values:
        if _by_text(hook):
            found |= {f"{hook}/{trace.index}": _stored(hook, trace, dtype) for trace in seen}
        else:
            found[hook] = np.concatenate([_stored(hook, trace, dtype) for trace in seen])
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def _stored(hook: str, trace: TextTrace, dtype: Dtype) -> np.ndarray:
    value = trace[hook]
    if dtype == "float16":
        largest = float(np.abs(value).max(initial=0.0))
        if largest > float(np.finfo(np.float16).max):
            raise NumericsError(
                f"text {trace.index}: {hook} reaches {largest:,.0f}; float16 ends at 65,504",
                hint="Store this place in float32. The files that are there stay as they are.",
            )
    return value.astype(dtype)


def _by_text(hook: str) -> bool:
    """Whether its values have an axis that is as long as a text."""
    return hook != LOGITS and tap_of(hook)[0].shape == "pattern"


def _nbytes(hooks: Sequence[str], config: NeoXConfig, tokens: int, positions: Positions, dtype: Dtype) -> int:
    taken = tokens if positions == "all" else 1 if positions == "last" else len(positions)
    numbers = sum(math.prod(shape_of(hook, config, 1, taken, tokens)) for hook in hooks)
    return numbers * np.dtype(dtype).itemsize + 8 * (tokens + taken)


def _bounds(sizes: Sequence[int]) -> list[int]:
    """Where shards begin: as many texts as `SHARD_BYTES` hold, one at least."""
    bounds, held_now = [0], 0
    for index, size in enumerate(sizes):
        if index > bounds[-1] and held_now + size > SHARD_BYTES:
            bounds.append(index)
            held_now = 0
        held_now += size
    return [*bounds, len(sizes)]


def _require_same(out: Path, asked: Asked) -> None:
    there = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    if not there:
        return
    if TRACE not in there:
        raise OutputError(f"{out} holds {', '.join(there[:3])} and is no folder of `trace`", hint="Choose another.")
    earlier = checked(Asked, read_json(out / TRACE), out / TRACE)
    then, now = earlier.to_json(), asked.to_json()
    if differing := [key for key in now if then.get(key) != now[key]]:
        raise OutputError(
            f"{out} holds the trace of something else: {', '.join(differing)} differ",
            hint="Choose another folder, or remove this one.",
        )


def _require_room(out: Path, needed: int, progress: Progress) -> None:
    free = shutil.disk_usage(out).free
    progress.note(f"{needed / 1e6:,.1f} MB will be written to {out}; {free / 1e6:,.0f} MB are free there.")
    if needed > free:
        raise ResourceError(
            f"{out}: {needed:,} bytes are to be written, and {free:,} are free",
            hint="Capture fewer places, read positions = 'last', store float16, or choose another disk.",
        )


def _shard(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.safetensors"


def _sum_of(texts: Sequence[np.ndarray]) -> str:
    whole = hashlib.sha256()
    for text in texts:
        whole.update(len(text).to_bytes(8, "little") + np.ascontiguousarray(text, np.int64).tobytes())
    return whole.hexdigest()


def _digest(changes: Mapping[str, Spec]) -> str:
    def plain(value: Any) -> Any:
        return value.tolist() if hasattr(value, "tolist") else str(value)

    return hashlib.sha256(json.dumps(changes, sort_keys=True, default=plain).encode()).hexdigest()
