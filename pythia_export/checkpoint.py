"""A checkpoint: found, pinned to a commit, held to its configuration, and read one tensor at a time.

Three places: the embedded `demo`, a local directory, the hub (through `huggingface_hub`, so HF_HOME, HF_ENDPOINT and
HF_HUB_OFFLINE mean what they mean everywhere). Files are read by their on-disk names and only as safetensors.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor

from .errors import IntegrityError, NumericsError, PythiaExportError, ResourceError, SourceError
from .neox import IGNORED_BUFFERS, NeoXConfig, tensors
from .progress import SILENT, Progress
from .recipe import Model
from .suite import known_bad

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER, TOKENIZER_SETTINGS = "tokenizer.json", ("tokenizer_config.json", "special_tokens_map.json")
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


@dataclass(frozen=True)
class Pulled:
    """Where a checkpoint lies. `commit` is the hub's, or ``sha256:...`` over configuration and weights elsewhere.

    `tokenizer_folder` is given where it may be another than `folder`: a hub revision without a tokenizer has main's.
    """

    folder: Path
    name: str
    revision: str
    commit: str
    tokenizer_folder: Path | None = None


def demo_folder() -> Path:
    """Of the embedded checkpoints: inside the wheel, or at the top of a checkout."""
    packaged = Path(__file__).parent / "demo"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "demo"


def pull(model: Model, *, progress: Progress = SILENT) -> Pulled:
    """Find the checkpoint and pin it; from the hub, fetch the files that are needed and no others.

    Raises:
        SourceError: no such directory, repository or revision; no safetensors; a revision known to be wrong.
    """
    if model.path is not None:
        return _local(model.path, str(model.path), model.revision)
    assert model.id is not None
    if model.id == "demo":
        revisions = sorted(p.name for p in demo_folder().glob("*") if (p / "config.json").is_file())
        if model.revision not in revisions:
            raise SourceError(
                f"the demo has no revision `{model.revision}`; it has {', '.join(revisions) or 'none'}",
                hint="Set `revision` in the recipe to one of these.",
            )
        return _local(demo_folder() / model.revision, "demo", model.revision)
    return _from_hub(model.id, model.revision, progress)


def _local(folder: Path, name: str, revision: str) -> Pulled:
    if not folder.is_dir():
        raise SourceError(
            f"{folder}: no such checkpoint directory", hint="`path` is taken from the recipe's own folder."
        )
    digest = hashlib.sha256()
    for path in [folder / "config.json", *_shards(folder)]:
        digest.update(path.name.encode())
        with path.open("rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return Pulled(folder, name, revision, f"sha256:{digest.hexdigest()}")


def _from_hub(repo: str, revision: str, progress: Progress) -> Pulled:
    from huggingface_hub.errors import LocalEntryNotFoundError

    if wrong := known_bad(repo, revision):
        raise SourceError(
            f"{repo} at {revision} {wrong.reported}", hint="Choose another step; the weights would be wrong."
        )
    try:
        return _fetched(repo, revision, progress)
    except PythiaExportError:
        raise
    except LocalEntryNotFoundError as e:
        raise SourceError(
            f"{repo} at {revision} is not in the cache, and the hub cannot be asked: {_first_line(e)}",
            hint="Unset HF_HUB_OFFLINE, or check the connection and HF_ENDPOINT.",
        ) from e
    except Exception as e:  # the client raises requests' errors or httpx's, by its version
        if isinstance(e, OSError) and e.errno == errno.ENOSPC:
            raise ResourceError(
                f"{repo} at {revision}: no space left for the download ({_first_line(e)})",
                hint="Free disk space, or point HF_HOME at a larger disk.",
            ) from e
        raise SourceError(f"{repo} at {revision}: {_hub_problem(e)}", hint=_hub_hint(e)) from e


def _fetched(repo: str, revision: str, progress: Progress) -> Pulled:
    from huggingface_hub import HfApi, constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def listed(at: str) -> tuple[str | None, set[str] | None]:
        """Commit and files, or offline nothing: what lies in the cache is all there is."""
        if constants.HF_HUB_OFFLINE:
            return None, None
        info = HfApi().model_info(repo, revision=at)
        return info.sha, {sibling.rfilename for sibling in info.siblings or []}

    def fetch(name: str, at: str) -> Path:
        return Path(hf_hub_download(repo, name, revision=at))

    def fetch_if_there(name: str, at: str, files: set[str] | None) -> Path | None:
        if files is not None:  # a listed file that cannot be fetched is a fault, not an absence
            return fetch(name, at) if name in files else None
        try:
            return fetch(name, at)
        except EntryNotFoundError:
            return None

    pinned, files = listed(revision)
    # By its name first: the cache then remembers which commit the name stood for, and offline runs find it.
    folder = fetch("config.json", revision).parent
    commit = folder.name  # the cache keeps snapshots/<commit>/
    if pinned not in (None, commit):
        raise SourceError(f"{repo} at {revision} moved from {pinned} to {commit} just now", hint="Run it again.")
    shards = _weights_to_fetch(repo, revision, files, lambda name: fetch_if_there(name, commit, files))
    with progress.track(f"Pulling {repo}", len(shards) + 1, "files") as advance:
        for name in shards:
            fetch(name, commit)
            advance(1)
        fetch_if_there("generation_config.json", commit, files)
        tokenizer = fetch_if_there(TOKENIZER, commit, files)
        if tokenizer is None and revision != "main":
            _, files = listed("main")
            tokenizer = fetch_if_there(TOKENIZER, "main", files)
            if tokenizer is not None:
                progress.note(f"{repo} at {revision} has no {TOKENIZER}: that of main is used")
        if tokenizer is not None:
            for name in TOKENIZER_SETTINGS:
                fetch_if_there(name, tokenizer.parent.name, files)
        advance(1)
    return Pulled(folder, repo, revision, commit, tokenizer.parent if tokenizer is not None else None)


def _weights_to_fetch(
    repo: str, revision: str, files: set[str] | None, fetch_if_there: Callable[[str], Path | None]
) -> list[str]:
    if files is not None and not files & {SINGLE, INDEX}:
        raise SourceError(
            f"{repo} at {revision} has {_pickles(files) or 'no weights'}; {SINGLE} is needed",
            hint="Choose a revision with safetensors.",
        )
    if (files is not None and SINGLE in files) or (files is None and fetch_if_there(SINGLE) is not None):
        return [SINGLE]
    index = fetch_if_there(INDEX)
    if index is None:
        raise SourceError(
            f"{repo} at {revision}: its weights are not in the cache, and the hub cannot be asked",
            hint="Unset HF_HUB_OFFLINE to fetch them.",
        )
    return _index_shards(index)


def _pickles(names: Iterable[str]) -> str:
    """ "only pytorch_model.bin", or nothing when there is none."""
    found = sorted(name for name in names if name.startswith("pytorch_model") and name.endswith(".bin"))
    return f"only {', '.join(found)}" if found else ""


def _hub_problem(error: Exception) -> str:
    names = {
        "RepositoryNotFoundError": "no such repository, or it is private",
        "RevisionNotFoundError": "no such revision",
        "EntryNotFoundError": "a file is missing",
        "RemoteEntryNotFoundError": "a file is missing",
        "GatedRepoError": "access must be requested",
    }
    known = names.get(type(error).__name__)
    return f"{known} ({_first_line(error)})" if known else f"the hub cannot be read: {_first_line(error)}"


def _hub_hint(error: Exception) -> str:
    if type(error).__name__ == "RevisionNotFoundError":
        return "Pythia's training checkpoints are branches: step0, step1, step2, ... step512, step1000, ... step143000."
    if type(error).__name__ == "RepositoryNotFoundError":
        return "Ids look like EleutherAI/pythia-160m or EleutherAI/pythia-160m-deduped."
    return "Check the connection and HF_ENDPOINT; what was pulled before is used with HF_HUB_OFFLINE=1."


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder, single or by its index."""
    if not (folder / "config.json").is_file():
        raise SourceError(f"{folder}: no config.json", hint="Is this the directory of a GPT-NeoX checkpoint?")
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        found = _pickles(p.name for p in folder.iterdir())
        raise SourceError(
            f"{folder}: neither {SINGLE} nor {INDEX}" + (f", {found}" if found else ""),
            hint="Only safetensors are read, not pickles: save it again with safe_serialization=True.",
        )
    shards = [folder / name for name in _index_shards(folder / INDEX)]
    for shard in shards:
        if not shard.is_file():
            raise SourceError(f"{folder / INDEX} names {shard.name}, which is missing")
    return shards


def _index_shards(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as e:
        raise IntegrityError(f"{index}: not an index of shards: {e!r}") from e
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise IntegrityError(f"{index}: names {name!r}, which is not a file beside it")
    return names


class Checkpoint:
    """An opened checkpoint: every header has been read and held to the table of tensors, no weight has.

    Attributes: `pulled`, `config`, `dtype` (as stored: float16, bfloat16 or float32; float32 when they are mixed, since
    it holds them all), `parameters`.
    """

    def __init__(self, pulled: Pulled, config: NeoXConfig, dtype: str, where: dict[str, Path]) -> None:
        self.pulled, self.config, self.dtype = pulled, config, dtype
        self.parameters = config.parameters
        self._where = where

    def tensor(self, name: str) -> Tensor:
        """One tensor by its on-disk name, in its stored dtype.

        Raises:
            NumericsError: it holds a NaN or an infinity.
        """
        path = self._where[name]
        # Opened for each tensor: a mapping that stays keeps every page that was read resident, in the end all of them.
        with safe_open(path, framework="pt") as f:
            tensor: Tensor = f.get_tensor(name)
        if not torch.isfinite(tensor).all():
            at = [int(i) for i in torch.nonzero(~torch.isfinite(tensor))[0]]
            raise NumericsError(f"{path}: {name} holds {float(tensor[tuple(at)])} at {at}")
        return tensor

    def tokenizer_files(self) -> list[Path]:
        """tokenizer.json and what lies beside it."""
        folder = self.pulled.tokenizer_folder or self.pulled.folder
        return [p for name in (TOKENIZER, *TOKENIZER_SETTINGS) if (p := folder / name).is_file()]

    def tokenizer(self) -> Tokenizer:
        path = (self.pulled.tokenizer_folder or self.pulled.folder) / TOKENIZER
        if not path.is_file():
            raise SourceError(f"{path.parent}: no {TOKENIZER}", hint="Copy it from the model's main revision.")
        try:
            return Tokenizer.from_file(str(path))
        except Exception as e:  # the binding raises bare Exception
            raise IntegrityError(f"{path}: not a tokenizer: {e}") from e


def open_checkpoint(pulled: Pulled) -> Checkpoint:
    """Read configuration and headers; hold every tensor's name, shape and dtype to the configuration.

    Raises:
        SourceError: a file or a tensor is missing, or the configuration is not Pythia's.
        IntegrityError: a truncated or malformed file, a wrong shape, a dtype that no Pythia has, an unknown tensor.
    """
    where = pulled.folder / "config.json"
    shards = _shards(pulled.folder)
    try:
        raw = json.loads(where.read_text(encoding="utf-8"))
    except ValueError as e:
        raise IntegrityError(f"{where}: not JSON: {e}") from e
    if not isinstance(raw, dict):
        raise IntegrityError(f"{where}: an object was expected")
    config = NeoXConfig.from_dict(raw, str(where))

    found: dict[str, tuple[Path, list[int], str]] = {}
    for shard in shards:
        for name, entry in _header(shard).items():
            if name in found:
                raise IntegrityError(f"{name} is in {found[name][0].name} and again in {shard.name}")
            found[name] = (shard, entry["shape"], entry["dtype"])

    dtypes = set()
    for spec in tensors(config):
        if spec.name not in found:
            near = difflib.get_close_matches(spec.name, found, n=1, cutoff=0.8)
            raise SourceError(
                f"{pulled.folder}: tensor {spec.name} is missing", hint=f"There is {near[0]}." if near else ""
            )
        shard, shape, dtype = found.pop(spec.name)
        if tuple(shape) != spec.shape:
            raise IntegrityError(f"{shard}: {spec.name} is {list(shape)}; config.json makes it {list(spec.shape)}")
        if dtype not in _DTYPES:
            raise IntegrityError(f"{shard}: {spec.name} is {dtype}; {', '.join(_DTYPES)} were expected")
        dtypes.add(_DTYPES[dtype])
        found[spec.name] = (shard, shape, dtype)
    expected = {spec.name for spec in tensors(config)}
    extra = sorted(name for name in found if name not in expected and not name.endswith(IGNORED_BUFFERS))
    if extra:
        raise IntegrityError(
            f"{pulled.folder}: {len(extra)} tensors that config.json has no place for, {extra[0]} among them",
            hint="Does num_hidden_layers match the weights?",
        )
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    return Checkpoint(pulled, config, dtype, {name: shard for name, (shard, _, _) in found.items()})


def _header(path: Path) -> dict[str, Any]:
    """Name -> {dtype, shape} of one safetensors file, its length held to its own header."""
    size = path.stat().st_size
    try:
        with path.open("rb") as f:
            prefix = f.read(8)
            if len(prefix) < 8:
                raise IntegrityError(f"{path}: {size} bytes, which is not even a header. The file is truncated")
            length = struct.unpack("<Q", prefix)[0]
            if 8 + length > size:
                raise IntegrityError(f"{path}: {size} bytes; its header alone claims {length}. The file is truncated")
        with safe_open(path, framework="pt") as f:
            slices = {name: f.get_slice(name) for name in f.keys()}  # noqa: SIM118 (it is no mapping)
            return {name: {"shape": s.get_shape(), "dtype": s.get_dtype()} for name, s in slices.items()}
    except SafetensorError as e:
        raise IntegrityError(
            f"{path}: truncated or malformed safetensors ({e})", hint="Fetch or copy the file again."
        ) from e
