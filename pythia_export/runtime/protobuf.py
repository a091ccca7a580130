"""Protocol buffers' wire format, as far as a graph needs it: https://protobuf.dev/programming-guides/encoding.

A message is a row of fields, each a tag (number and wire type) and a value. Strict: what is cut short, or written in a
way that no writer of ONNX uses, is refused and not guessed at.
"""

from __future__ import annotations

from collections.abc import Iterator

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


class Malformed(ValueError):
    """Bytes that are no message."""


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and the value of each field: an int for a varint, bytes for all others.

    Raises:
        Malformed: a field that is cut short, has the number 0 or a wire type that ONNX does not use.
    """
    return ((number, value) for number, value, _ in encoded_fields(message))


def encoded_fields(message: memoryview) -> Iterator[tuple[int, int | memoryview, memoryview]]:
    """Yield what `fields` does, and the whole field as it is encoded, tag included."""
    at, end = 0, len(message)
    while at < end:
        start = at
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise Malformed(f"a field with the number 0 at byte {at}")
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value, message[start:at]
            continue
        if wire == _LENGTH:
            length, at = _varint(message, at)
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            length = 8 if wire == _EIGHT_BYTES else 4
        else:
            raise Malformed(f"field {number} of wire type {wire} at byte {at}")
        if length > end - at:
            raise Malformed(f"field {number} of {length:,} bytes where {end - at:,} are left")
        at += length
        yield number, message[at - length : at], message[start:at]


def text(value: int | memoryview) -> str:
    """A string field; Malformed where it is none."""
    try:
        return str(of_bytes(value), "utf-8")
    except UnicodeDecodeError as e:
        raise Malformed(f"a name that is not UTF-8: {e}") from None


def of_bytes(value: int | memoryview) -> memoryview:
    """A message or a string; Malformed where the field is a number."""
    if isinstance(value, int):
        raise Malformed("a number where a message or a string was expected")
    return value


def number(value: int | memoryview) -> int:
    """A varint field, as a signed 64-bit number; Malformed where it is none."""
    if not isinstance(value, int):
        raise Malformed("bytes where a number was expected")
    return value - (1 << 64) if value >> 63 else value


def packed(message: memoryview) -> list[int]:
    """Varints in a row, as signed 64-bit numbers."""
    found, at = [], 0
    while at < len(message):
        value, at = _varint(message, at)
        found.append(number(value))
    return found


def field(index: int, content: bytes) -> bytes:
    """A field of a message or a string, encoded."""
    return _encoded(index << 3 | _LENGTH) + _encoded(len(content)) + content


def varint_field(index: int, value: int) -> bytes:
    """A field of a number, encoded."""
    return _encoded(index << 3) + _encoded(value)


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for i, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            if value >> 64:
                break
            return value, at + i + 1
    raise Malformed(f"a number that does not end, or is too large, at byte {at}")


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
