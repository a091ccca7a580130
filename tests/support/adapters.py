"""LoRA adapters as PEFT writes them."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

DENSE, QKV, UP = "attention.dense", "attention.query_key_value", "mlp.dense_h_to_4h"
# In and out of the linears that the adapters here change.
SHAPES = {DENSE: (128, 128), QKV: (128, 384), UP: (128, 256)}
SETTINGS = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "someone/base", "r": 4, "lora_alpha": 8,
    "lora_dropout": 0.05, "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
    "target_modules": ["dense"], "use_dora": False, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {},
    "modules_to_save": None, "peft_version": "0.21.2", "loftq_config": {}, "megatron_core": "megatron.core",
}  # fmt: skip


def lora(linears=(DENSE,), rank=4, layers=(0, 1)) -> dict[str, torch.Tensor]:
    """A and B of some linears, as PEFT names them."""
    torch.manual_seed(1)
    found = {}
    for layer in layers:
        for linear in linears:
            inputs, outputs = SHAPES[linear]
            name = f"base_model.model.gpt_neox.layers.{layer}.{linear}"
            found |= {
                f"{name}.lora_A.weight": torch.randn(rank, inputs),
                f"{name}.lora_B.weight": torch.randn(outputs, rank),
            }
    return found


def adapter(folder, stored, pickled=False, **settings):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    if pickled:
        torch.save(stored, folder / "adapter_model.bin")
    else:
        save_file(stored, folder / "adapter_model.safetensors")
    return folder
