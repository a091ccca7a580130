"""What the three records of an artifact hold, as types: read once, checked once, written from the same types.

`quantization.json` says how each linear was rounded, `parity.json` what was proved, `manifest.json` where the artifact
comes from and what its files are; docs/reference shows every field. A record that lacks a field, or holds
another kind of value in it, is an error that names the field, what was found and what was expected. Fields that this
version does not know are left aside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from ..errors import IntegrityError
from ..neox import MOST, MOST_LAYERS
from ..strict_json import shown

QUANTIZATION, PARITY = "quantization.json", "parity.json"
PARITY_SCHEMA = 2  # of parity.json, which docs/reference/parity.md describes
QUANTIZATION_SCHEMA = 2

Count = Annotated[int, Field(ge=0, le=1 << 62)]
Layer = Annotated[int, Field(ge=0, lt=MOST_LAYERS)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Linear = Annotated[str, StringConstraints(pattern=r"^(gpt_neox\.layers\.\d{1,5}\.[a-z0-9_.]+|embed_out)$")]
Figure = Annotated[float, Field(ge=-1e100, le=1e100)]  # nats, logits, shares: squares and sums of such are finite
Wide = Annotated[float, Field(ge=-1e300, le=1e300)]  # perplexities and their ratios: as percents they are finite still
Outcome = Literal["passed", "failed", "inconclusive"]
GateName = Literal[
    "export_max_abs", "decode_max_abs", "ppl_ratio", "delta_nll", "kld_mean", "same_top", "min_tokens", "regression"
]


class Record(BaseModel):
    """Strict: a string is no number, and neither is `true`. No infinities."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False, populate_by_name=True)

    def to_json(self) -> dict[str, Any]:
        """Return what the file holds, fields that were not given left out."""
        return self.model_dump(by_alias=True, exclude_unset=True)


AnyRecord = TypeVar("AnyRecord", bound=Record)


def checked(kind: type[AnyRecord], raw: Any, where: Path | str) -> AnyRecord:
    """Return `raw`, parsed JSON, as a record.

    Raises:
        IntegrityError: names the first field that is missing or of another kind, and how many more are.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as e:
        _refuse(e, where)


def _refuse(error: ValidationError, where: Path | str) -> NoReturn:
    errors = error.errors(include_url=False)
    first = errors[0]
    field = ".".join(map(str, first["loc"]))
    said = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if first["type"] == "missing":
        found = f"no `{field}`"
    else:
        found = f"`{field}` is {shown(first['input'])}; " if field else f"{shown(first['input'])}; "
        found += said if first["type"] == "value_error" else f"{said} was expected"
    more = f" (and {len(errors) - 1} more such fields)" if len(errors) > 1 else ""
    raise IntegrityError(f"{where}: {found}{more}", hint="Copy the artifact again, or export it again.")


# quantization.json


class LinearRecord(Record):
    """How one linear was rounded. Losses are relative to the output's energy; None where nothing was observed."""

    name: Linear
    layer: Layer | None
    shape: Annotated[list[Annotated[int, Field(ge=1, le=MOST)]], Field(min_length=2, max_length=2)]
    method: Literal["gptq", "rtn"]
    bits: Literal[2, 3, 4, 8]
    group_size: Annotated[int, Field(ge=-1, le=MOST)]
    symmetric: bool = True
    rtn_loss: float | None
    loss: float | None
    recovered: float | None
    expected_cost: float | None = None  # nats a token; with `fisher`
    heads: list[Annotated[list[float], Field(min_length=3, max_length=3)]] | None = None  # [heads][q, k, v], of QKV
    damp: float | None
    tokens: Count
    seconds: Seconds

    @model_validator(mode="after")
    def _layer_is_the_names(self) -> Self:
        named = int(self.name.split(".")[2]) if self.name.startswith("gpt_neox.") else None
        if self.layer != named:
            raise ValueError(f"`layer` is {shown(self.layer)}, the name {self.name}")
        return self


class LayerRecord(Record):
    layer: Layer
    residual_error: float | None
    seconds: Seconds


class Allocation(Record):
    """asked, reached: stored bits a weight, scales included. raised: names of the linears that get 8 bits."""

    asked: float
    reached: float
    raised: list[str]


class Quantization(Record):
    """The content of quantization.json."""

    version: Annotated[int, Field(alias="schema", ge=1, le=QUANTIZATION_SCHEMA)]
    method: Literal["gptq", "rtn", "none"]
    bits_per_weight: Annotated[float, Field(ge=0, le=64)]
    seconds: Seconds
    device: str = "cpu"
    linears: list[LinearRecord]
    layers: list[LayerRecord]
    allocation: Allocation | None = None


# parity.json


class Interval(Record):
    low: Wide | None
    high: Wide | None


class Bootstrap(Interval):
    replicates: int | None = None
    seed: int | None = None


class Mean(Interval):
    mean: Figure
    se: Figure | None
    dof: Figure | None
    bootstrap: Bootstrap | None = None


class Tails(Mean):
    median: Figure
    p90: Figure
    p99: Figure
    p999: Figure
    max: Figure


class Ratio(Interval):
    value: Wide | None


class Share(Interval):
    value: Figure
    se: Figure | None
    dof: Figure | None
    independent_tokens: Figure | None


class Change(Interval):
    mean: Figure
    rms: Figure


class Clusters(Record):
    by: Literal["document", "window"]
    count: Count


class Part(Record):
    """What quantisation cost on some text."""

    tokens: Count
    clusters: Clusters
    nll_original: Figure
    nll_quantized: Figure
    ppl_original: Wide | None
    ppl_quantized: Wide | None
    ppl_ratio: Ratio
    delta_nll: Mean
    kld: Tails
    same_top: Share
    delta_p: Change
    bits_per_byte_original: Figure
    bits_per_byte_quantized: Figure


class Subset(Part):
    name: str


class Sums(Record):
    """One entry a cluster: all that an interval depends on."""

    tokens: Annotated[list[Count], Field(min_length=1)]
    nll_original: list[Figure]
    nll_quantized: list[Figure]
    kld: list[Figure]
    same_top: list[Count]

    @model_validator(mode="after")
    def _as_long_as_each_other(self) -> Self:
        lengths = {name: len(getattr(self, name)) for name in type(self).model_fields}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"lists of different lengths: {', '.join(f'{k} {v}' for k, v in lengths.items())}")
        return self


class Rounding(Record):
    artifact: Mean
    rtn: Mean
    saved: Mean
    recovered: Ratio | None


class RoundingOfBoth(Record):
    delta_nll: Rounding
    kld: Rounding


class Suspect(Record):
    name: str
    layer: Layer | None
    error: Figure
    rtn_error: Figure
    ratio: Figure


class Suspects(Record):
    limit: Figure
    first: Suspect | None
    worst: Annotated[list[Suspect], Field(min_length=1)]


class Reference(Record):
    """How the original was run."""

    weights: str
    passes: Count
    float32_bytes: Count
    free_bytes: Count
    device: str


class Cost(Part):
    subsets: list[Subset]
    sums: Sums
    rounding: RoundingOfBoth | None
    suspects: Suspects | None
    reference: Reference
    tokens_per_second: Figure


class Cut(Record):
    at: Count
    max_abs: Figure


class Run(Record):
    """One way of computing the logits, and how far it is from torch's."""

    name: str
    speed: str
    why: str
    accuracy_level: int
    gated: bool
    max_abs: Figure
    p999_abs: Figure
    same_top: Figure
    splits: list[Cut]
    batch_max_abs: Figure
    padding_max_abs: Figure
    decode_max_abs: Figure


class FirstDivergence(Record):
    """`op` is None where no operator differs by itself."""

    layer: Layer | None
    op: str | None
    checked: Count
    diverging: Count
    rounded_cache: str | None = None
    node: str | None = None
    error: Figure | None = None
    tolerance: Figure | None = None
    way: str | None = None
    speed: str | None = None


class Exported(Record):
    tokens: Count
    runs: Annotated[list[Run], Field(min_length=1)]
    first_divergence: FirstDivergence | None

    @model_validator(mode="after")
    def _runs_can_be_set_beside_each_other(self) -> Self:
        if not any(run.gated for run in self.runs):
            raise ValueError("no run is gated")
        cuts = [[cut.at for cut in run.splits] for run in self.runs]
        if any(at != cuts[0] for at in cuts):
            raise ValueError("runs were cut at different tokens")
        return self


class Checkpoint(Record):
    """`name` and `commit` of what was exported; `revision` as it was asked for."""

    name: str
    revision: str
    commit: str


class Corpus(Record):
    source: str
    sha256: str
    tokens: Count
    windows: Count
    sequence_length: Count
    n_bytes: Count
    end_tokens: Count | None = None  # older records lack it


class Verdict(Record):
    """One gate: what was measured, what was held to the limit, and what came of it."""

    name: GateName
    limit: Annotated[float, Field(gt=0, le=1e100)]
    confidence: Figure | None
    value: Wide | None
    bound: Wide | None
    outcome: Outcome
    passed: bool
    more_tokens: Count | None
    run: str | None

    @model_validator(mode="after")
    def _outcome_is_the_verdict(self) -> Self:
        if self.passed != (self.outcome == "passed"):
            raise ValueError(f"`passed` is {shown(self.passed)} and `outcome` {self.outcome}")
        return self


class Worst(Record):
    max_abs: Figure
    decode_max_abs: Figure
    other_max_abs: Figure
    other_decode_max_abs: Figure


class Against(Record):
    """This artifact less another."""

    created: str | None
    machine: str | None
    versions: dict[str, str] | None
    tokens: Count
    clusters: Clusters
    delta_nll: Mean
    kld: Mean
    same_top: Mean
    export: Worst


class Parity(Record):
    """The content of parity.json."""

    version: Annotated[Literal[2], Field(alias="schema")]  # PARITY_SCHEMA
    versions: dict[str, str]
    machine: str
    created: str
    source: Checkpoint
    corpus: Corpus
    export: Exported
    cost: Cost
    against: Against | None
    gates: list[Verdict]
    passed: bool
    seconds: Seconds

    @model_validator(mode="after")
    def _passed_is_what_the_gates_say(self) -> Self:
        if self.passed != all(gate.passed for gate in self.gates):
            raise ValueError(f"`passed` is {shown(self.passed)}, and its gates say otherwise")
        return self


# manifest.json


class FileEntry(Record):
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    size: Count


class Adapter(Record):
    model_config = ConfigDict(extra="allow")

    name: str


class Source(Checkpoint):
    """And what the checkpoint's files were, and the adapter that was merged into them."""

    model_config = ConfigDict(extra="allow")

    adapter: Adapter | None = None


class Calibration(Record):
    source: str
    sha256: str
    windows: Count
    sequence_length: Count
    end_tokens: Count | None = None  # older records lack it


class Cache(Record):
    kv_cache: Literal["shared", "growing"]
    kv_dtype: Literal["float32", "float16", "int8"]


class Origin(Record):
    """What a manifest says before anything is published. `recipe` is held to its own schema where it is used."""

    model_config = ConfigDict(extra="allow")

    versions: dict[str, str]
    source: Source
    calibration: Calibration | None = None
    recipe: dict[str, Any]
    layout: Cache


class Manifest(Origin):
    """The content of manifest.json."""

    version: Annotated[int, Field(alias="schema")]
    created: str
    files: dict[str, FileEntry]
