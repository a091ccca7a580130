"""[model]: which checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from ..base.errors import RecipeError
from ..model.mean import is_mean, require_mean
from ..model.suite import resolve
from .section import LocalPath, NonEmpty, Section

PLACE = "{revision}"


class Model(Section):
    """Which checkpoint: a model of the suite or another on the hub, the embedded `demo`, or a local directory.

    Give either `id` or `path`. `410m-deduped@step3000` stands for EleutherAI/pythia-410m-deduped at step3000.
    """

    id: NonEmpty | None = Field(
        None, description="hub repository, a short name (`410m`, `pythia-160m-seed3@step512`), or `demo`"
    )
    path: LocalPath | None = Field(
        None,
        description="local checkpoint directory, relative to the recipe file; `{revision}` in it is the revision",
    )
    adapter: LocalPath | None = Field(
        None,
        description="LoRA adapter in PEFT's form, merged as the checkpoint is read; relative to the recipe file",
    )
    revision: NonEmpty = Field(
        "main",
        description="branch, tag or commit; Pythia's steps are branches: `step3000`. `mean(step133000..step143000)` is "
        "the mean of their weights, `mean(step142000:1, step143000:3)` with weights",
    )

    @model_validator(mode="before")
    @classmethod
    def _names_are_resolved(cls, given: Any) -> Any:
        name = given.get("id") if isinstance(given, dict) else None
        if not isinstance(name, str) or not name:
            return given
        if name.startswith((".", "/", "~")):
            raise ValueError(f"`id` {name!r} is a path; a local checkpoint is given by `path`")
        revision = given.get("revision")
        if "@" in name and revision is not None:
            raise ValueError(f"`id` names a revision, {name!r}, and `revision` another, {revision!r}")
        try:
            model_id, pinned = resolve(f"{name}@{revision}" if isinstance(revision, str) and revision else name)
        except RecipeError as e:
            raise ValueError(f"{e}. {e.hint}" if e.hint else str(e)) from None
        return given | {"id": model_id} | ({"revision": pinned} if pinned else {})

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.id is None) == (self.path is None):
            raise ValueError("give either `id` or `path`")
        return self

    @model_validator(mode="after")
    def _a_mean_is_well_formed(self) -> Self:
        if not is_mean(self.revision):
            return self
        try:
            require_mean(self.revision)
        except RecipeError as e:
            raise ValueError(f"{e}. {e.hint}" if e.hint else str(e)) from None
        if self.path is not None and PLACE not in str(self.path):
            raise ValueError(f"{self.revision} of `path`: {self.path} has no {PLACE} in it, `runs/{PLACE}` for example")
        return self

    def folder(self, revision: str) -> Path | None:
        """Return where a local checkpoint's revision lies; None where it is not local."""
        return None if self.path is None else Path(str(self.path).replace(PLACE, revision))

    @classmethod
    def named(cls, name: str) -> Self:
        """The model that a name on the command line stands for.

        Raises:
            RecipeError: as `resolve`.
        """
        model_id, revision = resolve(name)
        return cls(id=model_id, **({"revision": revision} if revision else {}))

    @property
    def name(self) -> str:
        return self.id if self.id is not None else str(self.path)
