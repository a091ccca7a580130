"""Whether a checkpoint is the one that an artifact was made of: by the hashes that the artifact recorded, wherever it
lies now; and whether the branch that it was taken from has moved since."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

from .. import hub
from ..base.errors import SourceError
from ..base.progress import SILENT, Progress
from ..model.neox import NeoXConfig
from ..recipe import Model
from ..records.manifest import Source
from .pull import CONFIG, read_config
from .pulled import Pulled


def require_recorded(pulled: Pulled, origin: Source, config: NeoXConfig) -> Pulled:
    """The checkpoint under the name and commit of `origin`, an artifact's record of its source; `config` is that
    artifact's.

    Raises:
        SourceError: it is another one; names the files that differ.
    """
    if pulled.commit == origin.commit:
        return pulled
    differing = list(_differing(pulled, origin, config))
    if differing or not origin.files:
        raise SourceError(
            f"{pulled.folder} is not the checkpoint that this artifact was made of, {origin.name}:\n  "
            + "\n  ".join(differing or [f"it is {pulled.commit}; {origin.commit} was recorded"]),
            hint="Give the one that it was made of, or run the recipe again.",
        )
    return replace(pulled, name=origin.name, revision=origin.revision, commit=origin.commit)


def _differing(pulled: Pulled, origin: Source, config: NeoXConfig) -> Iterator[str]:
    for then, now, what in (
        (origin, pulled.record, ""),
        (origin.adapter, pulled.record.adapter, "adapter's "),
    ):
        recorded, found = (of.files or {} if of is not None else {} for of in (then, now))
        for name in sorted({*recorded, *found}):
            wanted, has = (files[name].sha256 if name in files else None for files in (recorded, found))
            if wanted is None and name == CONFIG:  # the hub lists no SHA-256 of small files
                yield from _other_config(read_config(pulled.folder / CONFIG), config)
            elif has is None:
                yield f"{what}{name} is missing"
            elif wanted is None:
                yield f"{what}{name} was not recorded"
            elif has != wanted:
                yield f"{what}{name} has sha256 {has[:12]}...; {wanted[:12]}... was recorded"


def _other_config(found: NeoXConfig, config: NeoXConfig) -> Iterator[str]:
    """Where texts begin and end is the artifact's own."""
    now, then = asdict(found), asdict(config)
    for name in now:
        if now[name] != then[name] and not name.startswith(("bos", "eos")):
            yield f"{CONFIG} has {name} {now[name]}; the artifact's has {then[name]}"


def moved(model: Model, origin: Source, progress: Progress = SILENT) -> str | None:
    """A sentence where the branch that a hub's checkpoint was taken from names another commit now; None where it does
    not, or where that cannot be asked."""
    taken = [(one.revision, one.commit) for one in origin.averaged or ()]
    taken = taken or [(model.revision, origin.commit.partition("+")[0])]
    told = (_moved(model.model_copy(update={"revision": name}), commit, progress) for name, commit in taken)
    return next((sentence for sentence in told if sentence is not None), None)


def _moved(model: Model, commit: str, progress: Progress) -> str | None:
    if model.id in (None, "demo") or model.revision == commit or hub.offline():
        return None
    assert model.id is not None
    try:
        now = hub.list_revision(model.id, model.revision, progress=progress)
    except SourceError:
        return None
    if now.offline or now.commit == commit:
        return None
    return f"{model.id}: {model.revision} is {now.commit[:12]} now; this artifact was made of {commit[:12]}"
