"""Which files of a folder or a revision hold the weights: one file or an index of shards, safetensors or pickles."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..base.errors import IntegrityError, SourceError
from ..base.git_lfs import require_fetched
from ..base.strict_json import read_object, shown

Format = Literal["safetensors", "pickle"]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_NUMBERED = re.compile(r"-(\d+)-of-(\d+)\.")


@dataclass(frozen=True)
class Weights:
    """`names` are the files in order. `places` is shard by tensor, of an index; empty for a single file."""

    format: Format
    names: tuple[str, ...]
    places: dict[str, str]
    index: str | None


def choose(there: Collection[str], where: str, read: Callable[[str], Path], pickles: bool) -> Weights | None:
    """The weights among the files that are `there`, None where there are none; `read` gives the path of an index.

    Safetensors are taken where there are any. `where` is for people.

    Raises:
        SourceError: only pickles that may not be read, or an index that names a missing shard.
        IntegrityError: an index that is none, or that names what is not a file beside it.
    """
    kinds: tuple[tuple[Format, str, str], ...] = (("safetensors", SINGLE, INDEX), ("pickle", PICKLE, PICKLE_INDEX))
    for format, single, index in kinds:
        if single not in there and index not in there:
            continue
        if format == "pickle" and not pickles:
            raise SourceError(
                f"{where} has only pickled weights ({single if single in there else index}), and --no-pickle was given",
                hint="Choose a revision with safetensors, or leave --no-pickle out: tensors alone are read, in a "
                "process of their own.",
            )
        if single in there:
            return Weights(format, (single,), {}, None)
        places = read_index(read(index))
        names = tuple(sorted(set(places.values())))
        missing = [name for name in names if name not in there]
        if missing:
            raise SourceError(f"{where}: {index} names {missing[0]}, which is missing", hint="Fetch or copy it again.")
        _require_one_set(names, where)
        return Weights(format, names, places, index)
    return None


def read_index(path: Path) -> dict[str, str]:
    """Tensor -> shard."""
    require_fetched(path)
    places = read_object(path, hint="Fetch or copy the file again.").get("weight_map")
    if not isinstance(places, dict) or not places:
        raise IntegrityError(
            f"{path}: not an index of shards: `weight_map` is {shown(places)}; an object of tensors was expected"
        )
    for name in places.values():
        if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name or "\\" in name:
            raise IntegrityError(f"{path}: names {shown(name)}, which is not a file beside it")
    return places


def _require_one_set(names: tuple[str, ...], where: str) -> None:
    """`model-00001-of-00002` and `model-00002-of-00003` are of two sets."""
    counts = {match[2] for name in names if (match := _NUMBERED.search(name))}
    if len(counts) > 1:
        raise IntegrityError(f"{where}: its shards are of different sets: {', '.join(names)}")
