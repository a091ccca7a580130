"""What all records have in common: strict types, one reader (`checked`), one writer (`to_json`).

A record that lacks a field, or holds another kind of value in it, is an error that names the field, what was found and
what was expected. Fields that this version does not know are left aside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError

from ..base.errors import IntegrityError
from ..base.strict_json import shown
from ..model.neox import MOST_LAYERS

Json = dict[str, JsonValue]  # an object that another reader checks, or that is only shown
Count = Annotated[int, Field(ge=0, le=1 << 62)]
Layer = Annotated[int, Field(ge=0, lt=MOST_LAYERS)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Figure = Annotated[float, Field(ge=-1e100, le=1e100)]  # nats, logits, shares: squares and sums of such are finite
Wide = Annotated[float, Field(ge=-1e300, le=1e300)]  # perplexities and their ratios: as percents they are finite still
COPY_AGAIN = "Copy the artifact again, or export it again."
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """Strict: a string is no number, and neither is `true`. No infinities."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False, populate_by_name=True)

    def to_json(self) -> Json:
        """Return what the file holds, in the order of the fields; those that were not given are left out."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class Kept(Record):
    """A record that is written again: fields that this version does not know are kept, behind the others."""

    model_config = ConfigDict(extra="allow")


AnyRecord = TypeVar("AnyRecord", bound=Record)


def checked(kind: type[AnyRecord], raw: Any, where: Path | str, hint: str = COPY_AGAIN) -> AnyRecord:
    """Return `raw`, parsed JSON, as a record.

    Raises:
        IntegrityError: names the first field that is missing or of another kind, and how many more are.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as e:
        _refuse(e, where, hint)


def _refuse(error: ValidationError, where: Path | str, hint: str) -> NoReturn:
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
    raise IntegrityError(f"{where}: {found}{more}", hint=hint)
