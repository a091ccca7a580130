"""Quantise a checkpoint with GPTQModel, in an interpreter that has it: CHECKPOINT OUT. One folder a variant, each with
`dequantised.safetensors`: what GPTQModel itself makes of the folder's weights."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from safetensors.torch import save_file

PLAIN = {"desc_act": False, "act_group_aware": False, "offload_to_disk": False, "device": "cpu"}
VARIANTS = {
    "v1-g32": {"bits": 4, "group_size": 32, "format": "gptq"},
    "v2-asym-g32": {"bits": 4, "group_size": 32, "sym": False, "format": "gptq_v2"},
    "v1-asym-g32": {"bits": 4, "group_size": 32, "sym": False, "format": "gptq"},
    "v2-8-row": {"bits": 8, "group_size": -1, "format": "gptq_v2"},
    "v1-2-g32": {"bits": 2, "group_size": 32, "format": "gptq"},
    "v1-3-g32": {"bits": 3, "group_size": 32, "format": "gptq"},
    "v2-3-g32": {"bits": 3, "group_size": 32, "format": "gptq_v2"},
    "v2-group-aware": {"bits": 4, "group_size": 32, "act_group_aware": True, "format": "gptq_v2"},
    "v2-static-groups": {"bits": 4, "group_size": 32, "desc_act": True, "static_groups": True, "format": "gptq_v2"},
    "v2-act-order": {"bits": 4, "group_size": 32, "desc_act": True, "format": "gptq_v2"},
    "v2-act-order-row": {"bits": 4, "group_size": -1, "desc_act": True, "format": "gptq_v2"},
    "v2-dynamic": {
        "bits": 4, "group_size": 32, "format": "gptq_v2",
        "dynamic": {r"+:.*layers\.0\.attention\.dense": {"bits": 8}, r"-:.*layers\.1\.attention\.dense": {}},
    },
    "v2-head": {"bits": 4, "group_size": 32, "format": "gptq_v2", "lm_head": True},
}  # fmt: skip


def main(checkpoint: Path, out: Path) -> None:
    rows = torch.randint(1, 4000, (16, 64), generator=torch.Generator().manual_seed(0))
    samples = [{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in rows]
    for name, settings in VARIANTS.items():
        model = GPTQModel.load(str(checkpoint), QuantizeConfig(**(PLAIN | settings)), dtype=torch.float16)
        model.quantize(samples, batch_size=4, calibration_sort=None)
        model.save(str(out / name))
        dequantised(out / name)


def dequantised(folder: Path) -> None:
    # Of its own accord it would round the scales to bfloat16.
    model = GPTQModel.load(str(folder), backend=BACKEND.TORCH, device="cpu", dtype=torch.float32)
    found = {}
    for name, module in model.model.named_modules():
        if hasattr(module, "qweight"):
            found[name.removeprefix("model.")] = module.dequantize_weight().T.float().contiguous()
    save_file(found, folder / "dequantised.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
