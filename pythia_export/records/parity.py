"""parity.json: what was proved of an artifact. docs/reference/parity.md shows every field."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_serializer, model_validator

from ..base.strict_json import shown
from .manifest import Checkpoint
from .record import Count, Figure, Layer, Record, Seconds, Wide

PARITY = "parity.json"
PARITY_SCHEMA: Literal[2] = 2

Outcome = Literal["passed", "failed", "inconclusive"]
GateName = Literal[
    "export_max_abs", "decode_max_abs", "ppl_ratio", "delta_nll", "kld_mean", "same_top", "min_tokens", "regression",
    "residual_error", "pattern_js", "induction_lost", "lens_same_top", "feature_survival",
]  # fmt: skip


class Interval(Record):
    """Bounds; null where there are none, or beyond a float."""

    low: Wide | None
    high: Wide | None


class Bootstrap(Interval):
    replicates: int | None = None
    """Drawn samples of documents."""
    seed: int | None = None


class _Estimated(Record):
    mean: Figure
    se: Figure | None
    """Standard error, clustered."""
    dof: Figure | None
    """Satterthwaite's degrees of freedom."""


class Mean(Interval, _Estimated):
    bootstrap: Bootstrap | None = None
    """A second interval, from drawing whole documents."""


class Tails(Mean):
    median: Figure
    p90: Figure
    p99: Figure
    p999: Figure
    max: Figure


class _Value(Record):
    value: Wide | None


class Ratio(Interval, _Value):
    pass


class _ShareOfTokens(Record):
    value: Figure
    """Share of tokens, 0 to 1."""
    se: Figure | None
    """Standard error, clustered."""
    dof: Figure | None


class Share(Interval, _ShareOfTokens):
    independent_tokens: Figure | None
    """So many independent tokens would have this error; Wilson's interval is computed for them."""


class _Changed(Record):
    mean: Figure
    """Mean change of the probability of the token that came next in the text."""
    rms: Figure
    """Its root mean square; `low` and `high` are of this."""


class Change(Interval, _Changed):
    pass


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


class _Named(Record):
    name: str
    """`meta.pile_set_name` of its documents."""


class Subset(Part, _Named):
    """The same figures of one part of the text."""


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


class Extreme(Record):
    """A linear with one weight so large that the scale it needs rounds the weights beside it away."""

    name: str
    largest: Figure
    """Magnitude of its largest weight: beyond 10,000 times the mean."""
    mean: Figure
    """Mean magnitude of its other weights."""


class Suspects(Record):
    limit: Figure
    """A linear is suspect beyond this ratio."""
    first: Suspect | None
    """The first linear of the model beyond the limit."""
    worst: Annotated[list[Suspect], Field(min_length=1)]
    """Up to five linears with the largest ratio."""
    extreme: Extreme | None = None
    """Also null in older files, for which it was not looked for."""


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


class Scored(Part):
    """What quantisation cost on the whole text, with or without a graph."""

    subsets: list[Subset]
    """The same figures by part of the text, if its documents name one."""
    sums: Sums


class Cost(Scored):
    """The artifact as it ships against the original."""

    reference: Reference
    tokens_per_second: Figure
    """Speed of ONNX Runtime while it scored, with logits of every token."""
    rounding: RoundingOfBoth | None
    """Null without `--rtn`."""
    suspects: Suspects | None
    """Null unless a gate on the cost did not pass."""
    baseline: Literal["original", "imported"] = "original"
    """`imported`: no float checkpoint was given, so the artifact stands beside the quantised one it was made of."""


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
    place: str | None = None
    """The layer, head or autoencoder that gave the value, of a gate that holds each of them: `layer 3, head 1`."""

    @field_serializer("limit", "value", "bound")
    def _tokens_are_whole(self, figure: float | None) -> float | None:
        return int(figure) if self.name == "min_tokens" and figure is not None else figure

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


class Depth(Record):
    """One boundary between layers."""

    layer: Layer | None
    """Behind this layer (`blocks.N.hook_resid_post`); null is the embedding, before the first."""
    residual_error: Mean
    """Difference of the residual stream, relative to the original's length, token by token."""
    cosine: Mean
    """Cosine of the angle between both."""
    lens_kld: Mean
    """Logit lens: KL(original || artifact) of what final norm and head make of it, nats per token."""
    lens_same_top: Share
    """Tokens whose likeliest successor by the logit lens is the same."""


class Head(Record):
    layer: Layer
    head: Count
    pattern_js: Mean
    """Jensen-Shannon divergence of both attention patterns, nats per token; 0.693 at most."""
    induction_original: Figure
    """Induction score of the original: attention from a repeated token to the one after its first occurrence."""
    induction: Figure
    """The same of the artifact."""
    induction_lost: Mean
    """The first less the second."""


class Features(Record):
    """What one sparse autoencoder sees, at the sampled tokens."""

    name: str
    """Its folder, relative to the one that was given."""
    sha256: str
    """SHA-256 of its `sae_weights.safetensors`."""
    architecture: Literal["standard", "jumprelu", "topk", "gated"]
    hook: str
    """Where it reads."""
    head: Count | None
    """The one head that it reads; null: all of the place."""
    features: Count
    """How many it has."""
    active_original: Figure
    """Features that are active in the original, per token."""
    active: Figure
    """The same of the artifact."""
    survived: Share
    """The share of features active in the original that are active in the artifact at the same token."""
    inherited: Share | None
    """The share of features active in the artifact that were active in the original; the others are new. Null
    if none is."""
    unexplained_original: Mean
    """Share of the original's variance that the autoencoder does not explain."""
    unexplained: Mean
    """The same of the artifact, by the same autoencoder."""


class Alike(Record):
    """How near one set of weights computes to the original, inside. Means over layers leave the embedding out."""

    residual_error: Mean
    """Mean over the layers."""
    cosine: Mean
    lens_kld: Mean
    lens_same_top: Share
    pattern_js: Mean
    """Mean over the heads."""
    induction_original: Figure
    """Largest induction score of a head of the original."""
    induction: Figure
    """The same of the artifact, whichever head has it."""
    depth: Annotated[list[Depth], Field(min_length=1)]
    """Boundary by boundary, the embedding first."""
    heads: list[Head]
    """Head by head, layer after layer."""
    feature_survival: Share | None = None
    """`survived` of all autoencoders together. Null without them; older files lack it."""
    features: list[Features] = []
    """Autoencoder by autoencoder; empty without `--sae`."""


class Inside(Record):
    """All sides run in torch, the original in float, the others with activations rounded as the graph rounds them."""

    tokens: Count
    """Tokens whose residual streams were compared."""
    sampled: Count
    """Those of them, evenly spread, whose attention patterns, logit lens and features were compared."""
    clusters: Clusters
    sequences: Count
    """Sequences of random tokens, each repeated once, for the induction scores; their intervals are clustered by it."""
    repeated: Count
    """Random tokens in each."""
    seconds: Seconds
    """What this took beside the cost."""
    activations: Literal["float", "int8"] = "float"
    """What the products of artifact and round-to-nearest read: `int8` at accuracy level 4. Older files: float."""
    cache: Literal["float32", "float16", "int8"] = "float32"
    """Type in which they keep keys and values. Older files: float32."""
    artifact: Alike
    rtn: Alike | None
    """The same of round-to-nearest. Null without `--rtn`."""


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
    inside: Inside | None = None
    """Does it still compute alike? Null if it was not asked; older files lack it."""
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
