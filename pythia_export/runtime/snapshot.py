"""Graphs in the hub's cache. ONNX Runtime reads external data below one folder only, and takes a link for what it leads
to: there the folder is `blobs`, and the data has the name of a blob in it.

The name stands deep in the graph, ModelProto.graph.initializer.external_data, and is rewritten there, every other byte
copied: the runtime does without onnx.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..artifact import is_own_file, is_snapshot
from ..base.errors import IntegrityError
from . import protobuf

_EXTERNAL_DATA = (7, 5, 13)  # ModelProto.graph, GraphProto.initializer, TensorProto.external_data
_KEY, _VALUE = 1, 2  # of StringStringEntryProto


def as_blobs(graph: bytes, folder: Path) -> tuple[bytes, Path]:
    """Return a graph and the folder of its data as ONNX Runtime takes them; changed where the folder is a snapshot.

    Raises:
        IntegrityError: the data is a link to somebody else's file, or the graph is cut short.
    """
    if not is_snapshot(folder):
        return graph, folder
    linked: set[Path] = set()

    def blob(entry: memoryview) -> bytes:
        pair = {number: protobuf.text(value) for number, value in protobuf.fields(entry)}
        path = folder / pair.get(_VALUE, "")
        if pair.get(_KEY) != "location" or not path.is_symlink():
            return bytes(entry)
        if not is_own_file(folder, path.relative_to(folder).as_posix()):
            raise IntegrityError(f"{path}: a link to another file than a blob of its own repository")
        target = path.resolve()
        linked.add(target.parent)
        return protobuf.field(_KEY, b"location") + protobuf.field(_VALUE, target.name.encode())

    try:
        made = _rewritten(memoryview(graph), _EXTERNAL_DATA, blob)
    except ValueError as e:
        raise IntegrityError(f"{folder}: its graph is cut short, or names data that is not in it: {e}") from e
    return (made, linked.pop()) if linked else (graph, folder)


def _rewritten(message: memoryview, path: tuple[int, ...], change: Callable[[memoryview], bytes]) -> bytes:
    """Return a message with every message at a path of field numbers changed, and every other byte as it was."""
    out = bytearray()
    for number, value, encoded in protobuf.encoded_fields(message):
        if number == path[0]:
            inner = protobuf.of_bytes(value)
            out += protobuf.field(number, change(inner) if len(path) == 1 else _rewritten(inner, path[1:], change))
        else:
            out += encoded
    return bytes(out)
