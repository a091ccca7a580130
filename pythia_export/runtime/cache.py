"""The KV cache of one batch, and what a step reads and gives beside it.

The tokens of every row end in one column, the last that is valid. A shorter row begins later, behind padding. So rows
can leave, and rows that were computed elsewhere can join.

A step of one token a row costs Python the same whatever the context. Ids, positions and logits have buffers that stay
bound. Where no row has padding the mask is ones: its OrtValues are made ahead, some at a time, since after a run of
the model whatever Python does is out of the processor's cache and costs several times what it does in a loop; the
session keeps them for other texts. Only where rows have padding the mask is copied, 8 bytes a column and row: ONNX
Runtime takes no strides.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

_LINE = 64  # bytes of a line of a processor's cache
_LARGE = 1 << 16  # bytes from which on memory comes from the system, page by page
_AHEAD = 32  # masks that are made at a time
_MASKS = 4096  # that a session keeps
LOGITS = "logits"


class Memory:
    """Where a session's tensors are: on the CPU in the arrays' own memory, on a GPU in copies."""

    def __init__(self, ort: Any, device: str) -> None:
        self.device = device
        self.copies = device != "cpu"
        self._ort_value = ort.OrtValue
        self._ones: dict[tuple[int, int], Any] = {}  # by rows and columns
        self._flat = np.ones(0, np.int64)  # what all of those are parts of

    def value(self, array: np.ndarray) -> Any:
        """An OrtValue."""
        return self._ort_value.ortvalue_from_numpy(array, self.device)

    def ones(self, rows: int, columns: int, ahead: int = 1) -> Any:
        """An OrtValue of a mask of ones, [rows, columns]. It stays for other texts, and `ahead` are made at once."""
        found = self._ones.get((rows, columns))
        if found is not None:
            return found
        if self.copies:
            return self.value(np.ones((rows, columns), np.int64))
        if len(self._ones) >= _MASKS:
            self._ones.clear()
        if self._flat.size < rows * (columns + ahead):
            self._flat = np.ones(2 * rows * (columns + ahead), np.int64)
        made = {(rows, n): self.value(self._flat[: rows * n].reshape(rows, n)) for n in range(columns, columns + ahead)}
        self._ones.update(made)
        return made[rows, columns]


class Buffer:
    """An array that a graph reads or writes at every step."""

    def __init__(self, memory: Memory, array: np.ndarray) -> None:
        self.array = array
        self.value = memory.value(array)
        self._copied = memory.copies

    def written(self) -> None:
        """Hand the array's new contents to the graph."""
        if self._copied:
            self.value.update_inplace(self.array)

    def read(self) -> np.ndarray:
        """Return what the graph wrote."""
        return np.asarray(self.value.numpy()) if self._copied else self.array


class Single:
    """What a step of one token a row reads and gives: ids and positions [B, 1], logits [B, 1, V]."""

    def __init__(self, memory: Memory, rows: int, vocabulary: int) -> None:
        self.ids, self.positions = (Buffer(memory, np.empty((rows, 1), np.int64)) for _ in range(2))
        self.logits = Buffer(memory, np.empty((rows, 1, vocabulary), np.float32))
        self.rows = rows
        self.inputs = {"input_ids": self.ids.value, "position_ids": self.positions.value}
        self.outputs = {LOGITS: self.logits.value}


class Cache:
    """Keys and values of `batch` rows: room for `max_len` columns, of which `length` are valid.

    `arrays` are zeros by the name of the graph's input, [B, heads, max_len, head_dim], scales without the last axis; of
    a cache that `grows` max_len is 0 in them. `present_of` names the output of each.
    """

    def __init__(
        self,
        batch: int,
        max_len: int,
        arrays: Mapping[str, np.ndarray],
        present_of: Mapping[str, str],
        binding: Any,
        memory: Memory,
        grows: bool,
    ) -> None:
        self.batch = batch
        self.max_len = max_len
        self.length = 0
        self.binding = binding
        self.grows = grows
        self.padded = False  # whether a column of a row is padding
        self._present_of = present_of
        self._memory = memory
        self._mask = np.ones((batch, max_len), np.int64)  # ones, unless there is padding
        self._inputs: dict[str, Any] = {}  # OrtValues that are bound
        self._pads = np.zeros(batch, np.int64)  # columns of padding of each row
        self._fed_pads: np.ndarray | None = None
        self._bound: object = None  # whose ids, positions and logits are bound
        self._single: Single | None = None
        self._keeps = 0  # what num_logits_to_keep is bound to
        self._arrays = {} if grows or memory.copies else dict(arrays)  # of every row; the first `batch` are bound
        self._bind_values({past: memory.value(array) for past, array in arrays.items()})
        if grows:
            self._let_outputs_grow()

    @property
    def mask(self) -> np.ndarray:
        """[B, length] int64: 1 for a real token, 0 for padding."""
        return self._mask[: self.batch, : self.length]

    @property
    def counts(self) -> np.ndarray:
        """[B] int64: tokens of each row, without padding."""
        return self.length - self._pads[: self.batch]

    @property
    def ends_in_padding(self) -> np.ndarray:
        """[B] bool: whether a row's last column is padding, as is that of an empty row."""
        return self._mask[: self.batch, self.length - 1] == 0 if self.length else np.ones(self.batch, np.bool_)

    @property
    def movable(self) -> bool:
        """Whether rows can leave, join and be moved: not where only a GPU can reach the buffer."""
        return self.grows or bool(self._arrays)

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
        """Bind what the next step reads and gives beside the cache: OrtValues by name."""
        for name, value in inputs.items():
            self._bind_input(name, value)
        for name, value in outputs.items():
            self.binding.bind_ortvalue_output(name, value)
        self._bound = None

    def _bind_input(self, name: str, value: Any) -> None:
        """Bind an OrtValue and keep it: before 1.32 a binding does not, and its array's memory would be another's."""
        self.binding.bind_ortvalue_input(name, value)
        self._inputs[name] = value

    def bind_keep(self, name: str, kept: int, value: Callable[[int], Any]) -> None:
        """Bind how many logits are wanted, where it is not what it was."""
        if kept != self._keeps:
            self._bind_input(name, value(kept))
            self._keeps = kept

    def feed(self, ids: np.ndarray, mask: np.ndarray | None) -> None:
        """Bind ids [B, T], their positions and the whole mask; after the run `advance` makes them part of the cache."""
        if self.grows:
            self._let_outputs_grow()
        new, end = ids.shape[1], self.length + ids.shape[1]
        self._fed_pads = None
        if mask is not None and not mask.all():
            self._mask[: self.batch, self.length : end] = mask
            self._fed_pads, self.padded = new - mask.sum(1), True
            positions = np.maximum(self.counts[:, None] + np.cumsum(mask, axis=1) - 1, 0)
        else:
            if self.padded:
                self._mask[: self.batch, self.length : end] = 1
            positions = self.counts[:, None] + np.arange(new)
        fed = {"input_ids": np.ascontiguousarray(ids), "position_ids": positions}
        self.bind({name: self._memory.value(array) for name, array in fed.items()}, {})
        self._bind_input("attention_mask", self._whole_mask(end) if self.padded else self._memory.ones(self.batch, end))

    def feed_single(self, tokens: Sequence[int], vocabulary: int) -> Buffer:
        """Do the same for one token a row; return the logits' buffer [B, 1, V], which stays the same."""
        if self.grows:
            self._let_outputs_grow()
        single, end = self._single, self.length + 1
        if single is None or single.rows != self.batch:
            single = self._single = Single(self._memory, self.batch, vocabulary)
        if self._bound is not single:
            self.bind(single.inputs, single.outputs)
            self._bound = single
        self._fed_pads = None
        if self.batch == 1:
            single.ids.array.fill(tokens[0])  # several times as fast as the other
        else:
            single.ids.array[:, 0] = tokens
        if self.padded:
            self._mask[: self.batch, self.length] = 1
            single.positions.array[:, 0] = self.counts
            mask = self._whole_mask(end)
        else:
            single.positions.array.fill(self.length)
            mask = self._memory.ones(self.batch, end, _AHEAD)
        if self._memory.copies:
            single.ids.written()
            single.positions.written()
        self._bind_input("attention_mask", mask)
        return single.logits

    def advance(self, new: int) -> None:
        """Make what was fed part of the cache; of one that grows, take what the graph allocated."""
        self.length += new
        if self._fed_pads is not None:
            self._pads[: self.batch] += self._fed_pads
        if self.grows:
            outputs = self.binding.get_outputs()[: len(self._present_of)]  # in the order of binding: these were first
            self._bind_values(dict(zip(self._present_of, outputs, strict=True)))

    def truncate(self, length: int) -> None:
        """Forget the columns from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"a cache of {self.length} columns, cut to {length}")
        if length == self.length:
            return
        if self.padded:
            self._pads[: self.batch] -= (self._mask[: self.batch, length : self.length] == 0).sum(1)
        self.length = length
        self._note_padding()
        if self.grows:
            self._regrow(lambda old, past: old[:, :, :length])

    def restart(self, rows: int) -> None:
        """Forget everything; the next step begins so many rows, up to those that the cache was made for."""
        if not 1 <= rows <= len(self._mask):
            raise ValueError(f"{rows} rows in a cache of {len(self._mask)}")
        self.batch, self.length, self._pads[:] = rows, 0, 0
        if self.grows:
            self._regrow(lambda old, past: np.empty((rows, old.shape[1], 0, *old.shape[3:]), old.dtype))
        self._rebind_rows()

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows alone, in this order, which is that in the cache."""
        if not rows or list(rows) != sorted(set(rows)) or rows[-1] >= self.batch:
            raise ValueError(f"rows {list(rows)} of a cache of {self.batch}")
        if len(rows) == self.batch:
            return
        self.batch, chosen = len(rows), np.array(rows)
        moved = [(to, row) for to, row in enumerate(rows) if to != row]
        for to, row in moved:
            self._mask[to, : self.length] = self._mask[row, : self.length]
            self._pads[to] = self._pads[row]
            for array in self._arrays.values():
                array[to, :, : self.length] = array[row, :, : self.length]
        if self.grows:
            self._regrow(lambda old, past: old[chosen])
        self._rebind_rows()

    def join(self, other: Cache) -> None:
        """Take in the rows of another cache of the same session, behind padding; both end in the last column."""
        first, end, begin = self.batch, self.batch + other.batch, self.length - other.length
        if begin < 0 or end > len(self._mask):
            raise ValueError(f"{other.batch} rows of {other.length} columns join {first} of {self.length}")
        self.batch = end
        self._mask[first:end, :begin] = 0
        self._mask[first:end, begin : self.length] = other.mask
        self._pads[first:end] = self.length - other.counts
        if self.grows:
            theirs = {past: value.numpy() for past, value in other.values.items()}

            def joined(old: np.ndarray, past: str) -> np.ndarray:
                new = theirs[past]
                before = np.zeros((*new.shape[:2], begin, *new.shape[3:]), new.dtype)
                return np.concatenate([old, np.concatenate([before, new], axis=2)])

            self._regrow(joined)
        else:
            for past, array in self._arrays.items():
                array[first:end, :, begin : self.length] = other._arrays[past][: other.batch, :, : other.length]
        self._rebind_rows()

    def drop_padding(self) -> int:
        """Move all rows to the left by the padding that they have in common; return how many columns that was."""
        columns = int(self._pads[: self.batch].min())
        if columns:
            self._mask[: self.batch, : self.length - columns] = self._mask[: self.batch, columns : self.length]
            kept = slice(columns, self.length)
            self.length -= columns
            self._pads[: self.batch] -= columns
            if self.grows:
                self._regrow(lambda old, past: old[:, :, kept])
            for array in self._arrays.values():
                array[: self.batch, :, : self.length] = array[: self.batch, :, kept].copy()
            self._note_padding()
        return columns

    def _rebind_rows(self) -> None:
        if not self.grows:
            bound = {past: self._memory.value(array[: self.batch]) for past, array in self._arrays.items()}
            self._bind_values(bound)
        self._note_padding()

    def _note_padding(self) -> None:
        was, self.padded = self.padded, bool(self._pads[: self.batch].any())
        if was and not self.padded:
            self._mask[:] = 1

    def _regrow(self, change: Callable[[np.ndarray, str], np.ndarray]) -> None:
        """Bind copies in place of what a graph allocated."""
        old = {past: np.asarray(value.numpy()) for past, value in self.values.items()}
        changed = {past: np.ascontiguousarray(change(array, past)) for past, array in old.items()}
        self._bind_values({past: self._memory.value(array) for past, array in changed.items()})

    def _bind_values(self, values: dict[str, Any]) -> None:
        """Bind each as past and, unless the graph allocates it, as present too."""
        self.values = values
        for past, value in values.items():
            self._bind_input(past, value)
            if not self.grows:
                self.binding.bind_ortvalue_output(self._present_of[past], value)

    def _let_outputs_grow(self) -> None:
        """Bind as present what ONNX Runtime will allocate. Just before a run, and not after the last one: before 1.32
        an output that was taken from a binding is empty as soon as its name is bound again."""
        for present in self._present_of.values():
            self.binding.bind_output(present, self._memory.device)

    def _whole_mask(self, end: int) -> Any:
        """An OrtValue of the mask [B, end], in one piece."""
        return self._memory.value(np.ascontiguousarray(self._mask[: self.batch, :end]))


def aligned_zeros(shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
    """Zeros where a line of the processor's cache begins; NumPy's own lie across lines, and every vector is read twice.

    Large ones in small pages that are cleared when they are touched: a prompt touches few, for its few tokens of every
    head. NumPy's are cleared at once where malloc has such memory left (0.3 ms of the demo's cache of 144 tokens); from
    4 MB on they are pages of 2 MB, of which the first prompt touches each (of 410m's cache of 1,640 tokens 250 ms,
    against 5).
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if sys.platform == "linux" and size >= _LARGE:
        memory = np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    else:
        memory = np.zeros(size + _LINE, np.uint8)
    begin = -memory.ctypes.data % _LINE
    return memory[begin : begin + size].view(dtype).reshape(shape)


def zeros_in_one(forms: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> dict[str, np.ndarray]:
    """Zeros of these shapes and types, one after another in one piece of memory, each where a line begins."""
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in forms.items()}
    ends = np.cumsum([-(-size // _LINE) * _LINE for size in sizes.values()], dtype=np.int64).tolist()
    memory, begins = aligned_zeros((ends[-1],), np.uint8), [0, *ends]
    return {
        name: memory[begin : begin + sizes[name]].view(dtype).reshape(shape)
        for begin, (name, (shape, dtype)) in zip(begins, forms.items(), strict=False)
    }
