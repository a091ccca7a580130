"""The names that a file gives the tensors, as those of the table: what wrappers put before and between is taken off.

model.gpt_neox.layers.0.attention.dense.weight       Lightning and others who keep the model in a field
_orig_mod.gpt_neox.layers.0...                       torch.compile; module. of DDP; _fsdp_wrapped_module. of FSDP
base_model.model.gpt_neox.layers.0...base_layer...   PEFT
layers.0.attention.dense.weight                      GPTNeoXModel, which has no head
lm_head.weight                                       the head, as transformers 5 calls it in memory
"""

from __future__ import annotations

from collections.abc import Collection

from ..base.errors import IntegrityError, SourceError
from ..model.neox import EMBEDDING, HEAD

_BODY = EMBEDDING.partition(".")[0] + "."
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "module"}
_OF_BODY = ("embed_in.", "layers.", "final_layer_norm.")
_PARTS = ("embed_in.weight", "final_layer_norm.weight", "layers.0.input_layernorm.weight")


def by_table_name(names: Collection[str], where: str) -> dict[str, str]:
    """The file's name of each tensor by the table's; of tensors that the table lacks by their own.

    Raises:
        SourceError: several models.
        IntegrityError: two names stand for one tensor.
    """
    bare = {name: _unwrapped(name) for name in names}
    prefix, body = _prefix(bare.values(), where)
    found: dict[str, str] = {}
    for name, short in bare.items():
        table = short.removeprefix(prefix)
        table = body + table if table.startswith(_OF_BODY) else table
        if table.startswith("lm_head."):
            table = HEAD + table.removeprefix("lm_head")
        if table in found:
            raise IntegrityError(f"{where}: {found[table]} and {name} both stand for {table}")
        found[table] = name
    return found


def require_merged(names: Collection[str], where: str) -> None:
    """SourceError where an adapter lies among a model's own tensors: what it is multiplied by is not known there."""
    unmerged = next((name for name in sorted(names) if ".lora_" in name or ".modules_to_save." in name), None)
    if unmerged is not None:
        raise SourceError(
            f"{where}: the state dict of a PeftModel whose adapter is not merged: it has {unmerged}",
            hint="`model.merge_and_unload()`, then `save_pretrained`; or save the adapter with `model.save_pretrained` "
            "and give it as `adapter`.",
        )


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS and part != "base_layer")


def _prefix(names: Collection[str], where: str) -> tuple[str, str]:
    """What stands before the names of the model, and what is missing there."""
    prefixes = {name[: name.index(_BODY)] for name in names if name.startswith(_BODY) or f".{_BODY}" in name}
    missing = ""
    if not prefixes:
        prefixes = {
            name.removesuffix(part) for name in names for part in _PARTS if name == part or name.endswith(f".{part}")
        }
        missing = _BODY
    if len(prefixes) > 1:
        named = ", ".join(repr(prefix) for prefix in sorted(prefixes))
        raise SourceError(
            f"{where}: {len(prefixes)} models in one state dict, with {named} before their names",
            hint="Save the state dict of the one that is meant.",
        )
    return next(iter(prefixes), ""), missing if prefixes else ""
