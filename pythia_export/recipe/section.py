"""What every section of a recipe is: frozen, and deaf to keys that it does not know."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

NonEmpty = Annotated[str, StringConstraints(min_length=1)]


def _expanded(path: Path) -> Path:
    """What no file system takes is a mistake of the recipe."""
    name = os.fspath(path)
    if "\0" in name:
        raise ValueError("holds a NUL character, which no file system takes")
    if len(os.fsencode(name)) > 4095 or any(len(os.fsencode(part)) > 255 for part in path.parts):
        raise ValueError("is longer than file systems take: 255 bytes a name, 4,095 in all")
    try:
        return path.expanduser()
    except RuntimeError as e:
        raise ValueError(f"{path}: {e}") from None


LocalPath = Annotated[Path, AfterValidator(_expanded)]  # `~` is the home folder, as in a shell


class Section(BaseModel):
    # TOML writes infinities and NaN; no quantity here is one, and no JSON of ours could hold it.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
