"""The quantised model as an ordinary GPT-NeoX checkpoint, for everything that wants plain weights.

safetensors' own `save_file` wants every tensor in memory. Its format does not: eight bytes with the header's length
(little-endian), a JSON header with dtype, shape and byte range of each tensor, then the bytes. All of the header is
known from the configuration, so it is written first and the tensors follow one by one; only one is ever in memory.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch

from ..artifact import Artifact, Kind, Staging
from ..base.errors import NumericsError, RecipeError, ResourceError
from ..base.machine import versions
from ..base.progress import SILENT, Advance, Progress
from ..model.neox import TensorSpec, tensors
from ..records.manifest import DequantizedOrigin
from ..tokenizer import is_tokenizer_file
from ..weights.names import data_name
from ..weights.reader import WeightsReader

Dtype = Literal["float32", "float16", "bfloat16"]

# `dequantized.json` tells where the weights come from and the SHA-256 of every file. It is also what --overwrite
# recognises: checkpoints of other origin have none.
CHECKPOINT = Kind("dequantised checkpoint", "dequantized.json")
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9

_TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_HEADER = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Dequantized:
    """What was written: `weights` are the names of the safetensors files, `nbytes` the tensors in them."""

    folder: Path
    dtype: Dtype
    parameters: int
    weights: list[str]
    nbytes: int
    seconds: float


def dequantize(
    artifact: Path,
    out: Path,
    *,
    dtype: Dtype = "float32",
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Dequantized:
    """Write what the artifact's stored weights stand for; exact in float32, rounded again in the other two.

    Raises:
        SourceError, IntegrityError: there is no artifact, or it is not what its manifest says.
        OutputError: `out` exists; with `overwrite`, it is nothing that this function wrote.
        NumericsError: a weight is too large for `dtype`.
        ResourceError: not enough disk space.
    """
    began = time.perf_counter()
    opened = Artifact.open(artifact)
    target = Staging(out, overwrite, CHECKPOINT)  # refuses before every file is hashed, makes nothing yet
    opened.check()
    _ = opened.generation  # the checkpoint gets its settings: an end token that the model does not have is refused
    with target as staging:
        config, reader, weights = opened.config, opened.weights(), data_name(opened.recipe)
        specs = list(tensors(replace(config, tied_head=False)))  # rounded, head and embedding are two matrices
        total = sum(_nbytes(spec, dtype) for spec in specs)
        _require_space(staging.folder, total)
        shards = _shards(specs, dtype, shard_bytes)
        with progress.track("Dequantising", total, "bytes") as advance:
            for name, shard in shards.items():
                _write(staging.folder / name, shard, dtype, reader, advance)
        if len(shards) > 1:
            where = {spec.name: name for name, shard in shards.items() for spec in shard}
            _write_json(staging.folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
        settings = opened.read_json("config.json") | {"torch_dtype": dtype, "tie_word_embeddings": False}
        _write_json(staging.folder / "config.json", settings)
        for name in opened.manifest.files:
            if name == "generation_config.json" or is_tokenizer_file(name):
                (staging.folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(opened.file(name), staging.folder / name)
        opened.require_unchanged()
        staging.publish(
            DequantizedOrigin(
                versions=versions(),
                source=opened.manifest.source,
                weights={weights: opened.manifest.files[weights]},
                quantize=opened.manifest.recipe["quantize"],
                dtype=dtype,
            )
        )
    return Dequantized(staging.out, dtype, config.parameters, list(shards), total, time.perf_counter() - began)


def parse_size(text: str) -> int:
    """Bytes in `500MB` (10^6), `2GiB` (2^30) or a plain number.

    Raises:
        RecipeError: it is none of these, or less than a byte.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *(?:([KMGT])(I?))?B?", text.strip().upper())
    value = (
        0 if match is None else int(float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2] or " "))
    )
    if value < 1:
        raise RecipeError(f"{text!r} is no size", hint="Write it as 500MB, 2GB or 2GiB.")
    return value


def _shards(specs: list[TensorSpec], dtype: Dtype, limit: int) -> dict[str, list[TensorSpec]]:
    """File names and their tensors, in order. A file exceeds `limit` only where a single tensor does."""
    shards: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        nbytes = _nbytes(spec, dtype)
        if shards[-1] and filled + nbytes > limit:
            shards.append([])
            filled = 0
        shards[-1].append(spec)
        filled += nbytes
    n = len(shards)
    if n == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05}-of-{n:05}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _write(path: Path, specs: list[TensorSpec], dtype: Dtype, reader: WeightsReader, advance: Advance) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers 4 refuses a file without it
    end = 0
    for spec in specs:
        begin, end = end, end + _nbytes(spec, dtype)
        header[spec.name] = {"dtype": _HEADER[dtype], "shape": spec.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the bytes after it are read as numbers where they lie
    with path.open("wb") as f:
        f.write(len(text).to_bytes(8, "little"))
        f.write(text)
        for spec in specs:
            # Nothing here keeps the tensor: it is gone before the next one is made.
            advance(f.write(_stored(reader, spec, dtype)))


def _stored(reader: WeightsReader, spec: TensorSpec, dtype: Dtype) -> memoryview:
    """The bytes of one tensor, row-major."""
    exact = reader.tensor(spec.name)
    tensor = exact.to(_TORCH[dtype])
    if not torch.isfinite(tensor).all():
        if not torch.isfinite(exact).all():
            raise NumericsError(f"{spec.name} holds a NaN or an infinity", hint="Export it again.")
        raise NumericsError(
            f"{spec.name} goes up to {float(exact.abs().max()):.4g}, which {dtype} cannot hold",
            hint="float32 keeps every weight exactly; bfloat16 has its range.",
        )
    return tensor.view(torch.uint8).numpy().data


def _nbytes(spec: TensorSpec, dtype: Dtype) -> int:
    return prod(spec.shape) * _TORCH[dtype].itemsize


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ResourceError(
            f"{folder.parent}: the weights take {needed:,} bytes and {free:,} are free",
            hint="Free some space, or choose another place.",
        )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
