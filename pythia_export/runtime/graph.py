"""What a graph is made of, read before any runtime opens it, and refused where we would not have written it.

ONNX Runtime's versions differ in what they let a graph do: read a file outside its folder, wait at a named pipe, loop
for ever. So we look first, whichever is installed: operators are from the list of those that our exporter writes, and
data outside the graph lies in plain files of the artifact, within their sizes. Editing graphs takes onnx, which the
runtime does without; reading takes the wire format alone (`protobuf.py`), field by field of
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..artifact import is_own_file
from ..base.errors import IntegrityError
from . import protobuf
from .protobuf import Malformed

KEEP = "num_logits_to_keep"
MICROSOFT, OURS = "com.microsoft", "pythia"
TRUNKS = ("Decoder", "DecoderLayers")  # the functions that call others of ours; the second is in older artifacts
# What `graph/` writes, in every form: tests/unit/runtime/test_safe_graph.py holds the two to each other.
WRITTEN = frozenset(
    {("", name) for name in (
        "Abs", "Add", "BitShift", "BitwiseAnd", "BitwiseOr", "Cast", "Clip", "Concat", "Constant", "Div", "Equal",
        "Expand", "Floor", "Gather",
        "Gelu", "Greater", "LayerNormalization", "MatMul", "Min", "Mul", "Neg", "Range", "ReduceMax",
        "Relu", "Reshape", "Round", "Shape", "Sigmoid", "Slice", "Softmax", "Softplus", "Split", "Squeeze", "Sub",
        "Tanh", "Transpose", "Unsqueeze", "Where",
    )}
    | {(MICROSOFT, name) for name in ("GatherBlockQuantized", "GroupQueryAttention", "MatMulNBits")}
    | {(OURS, name) for name in (TRUNKS[0], "DecoderMask", "Linear3Bits", "LinearNBits", "RotaryAttention")}
)  # fmt: skip
# These are in older artifacts.
OPERATORS = WRITTEN | {("", "CastLike"), ("", "Identity"), (OURS, "MatMulNBits"), (OURS, TRUNKS[1])}
TRUST = "If you know who made it: `generate --trust-graph`, or Artifact.open(path, trust_graph=True)."
_DEEPEST = 8  # graphs within graphs
_EXTERNAL = 1  # TensorProto.DataLocation
# Bits of an element by TensorProto.DataType; complex numbers and strings are nobody's weights.
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16, 21: 4, 22: 4}


@dataclass(frozen=True)
class External:
    """A tensor whose bytes lie in another file; `nbytes` is what its type and shape take, None of a type unknown."""

    tensor: str
    location: str
    offset: int
    length: int | None
    nbytes: int | None


@dataclass
class Graph:
    """What a graph says of itself. `nodes` are (where, domain, operator), those of functions and subgraphs among them;
    `functions` are (domain, name) of those that it defines; `within` what their bodies call, (function, domain,
    operator).
    """

    inputs: set[str] = field(default_factory=set)
    initializers: set[str] = field(default_factory=set)
    nodes: list[tuple[str, str, str]] = field(default_factory=list)
    functions: list[tuple[str, str]] = field(default_factory=list)
    within: set[tuple[str, str, str]] = field(default_factory=set)
    externals: list[External] = field(default_factory=list)
    unusual: list[str] = field(default_factory=list)  # parts that we never write


def read_graph(data: bytes, where: str) -> Graph:
    """Read a serialised ModelProto; not a byte of a weight is looked at.

    Raises:
        IntegrityError: it is none: cut short, garbled, nested without end; or a tensor's place is no place.
    """
    found = Graph()
    try:
        if data[4:8] == b"ORTM":
            raise Malformed("ONNX Runtime's own format, which holds what it likes; ONNX was expected")
        graph = b""
        for number, value in protobuf.fields(memoryview(data)):
            if number == 7:  # one behind the other, two are one
                graph += bytes(protobuf.of_bytes(value))
            elif number == 20:
                found.unusual.append("instructions for training")
            elif number == 25:
                _read_function(protobuf.of_bytes(value), found)
        if not graph:
            raise Malformed("no graph")
        _read_graph(memoryview(graph), found, "", 0)
    except Malformed as e:
        raise IntegrityError(
            f"{where}: not a graph that can be read: {e}", hint="Copy the artifact again, or export it again."
        ) from None
    return found


def require_ours(graph: Graph, where: str, operators: Collection[tuple[str, str]] = OPERATORS) -> None:
    """Refuse what no exporter of ours writes.

    Raises:
        IntegrityError: an operator that is not among `operators`, a function that is not of ours or calls one, a
            subgraph. The node is named.
    """
    for node, domain, operator in graph.nodes:
        if (domain, operator) not in operators:
            raise IntegrityError(
                f"{where}: node {node or 'without a name'} is {_named(domain, operator)}, which pythia-export does not "
                "write; the graph was not opened",
                hint=TRUST,
            )
    for domain, name in graph.functions:
        if domain != OURS or (domain, name) not in operators:
            raise IntegrityError(
                f"{where}: defines the function {_named(domain, name)}; pythia-export writes functions of the domain "
                f"{OURS} alone. The graph was not opened",
                hint=TRUST,
            )
    if len(set(graph.functions)) < len(graph.functions):
        graph.unusual.append("a function defined twice")
    graph.unusual += [
        f"function {name} that calls {called} of {OURS}"
        for name, domain, called in graph.within
        if domain == OURS and (name not in TRUNKS or called in TRUNKS)
    ]
    if graph.unusual:
        raise IntegrityError(
            f"{where}: holds {graph.unusual[0]}, which pythia-export does not write; the graph was not opened",
            hint=TRUST,
        )


def require_files(graph: Graph, folder: Path, named: Collection[str] | None, where: str) -> None:
    """Refuse data that lies anywhere but in files of the artifact. `named` are those that its manifest names; None for
    an artifact in the making, where plain files of `folder` will do.

    Raises:
        IntegrityError: a file outside, a link, a pipe or a device, one that the manifest does not name, or one that is
            shorter than the tensor needs. The tensor is named.
    """
    sizes: dict[str, int] = {}
    for tensor in graph.externals:
        location, wrong = tensor.location, ""
        if location not in sizes:
            sizes[location], wrong = _size(folder, location, named)
        if not wrong:
            length = tensor.nbytes if tensor.length is None else tensor.length
            if length is None or (tensor.nbytes is not None and length != tensor.nbytes):
                wrong = f"{length} bytes; its type and shape take {tensor.nbytes}"
            elif min(length, tensor.offset) < 0 or tensor.offset + length > sizes[location]:
                wrong = f"bytes {tensor.offset:,} to {tensor.offset + length:,} of a file of {sizes[location]:,}"
        if wrong:
            raise IntegrityError(
                f"{where}: tensor {tensor.tensor} is in {location!r}: {wrong}",
                hint="Copy the artifact again, or export it again.",
            )


def settable(data: bytes, graph: Graph) -> bytes:
    """The same graph with num_logits_to_keep as an input whose default is the constant in the graph.

    Fields of one number in two messages, one behind the other, are those of one message: this appends an input.
    """
    if KEEP in graph.inputs or KEEP not in graph.initializers:
        return data
    int64, scalar = b"\x08\x07", b"\x12\x00"  # TypeProto.Tensor: elem_type 7, shape of no dimensions
    value = protobuf.field(1, KEEP.encode()) + protobuf.field(2, protobuf.field(1, int64 + scalar))
    return data + protobuf.field(7, protobuf.field(11, value))


def without_function(data: bytes, name: str) -> bytes:
    """The graph without the body of one function, so that only a kernel can be what computes it."""
    kept = b""
    for number, value in protobuf.fields(memoryview(data)):
        if number == 25 and name.encode() in _strings(protobuf.of_bytes(value), 1):
            continue
        kept += protobuf.varint_field(number, value) if isinstance(value, int) else protobuf.field(number, bytes(value))
    return kept


def _strings(message: memoryview, wanted: int) -> list[bytes]:
    return [bytes(protobuf.of_bytes(value)) for number, value in protobuf.fields(message) if number == wanted]


def _named(domain: str, operator: str) -> str:
    return f"{domain}.{operator}" if domain else operator


def _size(folder: Path, location: str, named: Collection[str] | None) -> tuple[int, str]:
    """Bytes of a file, and what is wrong with it."""
    path = PurePosixPath(location)
    inside = path.parts and not path.is_absolute() and ".." not in path.parts and not set(location) & set("\\:\0")
    if not inside or path.as_posix() != location:
        return 0, "outside the artifact's folder"
    if named is not None and location not in named:
        return 0, "a file that manifest.json does not name"
    whole = folder / location
    if not is_own_file(folder, location):
        return 0, "a symbolic link; a plain file was expected"
    try:
        found = os.stat(whole)
    except OSError as e:
        return 0, e.strerror or "cannot be read"
    if not stat.S_ISREG(found.st_mode):
        return 0, "no plain file"
    return found.st_size, ""


def _read_graph(message: memoryview, found: Graph, path: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise Malformed(f"graphs within graphs, more than {_DEEPEST} deep")
    if depth:
        found.unusual.append(f"a graph within node {path}")
    for number, value in protobuf.fields(message):
        if number == 1:
            _read_node(protobuf.of_bytes(value), found, path, depth)
        elif number == 5:
            name = _read_tensor(protobuf.of_bytes(value), found)
            if not depth:
                found.initializers.add(name)
        elif number == 11 and not depth:
            found.inputs.update(str(name, "utf-8", "replace") for name in _strings(protobuf.of_bytes(value), 1))
        elif number == 15:
            found.unusual.append("a sparse tensor")
            _read_sparse(protobuf.of_bytes(value), found)


def _read_function(message: memoryview, found: Graph) -> None:
    names, domains, bodies = [""], [""], Graph()
    for number, value in protobuf.fields(message):
        if number == 1:
            names.append(protobuf.text(value))
        elif number == 10:
            domains.append(protobuf.text(value))
        elif number == 7:
            _read_node(protobuf.of_bytes(value), bodies, "", 0)
        elif number == 11:
            _read_attribute(protobuf.of_bytes(value), bodies, "", 0)
    name = names[-1]  # of a field that is there twice the last counts
    found.functions.append((domains[-1], name))
    found.nodes += [(f"{at or '?'} of function {name}", domain, operator) for at, domain, operator in bodies.nodes]
    found.within |= {(name, domain, operator) for _, domain, operator in bodies.nodes}
    found.externals += bodies.externals
    found.unusual += bodies.unusual


def _read_node(message: memoryview, found: Graph, path: str, depth: int) -> None:
    name = operator = domain = output = ""
    attributes = []
    for number, value in protobuf.fields(message):
        if number == 3:
            name = protobuf.text(value)
        elif number == 4:
            operator = protobuf.text(value)
        elif number == 7:
            domain = protobuf.text(value)
        elif number == 2:
            output = output or protobuf.text(value)
        elif number == 5:
            attributes.append(protobuf.of_bytes(value))
    where = f"{path}/{name or output}" if path else name or output
    found.nodes.append((where, domain, operator))
    for attribute in attributes:
        _read_attribute(attribute, found, where, depth)


def _read_attribute(message: memoryview, found: Graph, path: str, depth: int) -> None:
    tensor = graph = sparse = b""
    for number, value in protobuf.fields(message):
        if number == 5:  # of a message that is there twice the parts are one behind the other
            tensor += bytes(protobuf.of_bytes(value))
        elif number == 6:
            graph += bytes(protobuf.of_bytes(value))
        elif number == 22:
            sparse += bytes(protobuf.of_bytes(value))
        elif number == 10:
            _read_tensor(protobuf.of_bytes(value), found)
        elif number == 11:
            _read_graph(protobuf.of_bytes(value), found, path, depth + 1)
        elif number == 23:
            _read_sparse(protobuf.of_bytes(value), found)
    if tensor:
        _read_tensor(memoryview(tensor), found)
    if sparse:
        _read_sparse(memoryview(sparse), found)
    if graph:
        _read_graph(memoryview(graph), found, path, depth + 1)


def _read_sparse(message: memoryview, found: Graph) -> None:
    parts = {1: b"", 2: b""}
    for number, value in protobuf.fields(message):
        if number in parts:
            parts[number] += bytes(protobuf.of_bytes(value))
    for part in parts.values():
        _read_tensor(memoryview(part), found)


def _read_tensor(message: memoryview, found: Graph) -> str:
    """Its name; where its bytes lie in another file, that is found."""
    name, kind, location = "", 0, 0
    dims: list[int] = []
    entries: list[tuple[str, str]] = []
    for number, value in protobuf.fields(message):
        if number == 1:
            dims += [protobuf.number(value)] if isinstance(value, int) else protobuf.packed(value)
        elif number == 2:
            kind = protobuf.number(value)
        elif number == 8:
            name = protobuf.text(value)
        elif number == 13:
            entries.append(_entry(protobuf.of_bytes(value)))
        elif number == 14:
            location = protobuf.number(value)
    if location not in (0, _EXTERNAL) or bool(entries) != (location == _EXTERNAL):
        raise Malformed(f"tensor {name}: data location {location} with {len(entries)} words on where it is")
    if entries:
        found.externals.append(_external(name, kind, dims, entries))
    return name


def _entry(message: memoryview) -> tuple[str, str]:
    parts = {1: "", 2: ""}
    for number, value in protobuf.fields(message):
        if number in parts:
            parts[number] = protobuf.text(value)
    return parts[1], parts[2]


def _external(name: str, kind: int, dims: list[int], entries: list[tuple[str, str]]) -> External:
    places = dict(entries)
    if len(places) < len(entries) or "location" not in places or set(places) - {"location", "offset", "length"}:
        raise Malformed(f"tensor {name}: its place is told by {', '.join(sorted(key for key, _ in entries))}")
    numbers = {key: places.get(key) for key in ("offset", "length")}
    for key, value in numbers.items():
        if value is not None and not (value.isascii() and value.isdigit() and len(value) < 20):
            raise Malformed(f"tensor {name}: {key} {value!r}; a number of bytes was expected")
    bits = _BITS.get(kind)
    nbytes = None if bits is None or min(dims, default=0) < 0 else -(-math.prod(dims) * bits // 8)
    length = numbers["length"]
    return External(
        name, places["location"], int(numbers["offset"] or 0), None if length is None else int(length), nbytes
    )
