"""An opened checkpoint: every header held to the table of tensors and the index, weights read one tensor at a time."""

from __future__ import annotations

import difflib
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ..errors import IntegrityError, NumericsError, SourceError
from ..neox import IGNORED_BUFFERS, NeoXConfig, tensors
from ..tokenizer import FolderTokenizer, open_folder
from .header import Entry, read_header
from .pull import CONFIG, Pulled, read_config

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


class Checkpoint:
    """An opened checkpoint: every header has been read and held to the table of tensors, no weight has.

    Attributes: `pulled`, `config`, `dtype` (as stored: float16, bfloat16 or float32; float32 when they are mixed, since
    it holds them all), `parameters`.
    """

    def __init__(self, pulled: Pulled, config: NeoXConfig, dtype: str, where: dict[str, tuple[Path, Entry]]) -> None:
        self.pulled, self.config, self.dtype = pulled, config, dtype
        self.parameters = config.parameters
        self._where = where

    def tensor(self, name: str) -> Tensor:
        """One tensor by its on-disk name, in its stored dtype.

        Raises:
            NumericsError: it holds a NaN or an infinity.
        """
        path, entry = self._where[name]
        tensor = torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
        # Read, not mapped: a mapping keeps every page that was touched resident, in the end all of them.
        with path.open("rb") as f:
            f.seek(entry.offset)
            got = f.readinto(tensor.view(-1).view(torch.uint8).numpy().data)
        if got != entry.nbytes:
            raise IntegrityError(f"{path}: {name} ends after {got:,} of {entry.nbytes:,} bytes. The file changed")
        if not torch.isfinite(tensor).all():
            at = [int(i) for i in torch.nonzero(~torch.isfinite(tensor))[0]]
            raise NumericsError(f"{path}: {name} holds {float(tensor[tuple(at)])} at {at}")
        return tensor

    @cached_property
    def tokenizer_folder(self) -> FolderTokenizer:
        """The tokenizer with all that its files say, as transformers reads them.

        Raises:
            SourceError: there is none.
            IntegrityError: one of its files is not what its name says.
        """
        return open_folder(self.pulled.tokenizer_folder or self.pulled.folder)

    def tokenizer(self) -> Tokenizer:
        """Text to token ids; raises as `tokenizer_folder`."""
        return self.tokenizer_folder.tokenizer


def open_checkpoint(pulled: Pulled) -> Checkpoint:
    """Read configuration and headers; hold every tensor's name, shape and dtype to the configuration.

    Raises:
        SourceError: a file or a tensor is missing, or the configuration is not Pythia's.
        IntegrityError: a truncated or malformed file, a wrong shape, a dtype that no Pythia has, an unknown tensor.
    """
    config = read_config(pulled.folder / CONFIG)
    found: dict[str, tuple[Path, Entry]] = {}
    for shard in pulled.weights:
        for name, entry in read_header(shard).items():
            if name in found:
                raise IntegrityError(f"{name} is in {found[name][0].name} and again in {shard.name}")
            if pulled.places.get(name, shard.name) != shard.name:
                raise IntegrityError(
                    f"{pulled.folder}: the index has {name} in {pulled.places[name]}; it is in {shard.name}",
                    hint="Are these shards of two different checkpoints?",
                )
            found[name] = (shard, entry)

    where = {}
    for spec in tensors(config):
        if spec.name not in found:
            near = difflib.get_close_matches(spec.name, found, n=1, cutoff=0.8)
            raise SourceError(
                f"{pulled.folder}: tensor {spec.name} is missing", hint=f"There is {near[0]}." if near else ""
            )
        shard, entry = where[spec.name] = found.pop(spec.name)
        if entry.shape != spec.shape:
            raise IntegrityError(f"{shard}: {spec.name} is {list(entry.shape)}; {CONFIG} makes it {list(spec.shape)}")
        if entry.dtype not in _DTYPES:
            raise IntegrityError(f"{shard}: {spec.name} is {entry.dtype}; {', '.join(_DTYPES)} were expected")
    extra = sorted(name for name in found if not name.endswith(IGNORED_BUFFERS))
    if extra:
        raise IntegrityError(
            f"{pulled.folder}: {len(extra)} tensors that {CONFIG} has no place for, {extra[0]} among them",
            hint="Does num_hidden_layers match the weights?",
        )
    dtypes = {str(_DTYPES[entry.dtype]).removeprefix("torch.") for _, entry in where.values()}
    return Checkpoint(pulled, config, dtypes.pop() if len(dtypes) == 1 else "float32", where)
