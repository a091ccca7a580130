"""What is packed is found by its first bytes: a browser or a mirror may have unpacked a .gz, or packed a .jsonl.

Archives of several files (.zip, .tar) are told, not read: which file of them was meant?
"""

from __future__ import annotations

import gzip
import io
import zlib
from typing import IO, Any

import zstandard

from ..base.errors import EnvironmentProblem, SourceError

SUFFIXES = (".gz", ".zst", ".zstd", ".xz", ".bz2")  # of names; what counts is the content
_BUFFER = 1 << 16
_WINDOW = 1 << zstandard.WINDOWLOG_MAX  # `zstd --long=31` looks back so far, and the reader has to hold as much
_FEED = 1 << 12  # bytes that are unpacked at a time, to as much as 128 MiB of one character
_SKIPPED = tuple(bytes([low]) + b"\x2a\x4d\x18" for low in range(0x50, 0x60))  # frames of user data in a .zst
_ARCHIVES = {b"PK\x03\x04": ".zip", b"7z\xbc\xaf\x27\x1c": ".7z", b"Rar!": ".rar", b"\x04\x22\x4d\x18": ".lz4"}

FAULTS = (OSError, EOFError, zlib.error, zstandard.ZstdError)  # of reading what is damaged; lzma's is an OSError here


def decompressed(file: IO[bytes], source: str) -> io.BufferedReader:
    """Return the plain bytes of a file, whatever its name says: unpacked where it is packed, from its first byte.

    Raises:
        SourceError: it is an archive.
        EnvironmentProblem: this Python was built without the module that unpacks it.
    """
    raw: Any = file
    packed: io.BufferedReader = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw, _BUFFER)
    head = packed.peek(8)[:8]
    if head.startswith(b"\x1f\x8b"):
        plain: Any = gzip.GzipFile(fileobj=packed)
    elif head.startswith((b"\x28\xb5\x2f\xfd", *_SKIPPED)):
        plain = _Frames(packed)
    elif head.startswith((b"\xfd7zXZ\x00", b"BZh")):
        plain = _from_library(packed, head, source)
    else:
        _refuse_archive(head, source)
        return packed
    unpacked = io.BufferedReader(plain, _BUFFER)
    if unpacked.peek(512)[257:262] == b"ustar":
        raise SourceError(f"{source} is an archive (.tar)", hint="Unpack it; `path` may be the folder.")
    return unpacked


def _from_library(packed: io.BufferedReader, head: bytes, source: str) -> Any:
    try:
        if head.startswith(b"BZh"):
            import bz2

            return bz2.BZ2File(packed)
        import lzma

        return _Xz(lzma.LZMAFile(packed))
    except ImportError as e:  # some builds of Python lack them
        raise EnvironmentProblem(f"{source}: this Python cannot unpack it: {e}", hint="Unpack it beforehand.") from e


def _refuse_archive(head: bytes, source: str) -> None:
    for magic, kind in _ARCHIVES.items():
        if head.startswith(magic):
            raise SourceError(
                f"{source} is an archive ({kind})",
                hint="Unpack it; packed by gzip, zstd, xz or bzip2 a single file is read as it is.",
            )


class _Xz(io.RawIOBase):
    """An .xz whose damage is an OSError, as that of every other kind."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        from lzma import LZMAError

        try:
            return int(self._file.readinto(buffer))
        except LZMAError as e:
            raise OSError(str(e)) from e


class _Frames(io.RawIOBase):
    """A decompressed .zst: zstandard's own reader takes the place where a file was cut for its end.

    python-zstandard 0.25.0: `open()` and `ZstdDecompressor.stream_reader()` return what a truncated file still holds,
    without an error; gzip and bz2 raise EOFError. `decompressobj()` says by `eof` whether the frame is whole.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._frame: Any = None  # until the first byte; a file may have several frames
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            packed = packed or self._file.read(_FEED)
            if not packed:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the file ends inside a frame")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
            self._ready = memoryview(self._frame.decompress(packed))
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n
