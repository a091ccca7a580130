"""Quantise a checkpoint with AutoRound, in an interpreter that has it: CHECKPOINT OUT. One folder a variant, each with
`dequantised.safetensors`: what AutoRound's own layers compute with."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from auto_round import AutoRound
from auto_round.export.export_to_awq.utils import dequantize_gemm
from auto_round_extension.torch.qlinear_torch_zp import QuantLinear
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

DENSE = "gpt_neox.layers.{}.attention.dense"
VARIANTS = {
    "sym-g32": ({"bits": 4, "group_size": 32, "sym": True}, "auto_round"),
    "asym-g32": ({"bits": 4, "group_size": 32, "sym": False}, "auto_round"),
    "sym-g128-gptq": ({"bits": 4, "group_size": 128, "sym": True}, "auto_gptq"),
    "asym-g32-gptq": ({"bits": 4, "group_size": 32, "sym": False}, "auto_gptq"),
    "asym-g32-awq": ({"bits": 4, "group_size": 32, "sym": False}, "auto_awq"),
    "sym8-row": ({"bits": 8, "group_size": -1, "sym": True}, "auto_round"),
    "sym2-g32": ({"bits": 2, "group_size": 32, "sym": True}, "auto_round"),
    "sym3-g32": ({"bits": 3, "group_size": 32, "sym": True}, "auto_round"),
    "mixed": (
        {"bits": 4, "group_size": 32, "sym": True,
         "layer_config": {DENSE.format(0): {"bits": 8}, DENSE.format(1): {"bits": 16}}},
        "auto_round",
    ),
}  # fmt: skip


def main(checkpoint: Path, out: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    rows = torch.randint(1, 4000, (16, 64), generator=torch.Generator().manual_seed(0))
    for name, (settings, form) in VARIANTS.items():
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float16)
        rounder = AutoRound(
            model, tokenizer, dataset=list(rows.split(1)), iters=2, nsamples=16, seqlen=64, device_map="cpu",
            enable_torch_compile=False, **settings,
        )  # fmt: skip
        made = out / f"{name}.made"
        rounder.quantize_and_save(str(made), format=form)
        (found,) = [path.parent for path in made.rglob("config.json")]
        found.rename(out / name)
        dequantised(out / name)


def dequantised(folder: Path) -> None:
    """By AutoRound's layers themselves: of an asymmetric checkpoint, transformers initialises the weights on a CPU."""
    stored, found = load_file(folder / "model.safetensors"), {}
    for base in sorted({name.rpartition(".")[0] for name in stored if name.endswith(".qweight")}):
        qweight, qzeros, scales = (stored[f"{base}.{part}"] for part in ("qweight", "qzeros", "scales"))
        scales, out = scales.float(), scales.shape[1]  # so that the product is not rounded again
        if qweight.shape[1] == out:
            bits = qzeros.shape[1] * 32 // out
            fan_in = qweight.shape[0] * 32 // bits
            layer = QuantLinear(bits, fan_in // len(scales), fan_in, out, bias=False)
            layer.qweight, layer.qzeros, layer.scales = qweight, qzeros, scales
            found[base] = layer(torch.eye(fan_in)).T.contiguous()
        else:
            group = len(qweight) // len(scales)
            found[base] = dequantize_gemm(qweight, qzeros, scales, 4, group).T.contiguous()
    save_file(found, folder / "dequantised.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
