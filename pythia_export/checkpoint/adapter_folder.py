"""The folder of an adapter: found, hashed, and recorded by name and hashes, as a checkpoint's is."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import SourceError
from ..base.git_lfs import require_fetched
from ..base.hashing import sha256_of
from ..base.progress import SILENT, Progress
from ..records.manifest import Adapter, hashed
from .convert import converted
from .files import fetched_object
from .kinds import ADAPTER_CONFIG, recognised

WEIGHTS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class AdapterFiles:
    """`weights` is a safetensors file. `commit` is ``sha256:...`` over configuration and weights; `record` is for the
    manifest and holds no path of this machine."""

    folder: Path
    name: str
    weights: Path
    commit: str
    record: Adapter

    @property
    def config(self) -> Path:
        return self.folder / ADAPTER_CONFIG


def find_adapter(folder: Path, pickles: bool, progress: Progress = SILENT) -> AdapterFiles:
    """
    Raises:
        SourceError: no such folder, no adapter in it, or one in a pickle alone where `pickles` is not set.
        IntegrityError: a configuration that is not JSON; a pickle of more than tensors.
    """
    if not folder.is_dir():
        raise SourceError(
            f"{folder}: no such adapter directory",
            hint="`adapter` is a folder with adapter_config.json. `hf download OWNER/NAME --local-dir DIR` fetches one "
            "of the hub.",
        )
    if not (folder / ADAPTER_CONFIG).is_file():
        inner = sorted(path.parent.name for path in folder.glob(f"*/{ADAPTER_CONFIG}"))
        found = recognised([path.name for path in folder.iterdir()], lambda name: fetched_object(folder / name))
        said = f"; this is {found.what}" if found is not None else ""
        raise SourceError(
            f"{folder}: no {ADAPTER_CONFIG}, so no adapter of PEFT's{said}",
            hint=f"There is one in {folder / inner[0]}." if inner else "Is it the folder that `save_pretrained` wrote?",
        )
    name = next((n for n in (WEIGHTS, PICKLE) if (folder / n).is_file()), None)
    if name is None:
        raise SourceError(f"{folder}: neither {WEIGHTS} nor {PICKLE}", hint="Copy the adapter again.")
    require_fetched(folder / name)
    raw = fetched_object(folder / ADAPTER_CONFIG)
    if name == PICKLE and not pickles:
        raise SourceError(f"{folder} has only {PICKLE}, and --no-pickle was given", hint="Leave --no-pickle out.")
    hashes = {n: sha256_of(folder / n) for n in (ADAPTER_CONFIG, name)}
    weights = folder / name if name == WEIGHTS else converted(folder / name, hashes[name], progress)
    digest = hashlib.sha256()
    for n, of_file in hashes.items():
        digest.update(n.encode())
        digest.update(bytes.fromhex(of_file))
    called = folder.absolute().name
    base = raw.get("base_model_name_or_path") if isinstance(raw, dict) else None
    record = Adapter(name=called, files=hashed(hashes))
    if isinstance(base, str) and _REPOSITORY.fullmatch(base):  # else a path of whoever trained it
        record = record.model_copy(update={"base": base})
    return AdapterFiles(folder, called, weights, f"sha256:{digest.hexdigest()}", record)
