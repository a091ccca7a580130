"""manifest.json: where an artifact comes from, and what its files are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from .record import Count, Json, Kept, Record, Sha256

MANIFEST = "manifest.json"
MANIFEST_SCHEMA = 1


class Checkpoint(Record):
    """`name` and `commit` of what was exported; `revision` as it was asked for."""

    name: str
    revision: str
    """As it was asked for."""
    commit: str
    """What it was."""


class Hash(Record):
    sha256: Sha256


def hashed(files: Mapping[str, str]) -> dict[str, Hash]:
    """Return the SHA-256 of each file, by its name, as a record."""
    return {name: Hash(sha256=sha256) for name, sha256 in files.items()}


class Adapter(Kept):
    """The adapter that was merged into a checkpoint."""

    name: str
    files: dict[str, Hash] | None = None
    """SHA-256 of each file that was read."""
    base: str | None = None
    """The repository that its configuration names as what it was trained on."""


class Averaged(Record):
    """One revision of a mean of several."""

    revision: str
    commit: str
    weight: float
    """Its share: those of all revisions add up to 1."""


class TokenizerOrigin(Kept):
    revision: str
    commit: str


class Contents(Kept):
    """What a checkpoint's files were, and the adapter that was merged into them. What was not looked at is absent."""

    dtype: str | None = None
    """Type of the weights in the checkpoint."""
    format: str | None = None
    """`safetensors` or `pickle`."""
    compared_revisions: Count | None = None
    """How many other revisions of the repository were compared with this one by their hashes."""
    same_weights_as: list[str] | None = None
    """Revisions that hold the same weights."""
    files: dict[str, Hash] | None = None
    """SHA-256 of each file that was read."""
    tokenizer: TokenizerOrigin | None = None
    """Where the tokenizer is from, if from another revision."""
    adapter: Adapter | None = None
    """Null without one."""
    averaged: list[Averaged] | None = None
    """The revisions whose weights were averaged; null for one checkpoint."""


class Source(Contents, Checkpoint):
    """The original, and what its files were."""

    model_config = Kept.model_config


class Calibration(Record):
    source: str
    sha256: str
    """SHA-256 of shape and token ids."""
    windows: Count
    sequence_length: Count
    end_tokens: Count | None = None
    """How many tokens are the end-of-text token; older records lack it."""


class CacheScales(Record):
    """The text on which the fixed scales of an int8 cache were measured. The scales are constants of the graph."""

    source: str
    sha256: str
    """SHA-256 of shape and token ids."""
    windows: Count
    sequence_length: Count


class Cache(Record):
    kv_cache: Literal["shared", "growing"]
    """`shared`: one buffer may be bound as past and present."""
    kv_dtype: Literal["float32", "float16", "int8"]
    kv_scales: CacheScales | None = None
    """The scales of an int8 cache with `rotary = "gqa"`; absent with any other cache."""


class Difference(Kept):
    mean: float
    """Nats per token."""
    low: float | None
    """95 % interval; null if the text allows none."""
    high: float | None


class Requantized(Kept):
    """Linears whose grid did not fit, and what rounding them again cost against the checkpoint's own weights."""

    bits: Count
    linears: list[str]
    delta_nll: Difference
    kld: Difference


class Imported(Kept):
    """The quantised checkpoint that codes, scales and zero points were taken from."""

    name: str
    revision: str
    commit: str
    files: dict[str, Hash] | None = None
    """SHA-256 of each file that was read."""
    format: str
    """`gptq_v2`, `awq`, `auto_round:auto_gptq`, `pack-quantized`, say."""
    tool: str | None = None
    """Its name and version, as far as the checkpoint tells."""
    config: Json
    """Its quantization_config, as it is in the file."""
    requantized: Requantized | None = None
    """Null if every code is as it was."""


class Origin(Kept):
    """What a manifest says before anything is published. `recipe` is held to its own schema where it is used."""

    versions: dict[str, str]
    """Versions of Python and the packages."""
    source: Source
    """The original."""
    calibration: Calibration | None = None
    """Null if nothing was observed."""
    recipe: Json
    """The whole recipe, defaults included."""
    layout: Cache
    """The KV cache."""
    imported: Imported | None = None
    """Null unless another tool quantised the weights; then `source` is the float checkpoint that was given, or this."""


class FileEntry(Kept):
    sha256: Sha256
    size: Count


class _Published(Kept):
    version: Annotated[int, Field(alias="schema")]
    created: str
    """UTC."""


class Manifest(Origin, _Published):
    """The content of manifest.json."""

    files: dict[str, FileEntry]
    """Every file but this one, by its path in the artifact."""


class DequantizedOrigin(Record):
    """What dequantized.json says before anything is published: the checkpoint that stored weights stand for."""

    versions: dict[str, str]
    source: Source
    weights: dict[str, FileEntry]
    """The file of the artifact that they were read from."""
    quantize: JsonValue
    """The recipe's section."""
    dtype: str
