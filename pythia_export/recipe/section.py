"""What every section of a recipe is: frozen, and deaf to keys that it does not know."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, StringConstraints

NonEmpty = Annotated[str, StringConstraints(min_length=1)]


class Section(BaseModel):
    # TOML writes infinities and NaN; no quantity here is one, and no JSON of ours could hold it.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
