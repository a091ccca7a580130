"""A whole recipe, and what its sections must have of each other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

from pydantic import model_validator

from ..base.errors import RecipeError
from ..model.suite import find, resolve
from .export import Export
from .model import Model
from .quantize import Quantize
from .section import Section
from .text import Calibration
from .verify import Verify


class Recipe(Section):
    """What to make: a checkpoint, a calibration text, a quantisation, a target, and a proof with its gates."""

    model: Model
    calibration: Calibration | None = None
    quantize: Quantize = Quantize()
    export: Export = Export()
    verify: Verify

    @model_validator(mode="before")
    @classmethod
    def _training_order_is_the_models_own(cls, given: Any) -> Any:
        """The data set follows from the model, where one is known."""
        model = given.get("model") if isinstance(given, dict) else None
        if not isinstance(model, dict):
            return given
        try:
            known = find(resolve(model["id"])[0]) if isinstance(model.get("id"), str) else None
        except RecipeError:  # [model] tells what is wrong with it
            return given
        order = known.training_order if known is not None else None
        for name in ("calibration", "verify"):
            section = given.get(name)
            if not isinstance(section, dict) or section.get("source") != "training-order":
                continue
            if section.get("dataset") or section.get("path"):
                continue
            if order is None:
                raise ValueError(
                    f"[{name}] source = 'training-order': the order in which {model.get('id') or model.get('path')} "
                    "was trained is not on the hub as a memory map; name a `dataset` or a `path`"
                )
            given = given | {name: section | {"dataset": order}}
        return given

    @model_validator(mode="after")
    def _gptq_observes(self) -> Self:
        if self.uses_gptq and self.calibration is None:
            raise ValueError("method = 'gptq' needs a [calibration] section")
        if self.export.static_scales and self.calibration is None:
            raise ValueError(
                "kv_cache = 'int8' with rotary = 'gqa' needs a [calibration] section: the scales of the cache are "
                "measured on its text"
            )
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> Any:
        """Return the schema of a file, which may leave out [verify]: it is then filled in by the model's size."""
        found = handler(core_schema)
        handler.resolve_ref_schema(found)["required"] = ["model"]
        return found

    @classmethod
    def load(cls, name: str | os.PathLike[str], changes: Mapping[str, Any] = MappingProxyType({})) -> Self:
        """Read a recipe file, or make the recipe of a model (`410m@step3000`, `160m-int8`) or a checkpoint folder.

        `changes` are by dotted keys: ``Recipe.load("410m", {"quantize.bits": 8, "verify.gates.kld_mean": None})``. None
        takes a key out. Where [calibration] or [verify] is left out, the model's size fills it in.

        Raises:
            RecipeError: nothing of that name, not TOML, an unknown key, a value out of range.
        """
        from .load import load_recipe

        return cls.model_validate(load_recipe(name, changes))

    def toml(self) -> str:
        """Return the recipe as a file, as `pythia-export recipes show` prints it; `load` reads the same from it."""
        from .toml import as_toml

        return as_toml(self)

    @property
    def calibrates(self) -> bool:
        """Whether the text of [calibration] is read: by GPTQ, or for the scales of a cache."""
        return self.uses_gptq or self.export.static_scales

    @property
    def uses_gptq(self) -> bool:
        q = self.quantize
        return "gptq" in (q.method, *(rule.method for rule in q.override))
