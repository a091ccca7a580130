"""The part of a tapped graph that some of its outputs need, so that nothing else is computed.

A tapped graph (graph/taps.py) gives everything that its profile names. ONNX Runtime computes all of a graph, whatever
is asked of it; so what is not needed is taken out before it sees the graph: nodes, weights, inputs, and whole layers
behind the last place that is read. This takes the wire format alone, as in graph.py.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from ..base.errors import IntegrityError
from . import protobuf
from .protobuf import Malformed

_NODE, _INITIALIZER, _INPUT, _OUTPUT = 1, 5, 11, 12  # fields of GraphProto
_GRAPH = 7  # of ModelProto


@dataclass
class _Node:
    name: str
    inputs: list[str]
    outputs: list[str]
    encoded: bytes


@dataclass
class Parts:
    """A graph in pieces: nodes in their order; initializers, inputs and outputs by name; all else as it was."""

    nodes: list[_Node] = field(default_factory=list)
    initializers: dict[str, bytes] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)  # of initializers, TensorProto.DataType
    inputs: dict[str, bytes] = field(default_factory=dict)
    outputs: dict[str, bytes] = field(default_factory=dict)
    rest: bytes = b""
    around: bytes = b""  # of the model


def read_parts(data: bytes, where: str) -> Parts:
    """Take a serialised ModelProto apart.

    Raises:
        IntegrityError: it is none.
    """
    parts, graph = Parts(), b""
    try:
        for number, value, encoded in protobuf.encoded_fields(memoryview(data)):
            if number == _GRAPH:
                graph += bytes(protobuf.of_bytes(value))
            else:
                parts.around += bytes(encoded)
        for number, value, encoded in protobuf.encoded_fields(memoryview(graph)):
            if number == _NODE:
                parts.nodes.append(_node(protobuf.of_bytes(value)))
            elif number == _INITIALIZER:
                name, kind = _tensor(protobuf.of_bytes(value))
                parts.initializers[name], parts.types[name] = bytes(encoded), kind
            elif number in (_INPUT, _OUTPUT):
                into = parts.inputs if number == _INPUT else parts.outputs
                into[_named(protobuf.of_bytes(value), 1)] = bytes(encoded)
            else:
                parts.rest += bytes(encoded)
    except Malformed as e:
        raise IntegrityError(
            f"{where}: not a graph that can be read: {e}", hint="Copy the artifact again, or export it again."
        ) from None
    return parts


def pruned(parts: Parts, outputs: Collection[str], settable: Collection[str], rewired: dict[str, str]) -> bytes:
    """Return a graph with these outputs alone, and the caches of the layers that they need, of one at least.

    settable: initializers that become inputs with a default. rewired: by the name of a node, what it reads instead.
    """
    nodes = [node if node.name not in rewired else _reading(node, rewired[node.name]) for node in parts.nodes]
    needed = _needed(nodes, set(outputs))
    caches = [name for name in parts.outputs if name.startswith("present.")]
    cached = {_layer(name) for name in caches} & {_layer(o) for n in nodes if id(n) in needed for o in n.outputs}
    deepest = max((layer for layer in cached if layer is not None), default=0)
    kept = [*outputs, *(name for name in caches if (_layer(name) or 0) <= deepest)]
    needed = _needed(nodes, set(kept))
    read = {name for node in nodes if id(node) in needed for name in node.inputs}
    graph = b"".join(protobuf.field(_NODE, node.encoded) for node in nodes if id(node) in needed)
    graph += b"".join(encoded for name, encoded in parts.initializers.items() if name in read)
    graph += b"".join(encoded for name, encoded in parts.inputs.items() if name in read)
    graph += b"".join(_input(name, parts.types[name]) for name in settable if name in read)
    graph += b"".join(parts.outputs[name] for name in kept) + parts.rest
    return parts.around + protobuf.field(_GRAPH, graph)


def _needed(nodes: list[_Node], wanted: set[str]) -> set[int]:
    found = set()
    for node in reversed(nodes):  # a node comes behind those that it reads from
        if not wanted.isdisjoint(node.outputs):
            found.add(id(node))
            wanted.update(node.inputs)
    return found


def _layer(name: str) -> int | None:
    """The layer of a cache that a graph gives, ``present.3.key``."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "present" and len(parts) == 3 and parts[1].isdecimal() else None


def _reading(node: _Node, value: str) -> _Node:
    """A node of one input, which reads another one."""
    encoded = protobuf.field(1, value.encode())
    for number, _, whole in protobuf.encoded_fields(memoryview(node.encoded)):
        if number != 1:
            encoded += bytes(whole)
    return _Node(node.name, [value], node.outputs, encoded)


def _input(name: str, kind: int) -> bytes:
    """An input of this type and any shape."""
    of_type = protobuf.field(1, protobuf.varint_field(1, kind))
    return protobuf.field(_INPUT, protobuf.field(1, name.encode()) + protobuf.field(2, of_type))


def _node(message: memoryview) -> _Node:
    node = _Node("", [], [], bytes(message))
    for number, value in protobuf.fields(message):
        if number == 1:
            node.inputs.append(protobuf.text(value))
        elif number == 2:
            node.outputs.append(protobuf.text(value))
        elif number == 3:
            node.name = protobuf.text(value)
    return node


def _tensor(message: memoryview) -> tuple[str, int]:
    name, kind = "", 0
    for number, value in protobuf.fields(message):
        if number == 8:
            name = protobuf.text(value)
        elif number == 2:
            kind = protobuf.number(value)
    return name, kind


def _named(message: memoryview, index: int) -> str:
    return next((protobuf.text(value) for number, value in protobuf.fields(message) if number == index), "")
