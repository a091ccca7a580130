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

from ..base.errors import IntegrityError
from ..base.strict_json import shown
from ..model.neox import MOST, MOST_LAYERS

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
    """The checkpoint's name, without `.weight`."""
    layer: Layer | None
    """Null for the head."""
    shape: Annotated[list[Annotated[int, Field(ge=1, le=MOST)]], Field(min_length=2, max_length=2)]
    """`[out, in]`."""
    method: Literal["gptq", "rtn"]
    bits: Literal[2, 3, 4, 8]
    group_size: Annotated[int, Field(ge=-1, le=MOST)]
    symmetric: bool = True
    rtn_loss: float | None
    """Error of the output under round-to-nearest, as a share of the output's energy; null if nothing was observed."""
    loss: float | None
    """The same under the method that was used."""
    recovered: float | None
    """The share of `rtn_loss` that `loss` lacks."""
    expected_cost: float | None = None
    """What the second-order model of the loss expects, nats per token; with `fisher`."""
    heads: list[Annotated[list[float], Field(min_length=3, max_length=3)]] | None = None
    """Losses of each attention head's q, k and v; of QKV alone."""
    damp: float | None
    """The damping that sufficed, relative to the mean of the Hessian's diagonal."""
    tokens: Count
    """Observed tokens."""
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
    """Error of the residual stream after this layer, as a share of its energy."""
    seconds: Seconds


class Allocation(Record):
    """What a budget of bits came to."""

    asked: float
    """`quantize.bits_per_weight` of the recipe."""
    reached: float
    """Stored bits per weight, scales included."""
    raised: list[str]
    """Linears that got 8 bits."""


class Quantization(Record):
    """The content of quantization.json."""

    version: Annotated[int, Field(alias="schema", ge=1, le=QUANTIZATION_SCHEMA)]
    method: Literal["gptq", "rtn", "none"]
    bits_per_weight: Annotated[float, Field(ge=0, le=64)]
    """Stored bits, scales and zero points included."""
    seconds: Seconds
    """Seconds that quantising took."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    linears: list[LinearRecord]
    """In the order of the model."""
    layers: list[LayerRecord]
    allocation: Allocation | None = None
    """Null without a budget of bits."""


# parity.json


class Interval(Record):
    low: Wide | None
    high: Wide | None


class Bootstrap(Interval):
    replicates: int | None = None
    """Drawn samples of documents."""
    seed: int | None = None


class Mean(Interval):
    mean: Figure
    se: Figure | None
    """Standard error, clustered."""
    dof: Figure | None
    """Satterthwaite's degrees of freedom."""
    bootstrap: Bootstrap | None = None
    """A second interval, from drawing whole documents."""


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
    """Share of tokens, 0 to 1."""
    se: Figure | None
    """Standard error, clustered."""
    dof: Figure | None
    independent_tokens: Figure | None
    """So many independent tokens would have this error; Wilson's interval is computed for them."""


class Change(Interval):
    mean: Figure
    """Mean change of the probability of the token that came next in the text."""
    rms: Figure
    """Its root mean square; `low` and `high` are of this."""


class Clusters(Record):
    by: Literal["document", "window"]
    """`window` if the text is one document."""
    count: Count


class Part(Record):
    """What quantisation cost on some text."""

    tokens: Count
    """Scored tokens."""
    clusters: Clusters
    """What errors are clustered by."""
    nll_original: Figure
    """Mean loss of the original, nats per token."""
    nll_quantized: Figure
    """The same of the artifact."""
    ppl_original: Wide | None
    """Perplexity; null beyond 1e300."""
    ppl_quantized: Wide | None
    ppl_ratio: Ratio
    """The exponential of `delta_nll`."""
    delta_nll: Mean
    """Artifact less original, nats per token."""
    kld: Tails
    """KL(original || artifact), nats per token."""
    same_top: Share
    """Tokens where both find the same token likeliest."""
    delta_p: Change
    """Probability of the token that came next, artifact less original."""
    bits_per_byte_original: Figure
    """Loss in bits per byte of text: comparable between tokenizers."""
    bits_per_byte_quantized: Figure


class Subset(Part):
    name: str
    """`meta.pile_set_name` of its documents."""


class Sums(Record):
    """One entry a cluster: all that an interval depends on."""

    tokens: Annotated[list[Count], Field(min_length=1)]
    """Scored tokens of each cluster, in the order of the text."""
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
    """This artifact's, on the original's activations in float."""
    rtn: Mean
    """Round-to-nearest's."""
    saved: Mean
    """Their paired difference."""
    recovered: Ratio | None
    """Null if round-to-nearest's own mean cannot be told from zero."""


class RoundingOfBoth(Record):
    delta_nll: Rounding
    kld: Rounding


class Suspect(Record):
    name: str
    layer: Layer | None
    error: Figure
    """Error of the output, relative."""
    rtn_error: Figure
    """The same of round-to-nearest."""
    ratio: Figure
    """The first divided by the second."""


class Suspects(Record):
    limit: Figure
    """A linear is suspect beyond this ratio."""
    first: Suspect | None
    """The first linear of the model beyond the limit."""
    worst: Annotated[list[Suspect], Field(min_length=1)]
    """Up to five linears with the largest ratio."""


class Reference(Record):
    """How the original was run."""

    weights: str
    """`one layer at a time` or `kept in memory`."""
    passes: Count
    """How often all weights were read."""
    float32_bytes: Count
    """Size of the original in float32."""
    free_bytes: Count
    """Memory that was free."""
    device: str
    """Where torch ran it."""


class Cost(Part):
    subsets: list[Subset]
    """The same figures by part of the text, if its documents name one."""
    sums: Sums
    rounding: RoundingOfBoth | None
    """Null without `--rtn`."""
    suspects: Suspects | None
    """Null unless a gate on the cost did not pass."""
    reference: Reference
    tokens_per_second: Figure
    """Speed of ONNX Runtime while it scored, with logits of every token."""


class Cut(Record):
    at: Count
    """Tokens of the prompt; 16 follow one by one, the rest at once."""
    max_abs: Figure
    """Against one pass."""


class Run(Record):
    """One way of computing the logits, and how far it is from torch's."""

    name: str
    """For people: `level 0`, `native kernels, level 0`, `as it ships, level 4`."""
    speed: str
    """`function`, `native` or `stock`."""
    why: str
    """Why it ran so."""
    accuracy_level: int
    """Accuracy level of MatMulNBits."""
    gated: bool
    """Whether the export gates apply to it."""
    max_abs: Figure
    """Largest absolute difference of a logit from torch, in one pass."""
    p999_abs: Figure
    """Its 99.9th percentile."""
    same_top: Figure
    """Share of tokens with the same likeliest token."""
    splits: list[Cut]
    """Over the cache, cut at several places, against one pass."""
    batch_max_abs: Figure
    """Four rows of 64 tokens together, against one pass."""
    padding_max_abs: Figure
    """The same, padded on the left by different lengths, the last 4 tokens one by one."""
    decode_max_abs: Figure
    """The largest of `splits`, `batch_max_abs` and `padding_max_abs`."""


class FirstDivergence(Record):
    """`op` is None where no operator differs by itself."""

    layer: Layer | None
    """Null outside the blocks."""
    op: str | None
    """The first operator that differs; null if none does by itself."""
    checked: Count
    """Operators that were compared with torch in float64 on their own inputs."""
    diverging: Count
    """How many of them differ."""
    rounded_cache: str | None = None
    """Type of a cache that is smaller than the activations."""
    node: str | None = None
    error: Figure | None = None
    """Relative; null if the graph lacks the value."""
    tolerance: Figure | None = None
    way: str | None = None
    """`one pass` or `over the cache`."""
    speed: str | None = None


class Exported(Record):
    tokens: Count
    """Compared tokens."""
    runs: Annotated[list[Run], Field(min_length=1)]
    """Ways to compute the logits. More kinds may come: read them by `gated`, not by place."""
    first_divergence: FirstDivergence | None
    """Null unless an export gate did not pass."""

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
    """As it was asked for."""
    commit: str
    """What it was."""


class Corpus(Record):
    source: str
    sha256: str
    """SHA-256 of shape and token ids."""
    tokens: Count
    windows: Count
    sequence_length: Count
    n_bytes: Count
    """Bytes of the text."""
    end_tokens: Count | None = None
    """How many tokens are the end-of-text token; older records lack it."""


class Verdict(Record):
    """One gate: what was measured, what was held to the limit, and what came of it."""

    name: GateName
    limit: Annotated[float, Field(gt=0, le=1e100)]
    confidence: Figure | None
    """Confidence of the two-sided interval; null for what is measured outright."""
    value: Wide | None
    """The measured value."""
    bound: Wide | None
    """The end of the interval that was compared with the limit."""
    outcome: Outcome
    """`inconclusive`: the limit is within the interval, or there is none."""
    passed: bool
    more_tokens: Count | None
    """Tokens of such text that would decide; null if not known."""
    run: str | None
    """The run of `export` that gave the value."""

    @model_validator(mode="after")
    def _outcome_is_the_verdict(self) -> Self:
        if self.passed != (self.outcome == "passed"):
            raise ValueError(f"`passed` is {shown(self.passed)} and `outcome` {self.outcome}")
        return self


class Worst(Record):
    max_abs: Figure
    """This artifact's."""
    decode_max_abs: Figure
    other_max_abs: Figure
    """The other's."""
    other_decode_max_abs: Figure


class Against(Record):
    """This artifact less another."""

    created: str | None
    """When the other record was made; `machine` and `versions` are the other's too."""
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
    """Versions of Python and the packages."""
    machine: str
    """Processor and cores."""
    created: str
    """UTC."""
    source: Checkpoint
    """The original."""
    corpus: Corpus
    """The held-out text."""
    export: Exported
    """Did the export keep the numbers?"""
    cost: Cost
    """What did quantisation cost?"""
    against: Against | None
    """Null without `--against`."""
    gates: list[Verdict]
    """In the recipe's order."""
    passed: bool
    seconds: Seconds
    """Seconds that the whole proof took."""

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
    """Null without one."""


class Calibration(Record):
    source: str
    sha256: str
    """SHA-256 of shape and token ids."""
    windows: Count
    sequence_length: Count
    end_tokens: Count | None = None
    """How many tokens are the end-of-text token; older records lack it."""


class Cache(Record):
    kv_cache: Literal["shared", "growing"]
    """`shared`: one buffer may be bound as past and present."""
    kv_dtype: Literal["float32", "float16", "int8"]


class Origin(Record):
    """What a manifest says before anything is published. `recipe` is held to its own schema where it is used."""

    model_config = ConfigDict(extra="allow")

    versions: dict[str, str]
    """Versions of Python and the packages."""
    source: Source
    """The original."""
    calibration: Calibration | None = None
    """Null if nothing was observed."""
    recipe: dict[str, Any]
    """The whole recipe, defaults included."""
    layout: Cache
    """The KV cache."""


class Manifest(Origin):
    """The content of manifest.json."""

    version: Annotated[int, Field(alias="schema")]
    created: str
    """UTC."""
    files: dict[str, FileEntry]
    """Every file but this one, by its path in the artifact."""
