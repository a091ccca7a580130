"""Graphs in the hub's cache. ONNX Runtime reads external data below one folder only, and takes a link for what it leads
to: there the folder is `blobs`, and the data has the name of a blob in it.

The name stands deep in the graph, ModelProto.graph.initializer.external_data, and is rewritten there, every other byte
copied: the runtime does without onnx. Wire format: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..artifact import is_own_file, is_snapshot
from ..base.errors import IntegrityError

_EXTERNAL_DATA = (7, 5, 13)  # ModelProto.graph, GraphProto.initializer, TensorProto.external_data
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


def as_blobs(graph: bytes, folder: Path) -> tuple[bytes, Path]:
    """Return a graph and the folder of its data as ONNX Runtime takes them; changed where the folder is a snapshot.

    Raises:
        IntegrityError: the data is a link to somebody else's file, or the graph is cut short.
    """
    if not is_snapshot(folder):
        return graph, folder
    linked: set[Path] = set()

    def blob(entry: bytes) -> bytes:
        if not entry.startswith(b"\x0a\x08location\x12"):  # StringStringEntryProto: key (1), value (2)
            return entry
        length, at = _varint(entry, 11)
        path = folder / entry[at : at + length].decode()
        if not path.is_symlink():
            return entry
        if not is_own_file(folder, path.relative_to(folder).as_posix()):
            raise IntegrityError(f"{path}: a link to another file than a blob of its own repository")
        target = path.resolve()
        linked.add(target.parent)
        return entry[:11] + _length_and(target.name.encode())

    try:
        made = _rewritten(graph, _EXTERNAL_DATA, blob)
    except (IndexError, UnicodeDecodeError, ValueError) as e:
        raise IntegrityError(f"{folder}: its graph is cut short, or names data that is not in it: {e}") from e
    return (made, linked.pop()) if linked else (graph, folder)


def _rewritten(message: bytes, path: tuple[int, ...], change: Callable[[bytes], bytes]) -> bytes:
    """Every message at a path of field numbers, changed."""
    out, at = bytearray(), 0
    while at < len(message):
        start = at
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == _VARINT:
            _, at = _varint(message, at)
        elif wire == _LENGTH:
            length, begin = _varint(message, at)
            if begin + length > len(message):
                raise ValueError(f"a field of {length:,} bytes, where {len(message) - begin:,} are left")
            if tag >> 3 == path[0]:
                inner = message[begin : begin + length]
                out += message[start:at]
                out += _length_and(change(inner) if len(path) == 1 else _rewritten(inner, path[1:], change))
                at = begin + length
                continue
            at = begin + length
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if wire == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"a field of wire type {wire}")
        out += message[start:at]
    return bytes(out)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _length_and(content: bytes) -> bytes:
    length, out = len(content), bytearray()
    while length > 0x7F:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*out, length]) + content
