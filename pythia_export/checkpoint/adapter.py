"""A LoRA adapter in PEFT's form, merged while the checkpoint that it is of is read, one tensor at a time:

    W' = W + s B A        A [r, in], B [out, r], both in float32;  s = alpha / r, or alpha / sqrt(r) with use_rslora

A folder has adapter_config.json and adapter_model.safetensors (or .bin). Its tensors are called as the model's modules
are, behind `base_model.model.`: `...dense.lora_A.weight`, `...lora_B.weight`. What was trained whole (modules_to_save,
biases) lies there whole and takes the place of the base's. LoRA is https://arxiv.org/abs/2106.09685, its stabilised
scale https://arxiv.org/abs/2312.03732.

`fan_in_fan_out` is of GPT-2's transposed layers: PEFT sets it aside for a linear layer, whatever the file says, and
GPT-NeoX has no others. Whatever else would change the result is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..base.errors import IntegrityError, NumericsError, SourceError
from ..model.neox import EMBEDDING, HEAD, IGNORED_BUFFERS
from .adapter_folder import AdapterFiles
from .files import fetched_object
from .header import read_header
from .kinds import ADAPTER_CONFIG
from .names import by_table_name
from .read import StoredTensor

_MERGE = "Merge it with PEFT: `merge_and_unload()`, then `save_pretrained`, and give that folder as the model."

# Keys of adapter_config.json that change nothing here: how it was trained, where it came from.
_NEUTRAL = {
    "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "target_modules", "task_type",
}  # fmt: skip
_READ = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "init_lora_weights"}
# Others change the base's weights when they begin: the adapter then belongs to a base that is not on the disk.
_INITIAL = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Settings:
    """What adapter_config.json says that the merge depends on."""

    rank: int
    alpha: float
    stabilised: bool
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, raw: Any, where: str) -> Settings:
        """
        Raises:
            SourceError: no LoRA adapter, or one of a kind that is not merged here; the message names it.
            IntegrityError: a value that is none.
        """
        if not isinstance(raw, dict):
            raise IntegrityError(f"{where}: an object was expected")
        if raw.get("peft_type") != "LORA":
            raise SourceError(f"{where}: peft_type is {raw.get('peft_type')!r}; LORA alone is merged here", hint=_MERGE)
        if raw.get("init_lora_weights") not in _INITIAL:
            raise SourceError(
                f"{where}: init_lora_weights is {raw['init_lora_weights']!r}, which changes the base's weights as well",
                hint=_MERGE,
            )
        other = sorted(key for key, value in raw.items() if value and key not in _NEUTRAL | _READ)
        if other:
            raise SourceError(f"{where}: {other[0]} is {raw[other[0]]!r}, which is not merged here", hint=_MERGE)
        rank, ranks = raw.get("r", 8), raw.get("rank_pattern") or {}
        alpha, alphas = raw.get("lora_alpha", 8), raw.get("alpha_pattern") or {}
        if not all(isinstance(pattern, dict) for pattern in (ranks, alphas)):
            raise IntegrityError(f"{where}: rank_pattern and alpha_pattern must be objects")
        for given in (rank, *ranks.values()):
            if type(given) is not int or not 0 < given < 1 << 31:
                raise IntegrityError(f"{where}: a rank is {given!r}; a whole number was expected")
        for given in (alpha, *alphas.values()):
            if type(given) not in (int, float) or not abs(given) < 1e9:  # a NaN is not less
                raise IntegrityError(f"{where}: lora_alpha is {given!r}; a number was expected")
        for pattern in (*ranks, *alphas):
            _require_simple(pattern, where)
        return cls(rank, float(alpha), bool(raw.get("use_rslora")), ranks, alphas)

    def scale(self, module: str, rank: int) -> float:
        """s of one module, whose A has `rank` rows."""
        alpha = float(_of_pattern(self.alphas, module, self.alpha))
        return alpha / (math.sqrt(rank) if self.stabilised else rank)

    def rank_of(self, module: str) -> int:
        return int(_of_pattern(self.ranks, module, self.rank))


@dataclass(frozen=True)
class Adapter:
    """An opened adapter: `pairs` are A and B by the module that they are added to, `whole` what replaces a tensor.

    Both are called by the table's names.
    """

    settings: Settings
    pairs: Mapping[str, tuple[StoredTensor, StoredTensor]]
    whole: Mapping[str, StoredTensor]

    def merged(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor of the base as the adapted model has it: float32 where the adapter changes it.

        Raises:
            NumericsError: the adapter holds a NaN or an infinity, or gives one.
        """
        if name in self.whole:
            tensor = self.whole[name].read()
        pair = self.pairs.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if pair is None:
            return tensor
        A, B = (stored.read().float() for stored in pair)
        scale = self.settings.scale(name.removesuffix(".weight"), len(A))
        merged = tensor.float().addmm(B, A, alpha=scale)
        if not torch.isfinite(merged).all():
            raise NumericsError(f"{name}: merged with its adapter, it holds a NaN or an infinity")
        return merged


def open_adapter(files: AdapterFiles, shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
    """Hold an adapter's tensors to those of its base; `shapes` are the base's, by the table's names.

    Raises:
        SourceError: it is of another base, or holds what is not merged here.
        IntegrityError: half a pair, a rank that is not the configuration's, an unknown tensor, a malformed file.
    """
    where = str(files.folder)
    settings = Settings.read(fetched_object(files.config), str(files.config))
    entries = read_header(files.weights).items()
    found = _by_table_name({name: StoredTensor(files.weights, name, entry) for name, entry in entries}, where)
    halves: dict[str, dict[str, StoredTensor]] = {}
    whole: dict[str, StoredTensor] = {}
    for name, tensor in found.items():
        tensor.require_float()
        module, lora, rest = name.partition(".lora_")
        if lora and rest in ("A.weight", "B.weight"):
            halves.setdefault(module, {})[rest[0]] = tensor
        elif lora:
            raise SourceError(f"{where}: {name}, which is not merged here", hint=_MERGE)
        elif name in shapes:
            whole[name] = tensor
        elif not name.endswith(IGNORED_BUFFERS):
            raise SourceError(f"{where}: {name} is no tensor of the base that an adapter changes here", hint=_MERGE)
    pairs = {}
    for module, half in halves.items():
        if set(half) != {"A", "B"}:
            raise IntegrityError(f"{where}: {module} has lora_{next(iter(half))} alone", hint="Copy the adapter again.")
        pairs[module] = half["A"], half["B"]
        _require_fitting(module, *pairs[module], settings.rank_of(module), shapes, where)
    if f"{EMBEDDING}.weight" in whole and f"{HEAD}.weight" not in shapes:
        raise SourceError(f"{where}: an embedding of its own, whose head is tied to the base's embedding", hint=_MERGE)
    for name, tensor in whole.items():
        if tensor.shape != shapes[name]:
            raise _other_base(f"{name} is {list(tensor.shape)}; the base's is {list(shapes[name])}", where)
    if not pairs and not whole:
        raise SourceError(f"{where}: it has no tensor that changes the base", hint="Is it the right folder?")
    return Adapter(settings, pairs, whole)


# What of a name is the adapter's own: PEFT holds several beside each other, by names, and writes one, without its name.
_NAMED = re.compile(r"\.(lora_[AB](?=\.[^.]+\.weight$)|modules_to_save)\.([^.]+)(?=\.)")


def _by_table_name(stored: Mapping[str, StoredTensor], where: str) -> dict[str, StoredTensor]:
    """`gpt_neox.layers.0.attention.dense.lora_A.weight`: neither PEFT's prefix nor an adapter's name in it.

    Raises:
        SourceError: tensors of several adapters.
    """
    adapters = sorted({match[2] for name in stored if (match := _NAMED.search(name))})
    if len(adapters) > 1:
        raise SourceError(
            f"{where}: {len(adapters)} adapters in one file ({', '.join(adapters)}); one was expected",
            hint="Save the one that is meant: `model.save_pretrained(DIR, selected_adapters=[NAME])`.",
        )
    plain = {}
    for name in stored:
        short = _NAMED.sub(lambda match: "" if match[1] == "modules_to_save" else f".{match[1]}", name)
        plain[short.removeprefix("base_model.model.")] = name
    return {table: stored[plain[name]] for table, name in by_table_name(plain, where).items()}


def _require_fitting(
    module: str, A: StoredTensor, B: StoredTensor, rank: int, shapes: Mapping[str, tuple[int, ...]], where: str
) -> None:
    shape = shapes.get(f"{module}.weight")
    if shape is None or len(shape) != 2 or module.endswith("embed_in"):
        raise SourceError(f"{where}: {module} has a LoRA; it is no linear layer of the base", hint=_MERGE)
    if len(A.shape) != 2 or len(B.shape) != 2 or A.shape[0] != B.shape[1]:
        raise IntegrityError(f"{where}: {module} has A {list(A.shape)} and B {list(B.shape)}")
    if (B.shape[0], A.shape[1]) != shape:
        raise _other_base(f"{module} makes {[B.shape[0], A.shape[1]]}; the base's weight is {list(shape)}", where)
    if A.shape[0] != rank:
        raise IntegrityError(f"{where}: {module} has rank {A.shape[0]}; {ADAPTER_CONFIG} says {rank}")


def _other_base(found: str, where: str) -> SourceError:
    return SourceError(
        f"{where}: {found}",
        hint="Is it an adapter of another size, or was the vocabulary extended before it was trained? Then merge it "
        "with PEFT: `merge_and_unload()`.",
    )


def _of_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """As PEFT does: the first pattern, a regular expression, that matches the whole or the end of a name after a dot.

    The head is called in two ways (names.py), and either is meant.
    """
    names = (module, "lm_head") if module == "embed_out" else (module,)
    for pattern, value in patterns.items():
        if any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
            return value
    return default


def _require_simple(pattern: str, where: str) -> None:
    """A foreign file's regular expression must end: few repetitions, none of a group."""
    try:
        re.compile(pattern)
        simple = len(pattern) < 500 and len(re.findall(r"(?<!\\)[*+{]", pattern)) < 4
    except (re.error, RecursionError, OverflowError):
        simple = False
    if not simple or re.search(r"\)\s*[*+{]", pattern):
        raise SourceError(f"{where}: {pattern[:80]!r} is no pattern of names that is understood here", hint=_MERGE)
