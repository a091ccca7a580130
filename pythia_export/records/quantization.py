"""quantization.json: how each linear was rounded."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from ..base.strict_json import shown
from ..model.neox import MOST
from .record import Count, Figure, Layer, Record, Seconds

QUANTIZATION = "quantization.json"
QUANTIZATION_SCHEMA = 2

Linear = Annotated[str, StringConstraints(pattern=r"^(gpt_neox\.layers\.\d{1,5}\.[a-z0-9_.]+|embed_out)$")]


class LinearRecord(Record):
    """How one linear was rounded. Losses are relative to the output's energy; None where nothing was observed."""

    name: Linear
    """The checkpoint's name, without `.weight`."""
    layer: Layer | None
    """Null for the head."""
    shape: Annotated[list[Annotated[int, Field(ge=1, le=MOST)]], Field(min_length=2, max_length=2)]
    """`[out, in]`."""
    method: Literal["gptq", "rtn", "imported"]
    """`imported`: by another tool, whose codes are stored as they are."""
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


class Training(Record):
    """What `effort = "best"` came to: the whole quantised model trained to predict what the original predicts."""

    done: bool
    """False where nothing was trained."""
    reason: str | None
    """Why not; null where it was."""
    steps: Count = 0
    """Batches that were trained on."""
    windows: Count = 0
    """Calibration windows that were trained on."""
    drawn: Count = 0
    """Windows that the original wrote itself, trained on as well; GPTQ observed some of them."""
    held_out: Count = 0
    """Calibration windows that were kept apart, to judge by."""
    before: Figure | None = None
    """KL divergence from the original on these, nats per token, as GPTQ left the model."""
    after: Figure | None = None
    """The same of what is stored."""
    kept: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The share of what was learned that is stored: 0 where training did not help on the windows kept apart."""
    seconds: Seconds = 0.0


class Quantization(Record):
    """The content of quantization.json."""

    version: Annotated[int, Field(alias="schema", ge=1, le=QUANTIZATION_SCHEMA)]
    method: Literal["gptq", "rtn", "none", "imported"]
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
    training: Training | None = None
    """With `effort = "best"`."""
