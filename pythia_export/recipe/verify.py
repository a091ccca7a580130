"""[verify]: the held-out text, and the gates that decide the exit code."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_serializer, model_validator

from .section import LocalPath, Section
from .text import Text

# Gates that hold each layer, head or autoencoder.
INSIDE = ("residual_error", "pattern_js", "induction_lost", "lens_same_top", "feature_survival")


class Gate(Section):
    """A limit for what is estimated from text: `ppl_ratio = 1.05`, or `{ limit = 1.05, confidence = 0.99 }`."""

    limit: float = Field(gt=0)
    confidence: float = Field(0.95, ge=0.5, lt=1, description="of the interval that must be within the limit")

    @model_validator(mode="before")
    @classmethod
    def _a_number_is_the_limit(cls, given: Any) -> Any:
        return {"limit": given} if isinstance(given, int | float) and not isinstance(given, bool) else given

    @model_serializer(mode="wrap")
    def _as_it_was_given(self, dump: Any) -> Any:
        return self.limit if self.confidence == Gate.model_fields["confidence"].default else dump(self)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> Any:
        return {"anyOf": [{"type": "number"}, handler(core_schema)]}


class RatioGate(Gate):
    limit: float = Field(gt=1)


class ShareGate(Gate):
    limit: float = Field(gt=0, le=1)


class Gates(Section):
    """What the artifact must meet; exit code 10 unless every gate passes. Left out: not checked.

    The first two are measured outright. The others are estimated: a gate passes if the whole interval is within the
    limit, fails if the whole interval is beyond it, and is inconclusive otherwise.
    """

    export_max_abs: float | None = Field(
        None,
        gt=0,
        description="largest logit difference of ONNX Runtime from torch on the same weights, at accuracy level 0",
    )
    decode_max_abs: float | None = Field(
        None, gt=0, description="the same between one pass and decoding over the cache, batches and left padding"
    )
    ppl_ratio: RatioGate | None = Field(
        None, description="the artifact's perplexity divided by the original's, at most"
    )
    delta_nll: Gate | None = Field(
        None, description="rise of the loss, nats per token, at most: the logarithm of `ppl_ratio`"
    )
    kld_mean: Gate | None = Field(None, description="mean KL divergence from the original, nats per token, at most")
    same_top: ShareGate | None = Field(None, description="share of tokens with the same likeliest token, at least")
    min_tokens: int | None = Field(None, ge=1, description="held-out tokens, at least")
    regression: Gate | None = Field(
        None, description="with `verify --against`: rise of the mean KL divergence over the other artifact's, at most"
    )
    residual_error: Gate | None = Field(
        None, description="difference of the residual stream behind every layer, relative to its length, at most"
    )
    pattern_js: Gate | None = Field(
        None, description="Jensen-Shannon divergence of every head's attention pattern, nats per token, at most"
    )
    induction_lost: Gate | None = Field(
        None, description="fall of every head's induction score on repeated random tokens, at most"
    )
    lens_same_top: ShareGate | None = Field(
        None,
        description="share of tokens with the same likeliest token by the logit lens, behind every layer, at least",
    )
    feature_survival: ShareGate | None = Field(
        None,
        description="share of active features that survive, of every sparse autoencoder, at least; needs `verify.sae`",
    )

    @property
    def look_inside(self) -> bool:
        """Return whether a gate is set that only a look inside the model can judge."""
        return any(getattr(self, name) is not None for name in INSIDE)


class Verify(Text):
    tokens: int = Field(32768, ge=64, description="held-out tokens to score")
    inside: bool = Field(
        False,
        description="also compare residual streams, attention patterns and induction heads; "
        "a gate on one of them turns it on",
    )
    sae: LocalPath | None = Field(
        None,
        description="with `inside`, which it turns on: a sparse autoencoder in SAELens's form, or a folder of several; "
        "relative to the recipe file",
    )
    gates: Gates = Gates()

    @property
    def look_inside(self) -> bool:
        """Return whether the third question is asked, by itself or by what only it can answer."""
        return self.inside or self.sae is not None or self.gates.look_inside

    @model_validator(mode="after")
    def _survival_needs_features(self) -> Self:
        if self.gates.feature_survival is not None and self.sae is None:
            raise ValueError("`gates.feature_survival` needs `sae`, a folder of sparse autoencoders")
        return self
