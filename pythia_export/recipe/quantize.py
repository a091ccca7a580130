"""[quantize]: how weights are rounded, and how they are stored."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, Literal, Self

from pydantic import Field, model_serializer, model_validator

from ..base.errors import RecipeError
from ..model.neox import HEAD
from .scheme import Bits, GroupSize, Scheme
from .section import NonEmpty, Section

Method = Literal["gptq", "rtn", "none", "imported"]
_OF_SCHEME = set(Scheme.model_fields)


class Override(Section):
    """Other settings for linears whose name matches a pattern. The last match wins; what is not given stays."""

    pattern: NonEmpty = Field(description="shell wildcards over the name without `.weight`: `*.layers.0.*`, `*.dense`")
    method: Method | None = Field(None, description="as in `[quantize]`")
    bits: Bits | None = Field(None, description="as in `[quantize]`")
    group_size: GroupSize | None = Field(None, description="as in `[quantize]`")
    symmetric: bool | None = Field(None, description="as in `[quantize]`")


class Head(Section):
    """The output projection: by far the largest single linear of the small models."""

    method: Method = Field("gptq", description="`none` keeps the head in float, as `dtype` says")
    bits: Bits = Field(8, description="as in `[quantize]`")
    group_size: GroupSize = Field(128, description="as in `[quantize]`")
    symmetric: bool = Field(True, description="as in `[quantize]`")
    dtype: Literal["float16", "float32"] = Field("float16", description="type of a head with method = `none`")

    @model_serializer(mode="wrap")
    def _as_recipes_were(self, dump: Any) -> Any:
        """Without what none of them had, so that what was recorded before compares equal."""
        found = dump(self)
        if found.get("dtype") == "float16":
            del found["dtype"]
        return found


_STRETCHES = (1.0, 0.9, 0.95, 1.05, 1.1)


class Quantize(Section):
    method: Method = Field(
        "gptq",
        description="`gptq` needs [calibration]; `rtn` is round-to-nearest; `none` leaves weights in float; `imported` "
        "is what `import` writes down of weights that another tool has quantised",
    )
    bits: Bits = Field(4, description="bits of a code; one of 3 bits is stored in `three_bit_field` bits")
    group_size: GroupSize = Field(128, description="inputs of a row that share a scale; -1 is the whole row")
    symmetric: bool = Field(True, description="false stores a zero point for each group")
    effort: Literal["fast", "default", "best"] = Field(
        "default",
        description="`fast` leaves out what takes longest (`beam`, `fisher`, `joint_hessian`, unless they are given); "
        "`best` also searches further (`beam` = 64, unless it is given), tries grids of several widths for each row, "
        "rounds q, k and v by what attention makes of their errors, in whatever basis of each head costs least, and, "
        "where `calibration.memory_gb` holds the whole model, also observes text that the original writes and trains "
        "the model to predict what the original does",
        json_schema_extra={"label": "{} effort"},
    )
    act_order: bool = Field(True, description="round columns by falling Hessian diagonal; their stored order stays")
    damp: float = Field(
        0.01, gt=0, le=1, description="percdamp: added to the Hessian's diagonal, relative to the diagonal's mean"
    )
    max_damp: float = Field(
        0.1, gt=0, le=1, description="where the Hessian needs more, `damp` is doubled up to here; then the run fails"
    )
    balance: bool = Field(
        True,
        description="first choose each channel's scale between LayerNorm, v or q and what reads it by what rounding "
        "costs, so that outlier channels cost nothing",
    )
    clip: bool = Field(True, description="search each group's scale for the least error, instead of spanning all of it")
    beam: int = Field(
        16, ge=1, le=64, description="roundings of each row that are carried from column to column; 1 is plain GPTQ"
    )
    error_correction: bool = Field(
        True, description="compensate for the layers before, against the activations of the original model"
    )
    joint_hessian: bool = Field(
        True,
        description="round dense knowing that 4h_to_h will compensate for its errors; with error_correction and a "
        "parallel residual only",
    )
    hessian: Literal["quantized", "original"] = Field(
        "quantized",
        json_schema_extra={"label": "{}'s hessian"},
        description="`quantized`: of activations as the quantised layers before give them; `original`: of the original "
        "model's, which `sweep` computes once for all quantisations of a checkpoint. It needs error_correction = false",
    )
    fisher: bool = Field(
        True, description="weight outputs by the loss's sensitivity and let rows compensate; one more backward pass"
    )
    bits_per_weight: float | None = Field(
        None, gt=0, le=9, description="budget of stored bits, scales and head included: 8 bits go where they save most"
    )
    three_bit_field: Literal[3, 4] | None = Field(
        None,
        description="bits that a code of 3 bits takes where it is stored; by default 3 for target = `cpu` with "
        "rotary = `custom`, otherwise 4. Without our kernels a session unpacks 3 to 4 when it opens. Rows whose length "
        "is no multiple of 128 keep 4",
    )
    embedding: Literal["float32", "float16", "int8", "int4"] = Field("float16", description="type of the embedding")
    products: Literal[4, 2] = Field(
        4,
        description="matrix products per layer: 4 as in the checkpoint; 2 folds the LayerNorms into the weights, makes "
        "one matrix of QKV and h_to_4h, and one of dense and 4h_to_h",
    )
    head: Head = Head()
    override: tuple[Override, ...] = ()

    @classmethod
    def search_keys(cls) -> list[str]:
        """Return the keys that say how GPTQ searches for codes; the other ones say what is stored."""
        stored = {"method", *Scheme.model_fields, "bits_per_weight", "embedding", "products", "head", "override"}
        stored.add("three_bit_field")
        return [key for key in cls.model_fields if key not in stored]

    @property
    def form(self) -> tuple[int, bool, bool]:
        """The equal model that is rounded: matrix products a layer, and whether its layers, and whether the final
        LayerNorm and the head, are in canonical units. Round-to-nearest stays what its name says."""
        balanced = self.balance and self.method == "gptq"
        return self.products, balanced, balanced and self.linear(HEAD)[0] != "none"

    @property
    def stretches(self) -> tuple[float, ...]:
        """What each row's scales are multiplied by, in turn; the rounding that costs least is taken."""
        return _STRETCHES if self.effort == "best" and self.clip else (1.0,)

    @property
    def passes(self) -> int:
        """Return in how many passes coupled rows are rounded: those of one pass do not make up for each other."""
        return 32 if self.effort == "best" else 8

    @property
    def measures_attention(self) -> bool:
        """Whether q, k and v are rounded by what attention makes of their errors."""
        return self.effort == "best" and self.fisher

    @model_serializer(mode="wrap")
    def _as_recipes_were(self, dump: Any) -> Any:
        """Without what none of them had, so that what was recorded before compares equal."""
        found = dump(self)
        if found.get("effort") == "default":
            del found["effort"]
        if found.get("three_bit_field", 0) is None:
            del found["three_bit_field"]
        return found

    @model_validator(mode="before")
    @classmethod
    def _effort_says_how_far_to_search(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("effort") == "fast":
            return {"beam": 1, "fisher": False, "joint_hessian": False} | given
        if isinstance(given, dict) and given.get("effort") == "best":
            return {"beam": 64} | given
        return given

    @model_validator(mode="after")
    def _best_trains_what_gptq_rounded(self) -> Self:
        if self.effort == "best" and self.method != "gptq":
            raise ValueError("effort = 'best' starts from what GPTQ gives: it needs method = 'gptq'")
        return self

    @model_validator(mode="after")
    def _ladder_climbs(self) -> Self:
        if self.max_damp < self.damp:
            raise ValueError(f"max_damp {self.max_damp} is below damp {self.damp}")
        return self

    @model_validator(mode="after")
    def _the_original_has_no_error(self) -> Self:
        if self.hessian == "original" and self.error_correction:
            raise ValueError(
                "hessian = 'original' sees no error of the layers before: error_correction = false with it"
            )
        return self

    @model_validator(mode="after")
    def _products_stand_side_by_side(self) -> Self:
        if self.three_bit_field == 3 and self.products == 2:
            raise ValueError(
                "three_bit_field = 3 with products = 2: two matrices stored side by side need codes in 4 bits"
            )
        return self

    @model_validator(mode="after")
    def _budget_is_measured(self) -> Self:
        if self.bits_per_weight is not None and self.method != "gptq":
            raise ValueError("bits_per_weight measures on calibration text: it needs method = 'gptq'")
        return self

    def settled(
        self, weights: str, parallel_residual: bool, computed: str, three_bits: bool = False
    ) -> tuple[Quantize, list[str]]:
        """Return what is done of this for one checkpoint, and a sentence for each setting that is not as it was given.

        `weights` is the dtype of the checkpoint, `computed` that of the graph. Where nothing is quantised, embedding
        and head keep every value. `joint_hessian` needs dense and 4h_to_h to add into one vector. `three_bits` says
        whether the graph is for what reads codes of 3 bits as they are stored.

        Raises:
            RecipeError: `imported`: there is nothing to do then.
        """
        if "imported" in (self.method, self.head.method, *(rule.method for rule in self.override)):
            raise RecipeError(
                "quantize.method = 'imported': such weights were rounded by another tool",
                hint="`pythia-export import DIR --out ARTIFACT` takes them as they are.",
            )
        found, notes = self, []
        if self.method == "none" and weights != "float16" and computed == "float32":
            kept = "dtype" in self.head.model_fields_set
            head = self.head if kept else self.head.model_copy(update={"dtype": "float32"})
            embedding = self.embedding if "embedding" in self.model_fields_set else "float32"
            found = self.model_copy(update={"head": head, "embedding": embedding})
            if found != self:
                notes.append(f"Embedding and head are stored as float32: the weights are {weights}.")
        if self.method == "gptq" and self.joint_hessian and self.error_correction and not parallel_residual:
            found = found.model_copy(update={"joint_hessian": False})
            notes.append(
                "joint_hessian is off: this model's residual is sequential, so dense cannot leave errors to 4h_to_h."
            )
        found, note = found.in_field(three_bits)
        return found, notes + note

    def in_field(self, three_bits: bool) -> tuple[Quantize, list[str]]:
        """Return this with the field in which codes of 3 bits are stored, and a sentence where that is one of 4.

        `three_bits` says whether the graph is for what reads codes of 3 bits as they are stored.
        """
        if self.three_bit_field is not None or 3 not in (self.bits, self.head.bits, *(x.bits for x in self.override)):
            return self, []
        if three_bits and self.products == 4:
            return self.model_copy(update={"three_bit_field": 3}), []
        return self.model_copy(update={"three_bit_field": 4}), [
            "Codes of 3 bits are stored in 4: the kernels that read 3 are for target = 'cpu' with rotary = 'custom', "
            "layout = 'flat' and products = 4. three_bit_field = 3 stores 3 where products = 4."
        ]

    def linear(self, name: str) -> tuple[Method, Scheme]:
        """Method and scheme of one linear, by its on-disk name without `.weight`."""
        if name == HEAD:
            method, scheme = self.head.method, self.head.model_dump(include=_OF_SCHEME)
            if self.method == "none":
                method = "none"
            elif self.method == "rtn" and method == "gptq":
                method = "rtn"
        else:
            method, scheme = self.method, self.model_dump(include=_OF_SCHEME)
        for rule in self.override:
            if fnmatchcase(name, rule.pattern):
                method = rule.method or method
                scheme |= rule.model_dump(include=_OF_SCHEME, exclude_none=True)
        return method, Scheme(**scheme)
