"""An opened checkpoint: every header held to the table of tensors and the index, weights read one tensor at a time,
merged with an adapter where there is one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ..base.errors import IntegrityError, SourceError
from ..base.progress import SILENT, Progress
from ..model.generation import Generation
from ..model.neox import EMBEDDING, HEAD, IGNORED_BUFFERS, NeoXConfig, TensorSpec, tensors
from ..tokenizer import FolderTokenizer, has_tokenizer
from .adapter import Adapter, open_adapter
from .fit import misfits
from .header import read_header
from .kinds import require_plain_tensors
from .mean import MeanTensor
from .names import by_table_name, require_merged
from .pull import CONFIG, open_tokenizer, read_model
from .pulled import Pulled
from .read import DTYPES, StoredTensor

_EMBEDDING, _HEAD = f"{EMBEDDING}.weight", f"{HEAD}.weight"
_VALUE_HEADS = ("v_head.", "value_head.")  # of reinforcement learning: beside the model, not in its logits
_OTHER_HEADS = {
    "score.weight": "GPTNeoXForSequenceClassification, a classifier",
    "classifier.weight": "GPTNeoXForTokenClassification, a classifier of tokens",
    "qa_outputs.weight": "GPTNeoXForQuestionAnswering",
}


class Opened:
    """What every opened checkpoint has, of whatever weights: `pulled`, `config`, `generation`, `parameters`, `dtype`
    and its tokenizer."""

    def __init__(self, pulled: Pulled, config: NeoXConfig, generation: Generation, dtype: str) -> None:
        self.pulled, self.config, self.generation, self.dtype = pulled, config, generation, dtype
        self.parameters = config.parameters

    @cached_property
    def tokenizer_folder(self) -> FolderTokenizer:
        """The tokenizer with all that its files say, as transformers reads them.

        Raises:
            SourceError: there is none.
            IntegrityError: one of its files is not what its name says.
        """
        return open_tokenizer(self.pulled.tokenizer_folder or self.pulled.folder)

    @property
    def has_tokenizer(self) -> bool:
        folder = self.pulled.tokenizer_folder or self.pulled.folder
        return has_tokenizer({path.name for path in folder.iterdir()})

    def notes(self) -> list[str]:
        """Return what a user should know of its tokenizer and of how its texts end; raises as `tokenizer_folder`."""
        return [*self.generation.notes, *misfits(self.tokenizer_folder, self.config)]

    def tokenizer(self) -> Tokenizer:
        """Text to token ids; raises as `tokenizer_folder`."""
        return self.tokenizer_folder.tokenizer


class Checkpoint(Opened):
    """An opened checkpoint: every header has been read and held to the table of tensors, no weight has.

    `dtype` is as stored: float16, bfloat16 or float32; float32 when they are mixed, float64, which transformers reads
    so too, a mean, or merged with an adapter.
    """

    def __init__(
        self,
        pulled: Pulled,
        config: NeoXConfig,
        generation: Generation,
        dtype: str,
        where: Mapping[str, StoredTensor | MeanTensor],
        adapter: Adapter | None,
    ) -> None:
        super().__init__(pulled, config, generation, dtype)
        self._where, self._adapter = where, adapter

    def tensor(self, name: str) -> Tensor:
        """One tensor by the table's name, in its stored dtype; float32 of float64, a mean, and what an adapter changes.

        Raises:
            NumericsError: it holds a NaN, an infinity, or a float64 that float32 does not hold.
        """
        if name == _HEAD and self.config.tied_head:
            name = _EMBEDDING
        tensor = self._where[name].read()
        return tensor if self._adapter is None else self._adapter.merged(name, tensor)


def open_checkpoint(pulled: Pulled, progress: Progress = SILENT) -> Checkpoint:
    """Read configuration and headers; hold every tensor's name, shape and dtype to the configuration.

    Raises:
        SourceError: a file or a tensor is missing, the configuration is not one of the family's, a head that should be
            tied is not, or the tensors are those of another kind of model: a classifier, one quantised already,
            several at once.
        IntegrityError: a truncated or malformed file, a wrong shape, a dtype that no Pythia has, an unknown tensor.
    """
    config, generation = read_model(pulled.folder)
    where: Mapping[str, StoredTensor | MeanTensor]
    if pulled.averaged:
        where, dtype = _averaged(pulled, config, progress), "float32"
    else:
        where, dtype = _stored(pulled, config, progress)
    adapter = None
    if pulled.adapter is not None:
        adapter = open_adapter(pulled.adapter, {name: stored.shape for name, stored in where.items()})
        dtype = "float32"
    return Checkpoint(pulled, config, generation, dtype, where, adapter)


def _averaged(pulled: Pulled, config: NeoXConfig, progress: Progress) -> dict[str, MeanTensor]:
    """The tensors of all revisions of a mean, each held to its own configuration, and all configurations to one."""
    found: list[tuple[float, dict[str, StoredTensor]]] = []
    for share, one in pulled.averaged:
        own = read_model(one.folder)[0]
        for field in (f.name for f in fields(config)):
            value = getattr(own, field)
            if value != getattr(config, field) and not field.startswith(("bos", "eos")):
                raise SourceError(
                    f"{one.name}: {field} is {value} at {one.revision} and {getattr(config, field)} at "
                    f"{pulled.averaged[-1][1].revision}; only checkpoints of one model have a mean"
                )
        found.append((share, _stored(one, own, progress)[0]))
    return {name: MeanTensor(tuple((share, where[name]) for share, where in found)) for name in found[-1][1]}


def _stored(pulled: Pulled, config: NeoXConfig, progress: Progress) -> tuple[dict[str, StoredTensor], str]:
    """The tensors of one checkpoint by the table's names, held to its configuration, and their dtype."""
    folder = str(pulled.folder)
    found = stored_tensors(pulled)
    require_plain_tensors([stored.name for stored in found.values()], folder)
    where: dict[str, StoredTensor] = {}
    settle_tied_head(config, found, pulled.folder)
    for spec in tensors(config):
        if spec.name not in found:
            raise _missing(spec.name, found, pulled.folder)
        where[spec.name] = held(found.pop(spec.name), spec)
    beside = sorted(name for name in found if name.startswith(_VALUE_HEADS))
    if beside:
        progress.note(f"{pulled.folder}: a value head ({beside[0]}) is left out; the logits do not depend on it")
    extra = sorted(name for name in found if not name.endswith(IGNORED_BUFFERS) and name not in beside)
    if extra:
        raise IntegrityError(
            f"{pulled.folder}: {len(extra)} tensors that {CONFIG} has no place for, {extra[0]} among them",
            hint="Does num_hidden_layers match the weights?",
        )
    if any(DTYPES[stored.entry.dtype] == torch.float64 for stored in where.values()):
        progress.note(f"{pulled.folder}: weights in float64 are read as float32")
    return where, dtype_of(where.values())


def held(stored: StoredTensor, spec: TensorSpec) -> StoredTensor:
    """Return a tensor of floats that has the shape of the table.

    Raises:
        IntegrityError: it has another shape, or a dtype that no checkpoint of floats has.
    """
    if stored.shape != spec.shape:
        raise IntegrityError(
            f"{stored.path}: {stored.name} is {list(stored.shape)}; {CONFIG} makes it {list(spec.shape)}"
        )
    stored.require_float()
    return stored


def dtype_of(stored: Iterable[StoredTensor]) -> str:
    """Return the dtype of a checkpoint's floats, as they are read: float32 where they are mixed, or float64."""
    dtypes = {DTYPES[tensor.entry.dtype] for tensor in stored}
    return "float32" if len(dtypes) > 1 or torch.float64 in dtypes else str(dtypes.pop()).removeprefix("torch.")


def stored_tensors(pulled: Pulled) -> dict[str, StoredTensor]:
    """Return the tensors of all shards by the names of the table; those that it lacks by their own.

    Raises:
        SourceError: an adapter among them that is not merged, or several models at once.
        IntegrityError: a truncated or malformed file, a tensor twice, an index that says otherwise.
    """
    named, folder = _headers(pulled), str(pulled.folder)
    require_merged(named, folder)
    return {table: named[name] for table, name in by_table_name(named, folder).items()}


def _headers(pulled: Pulled) -> dict[str, StoredTensor]:
    """The tensors of all shards by the files' own names."""
    found: dict[str, StoredTensor] = {}
    for shard in pulled.weights:
        for name, entry in read_header(shard).items():
            if name in found:
                raise IntegrityError(f"{name} is in {found[name].path.name} and again in {shard.name}")
            if pulled.places.get(name, shard.name) != shard.name:
                raise IntegrityError(
                    f"{pulled.folder}: the index has {name} in {pulled.places[name]}; it is in {shard.name}",
                    hint="Are these shards of two different checkpoints?",
                )
            found[name] = StoredTensor(shard, name, entry)
    return found


def _missing(name: str, found: dict[str, StoredTensor], folder: Path) -> SourceError:
    other = next((kind for head, kind in _OTHER_HEADS.items() if head in found), None)
    if name == f"{HEAD}.weight" and (other or all(n.startswith("gpt_neox.") for n in found)):
        what = other or "GPTNeoXModel, the body alone"
        return SourceError(
            f"{folder}: a {what}: it has no head over the vocabulary ({name}, or lm_head.weight)",
            hint="A GPTNeoXForCausalLM is needed: the base that it was made from, or its own state dict with the head.",
        )
    near = difflib.get_close_matches(name, found, n=1, cutoff=0.8)
    return SourceError(f"{folder}: tensor {name} is missing", hint=f"There is {near[0]}." if near else "")


def settle_tied_head(config: NeoXConfig, found: dict[str, StoredTensor], folder: Path) -> None:
    """Leave one matrix by the embedding's name where the configuration ties the head to it, and both may be stored.

    Raises:
        SourceError: the head is not the embedding: transformers 4 takes the embedding for it, 5 the head.
        IntegrityError: one of them has another shape or dtype than the table's.
    """
    if not config.tied_head or _HEAD not in found:
        return
    if _EMBEDDING not in found:  # one matrix by the other name, as safetensors' save_model leaves it
        found[_EMBEDDING] = found.pop(_HEAD)
        return
    spec = next(spec for spec in tensors(config) if spec.name == _EMBEDDING)
    embedding, head = held(found[_EMBEDDING], spec), held(found.pop(_HEAD), spec)
    if not torch.equal(head.read().float(), embedding.read().float()):
        raise SourceError(
            f"{folder}: {CONFIG} ties the head to the embedding (tie_word_embeddings), and {head.name} differs from "
            f"{embedding.name}",
            hint=f"Set tie_word_embeddings to false in {CONFIG} where the head was trained by itself; remove "
            f"{head.name} where it was not.",
        )
