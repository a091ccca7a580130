"""Texts as files of every form, and the windows that are read from them."""

from __future__ import annotations

import gzip
import json
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import zstandard
from tokenizers import Tokenizer

from pythia_export.base.progress import SILENT
from pythia_export.checkpoint import demo_folder
from pythia_export.corpus import calibration_windows
from pythia_export.model.neox import NeoXConfig
from pythia_export.recipe import Calibration

CONFIG = NeoXConfig(4096, 128, 6, 4, 512, max_positions=512)


def demo_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(demo_folder() / "main" / "tokenizer.json"))


def texts(n: int) -> list[str]:
    return [f"document {i} speaks of {i * i} things\n" * 3 for i in range(n)]


def written(folder: Path, name: str, rows: list[str]) -> Path:
    data = "".join(json.dumps({"text": t, "meta": {"pile_set_name": "Test"}}) + "\n" for t in rows).encode()
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)
    (folder / name).write_bytes(pack(data))
    return folder / name


def windows(path: Path, tokenizer, samples=6, length=32, seed=0, config=CONFIG, **more):
    section = Calibration(source="file", path=path, samples=samples, sequence_length=length, seed=seed, **more)
    return calibration_windows(section, tokenizer, config)


def pile(folder: Path, rows: list[tuple[str, str]]) -> Path:
    lines = (json.dumps({"text": text, "meta": {"pile_set_name": name}}) + "\n" for text, name in rows)
    (folder / "pile.jsonl").write_text("".join(lines))
    return folder / "pile.jsonl"


class Told(type(SILENT)):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def memory_map(folder: Path, n: int = 20, size: int = 65, sizes: list[int] | None = None, **changes) -> Path:
    """Sequences of `size` tokens, or one each of `sizes`."""
    of = np.array(sizes if sizes is not None else [size] * n, "<i4")
    n, tokens = len(of), np.arange(of.sum(), dtype="<u2") % 4000
    head = {"magic": b"MMIDIDX\x00\x00", "version": 1, "dtype": 8, "documents": n + 1} | changes
    index = struct.pack("<9sQBQQ", head["magic"], head["version"], head["dtype"], n, head["documents"])
    index += of.tobytes() + ((np.cumsum(of, dtype="<i8") - of) * 2).tobytes()
    index += np.arange(n + 1, dtype="<i8").tobytes()
    (folder / "document.idx").write_bytes(index)
    (folder / "document.bin").write_bytes(tokens.tobytes())
    return folder / "document.idx"


def in_parts(index: Path, sizes: list[int], last: int | None = None) -> Path:
    """The data in numbered parts, cut anywhere, as the hub's data sets keep it: 0 to 20 \"of 20\"."""
    data, whole = index.with_suffix(".bin"), index.with_suffix(".bin").read_bytes()
    data.unlink()
    for i, (begin, end) in enumerate(pairwise([0, *sizes, len(whole)])):
        (index.parent / f"{index.stem}-{i:05}-of-{len(sizes) if last is None else last:05}.bin").write_bytes(
            whole[begin:end]
        )
    return index
