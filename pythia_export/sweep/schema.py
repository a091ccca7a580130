"""sweep.toml: models x revisions x quantisations, on one calibration text and one held-out text.

[sweep]
models = ["70m", "160m-deduped", "160m-seed1..9"]
revisions = "pow2,1000:143000:1000,main"

[quantize]              # a recipe's own section; a list stands for one quantisation a value
bits = [2, 3, 4, 8]
group_size = [-1, 128]

[calibration]           # as in a recipe
[verify]                # as in a recipe, without gates
[resources]             # of a task: what a scheduler is asked for
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from ..base.errors import RecipeError
from ..recipe import Calibration, Export, Model, Quantize, Recipe, Text
from ..recipe.load import explain
from ..recipe.section import LocalPath, NonEmpty, Section
from ..recipe.toml import read_toml

MOST_COMBINATIONS = 10_000  # of one table: a checkpoint takes minutes for each
DIMENSIONS = frozenset(Quantize.model_fields) - {"override", "bits_per_weight"}


class Named(Section):
    """A model: of the hub by its name, or a training run of one's own, whose checkpoints are a directory each."""

    name: NonEmpty = Field(
        description="of the suite, as `models` lists it; of a run of one's own, what the results call it"
    )
    path: NonEmpty | None = Field(
        None, description="the run's checkpoints, relative to the sweep's file: `runs/{revision}`"
    )

    revisions: NonEmpty | None = Field(None, description="this model's own, in place of the sweep's")

    @model_validator(mode="before")
    @classmethod
    def _a_word_is_a_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _has_a_place_for_the_revision(self) -> Self:
        if self.path is not None and "{revision}" not in self.path:
            raise ValueError(f"{self.path!r} has no {{revision}} in it: `runs/{{revision}}`, for example")
        return self


class HeldOut(Text):
    """[verify] of a sweep: nothing is judged, so there are no gates."""

    tokens: int = Field(32768, ge=64, description="held-out tokens to score")
    inside: bool = Field(False, description="also compare residual streams, attention patterns and induction heads")
    sae: LocalPath | None = Field(
        None,
        description="with `inside`, which it turns on: a sparse autoencoder in SAELens's form, or a folder of several, "
        "which fit every model; relative to the sweep's file",
    )


class Resources(Section):
    """What one task may use: a snapshot with all of its quantisations."""

    cores: int = Field(2, ge=1, le=1024, description="threads of a task")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where torch computes; `cuda` is one GPU a task")
    memory_gb: float | None = Field(None, gt=0, description="by the model's size if not given")
    hours: float | None = Field(None, gt=0, description="by the model's size if not given")
    attempts: int = Field(3, ge=1, description="of a task that was interrupted or ran out of memory")
    slurm: dict[str, str | int] = Field(
        {}, description="what sbatch is told besides, by its long options: partition, account, qos, constraint"
    )

    @field_validator("slurm")
    @classmethod
    def _not_what_the_engine_says_itself(cls, given: dict[str, str | int]) -> dict[str, str | int]:
        ours = {"mem": "memory_gb", "time": "hours", "cpus-per-task": "cores", "cpus_per_task": "cores"}
        for name, key in ours.items():
            if name in given:
                raise ValueError(f"`{name}` is `resources.{key}` here")
        return given


class Sweep(Section):
    models: tuple[Named, ...] = Field(
        min_length=1, description="models of the suite, `160m-seed1..9` being nine; or tables of name and path"
    )
    revisions: str = Field(
        "main",
        description="`all`, `pow2` (step 0 and the powers of two), `1000:143000:1000`, single steps, `main`, "
        "`mean(step133000..step143000)`, the mean of their weights",
    )
    evict: bool = Field(False, description="take each checkpoint out of the hub's cache once its jobs are done")

    @field_validator("revisions", mode="before")
    @classmethod
    def _a_list_is_its_terms(cls, given: Any) -> Any:
        return ",".join(map(str, given)) if isinstance(given, list | tuple) else given


class SweepFile(Section):
    """`quantize` is already a list of sections here; `load` makes it from what the file says in short."""

    sweep: Sweep
    quantize: Annotated[tuple[Quantize, ...], Field(min_length=1)]
    calibration: Calibration | None = None
    verify: HeldOut
    resources: Resources = Resources()

    @field_validator("quantize")
    @classmethod
    def _each_once(cls, given: tuple[Quantize, ...]) -> tuple[Quantize, ...]:
        return tuple(dict.fromkeys(given))

    def recipe(self, model: Model, quantize: Quantize) -> Recipe:
        """The recipe that one job comes down to.

        Raises:
            RecipeError: it is none: training order of a model that has none on the hub, GPTQ without calibration text.
        """
        raw: dict[str, Any] = {
            "model": model.model_dump(exclude_none=True),
            "quantize": quantize.model_dump(),
            "export": Export().model_dump(),
            "verify": self.verify.model_dump(exclude_unset=True),
        }
        if self.calibration is not None:
            raw["calibration"] = self.calibration.model_dump(exclude_unset=True)
        try:
            return Recipe.model_validate(raw)
        except ValidationError as e:
            raise RecipeError("\n".join(explain(f"{model.name}", error, Recipe) for error in e.errors())) from None


def load(path: Path) -> SweepFile:
    """Read a sweep; relative paths are taken from the file's own folder.

    Raises:
        RecipeError: no such file, not TOML, an unknown key, a value out of range, an empty product.
    """
    return parse(read_toml(path, "docs/guides/sweeps.md shows one."), path.absolute().parent, str(path))


def parse(raw: dict[str, Any], folder: Path, where: str = "sweep") -> SweepFile:
    try:
        found = SweepFile.model_validate(raw | {"quantize": _product(raw.get("quantize", {}), where)})
    except ValidationError as e:
        # Of a product each member has the same fault, and none of them a number in the file.
        errors = e.errors()
        wrong = {error["loc"] for error in errors}
        # A list that is too short because all in it is wrong: that is said already.
        told = [
            x for x in errors if x["type"] != "too_short" or not any(x["loc"] == y[:-1][: len(x["loc"])] for y in wrong)
        ]
        lines = [explain(where, dict(error) | {"loc": _in_the_file(error["loc"])}, SweepFile) for error in told]
        raise RecipeError("\n".join(dict.fromkeys(lines))) from None
    models = tuple(
        m if m.path is None else m.model_copy(update={"path": str(folder / m.path)}) for m in found.sweep.models
    )
    changed: dict[str, Any] = {"sweep": found.sweep.model_copy(update={"models": models})}
    for name in ("calibration", "verify"):
        section = getattr(found, name)
        given = {key: getattr(section, key, None) for key in ("path", "sae")}
        anchored = {key: folder / path for key, path in given.items() if path is not None}  # an absolute one stays
        if section is not None and anchored:
            changed[name] = section.model_copy(update=anchored)
    return found.model_copy(update=changed)


def _in_the_file(place: tuple[int | str, ...]) -> tuple[int | str, ...]:
    return (place[0], *place[2:]) if place[0] == "quantize" and len(place) > 1 else place


def _product(given: Any, where: str) -> Any:
    """Every combination of the values that are lists, in the file's order."""
    tables = given if isinstance(given, list) else [given]
    found: list[Any] = []
    for table in tables:
        if not isinstance(table, dict):
            return given  # the schema says what is wrong with it
        if "bits_per_weight" in table:
            raise RecipeError(
                f"{where}: `quantize.bits_per_weight` is not for sweeps: which linears get more bits would differ from "
                "one checkpoint to the next",
                hint="Name them with [[quantize.override]], or sweep over `bits`.",
            )
        swept = {k: v for k, v in table.items() if isinstance(v, list) and k in DIMENSIONS}
        for key, values in swept.items():
            if not values:
                raise RecipeError(f"{where}: `quantize.{key}` is an empty list: there is nothing to do")
        combinations = math.prod(map(len, swept.values()))
        if combinations > MOST_COMBINATIONS:
            raise RecipeError(
                f"{where}: `quantize` has {combinations:,} combinations; {MOST_COMBINATIONS:,} are the most",
                hint="Sweep over fewer values, or name the wanted ones as [[quantize]] tables.",
            )
        for combination in itertools.product(*swept.values()):
            found.append(table | dict(zip(swept, combination, strict=True)))
    return found
