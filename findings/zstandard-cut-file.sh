#!/usr/bin/env bash
# python-zstandard 0.25.0: a .zst that was cut short reads as a shorter file, without an error.
#
# zstandard.open() and ZstdDecompressor.stream_reader() take the end of a truncated file for the end of its data. gzip,
# bz2 and lzma of the standard library raise EOFError for the same; so does `zstd -d`. Whoever reads the Pile's
# .jsonl.zst that way computes on a part of it and is not told. Seen 2026-11-30: 36,756 of 100,000 lines, exit 0.
# To be safe, feed decompressobj() oneself and look at `eof` when the file ends.
#
# Installs into a temporary folder; ends with 1 if the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q zstandard==0.25.0
"$folder/venv/bin/python" - <<'PYTHON'
import bz2, gzip, io, lzma
import zstandard

data = b"".join(b"line %d\n" % i for i in range(100_000))
for name, pack, opened in (("gzip", gzip.compress, gzip.open), ("bz2", bz2.compress, bz2.open), ("lzma", lzma.compress, lzma.open)):
    cut = pack(data)[: len(pack(data)) // 2]
    try:
        opened(io.BytesIO(cut)).read()
        raise SystemExit(f"{name} no longer raises")
    except EOFError as e:
        print(f"{name}: EOFError: {e}")
packed = zstandard.compress(data)
cut = packed[: len(packed) // 2]
with zstandard.open(io.BytesIO(cut), "rb") as f:
    lines = f.read().count(b"\n")
print(f"zstandard {zstandard.__version__}: open() gives {lines:,} of 100,000 lines, and no error")
unpacker = zstandard.ZstdDecompressor().decompressobj()
unpacker.decompress(cut)
print(f"decompressobj().eof at the end of the file: {unpacker.eof}")
assert 0 < lines < 100_000 and not unpacker.eof, "the behaviour has changed"
PYTHON
