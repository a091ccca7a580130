"""Quantise a checkpoint with llm-compressor, in an interpreter that has it: CHECKPOINT OUT. One folder a variant, each
with `dequantised.safetensors`: what compressed-tensors itself makes of the folder's weights."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

HEAD = ["embed_out"]  # of the file; in memory transformers 5 calls it lm_head, so that `ignore` leaves nothing out


def scheme(bits: int, group: int | None, symmetric: bool, actorder: str | None = None) -> dict:
    weights = {
        "num_bits": bits, "type": "int", "symmetric": symmetric, "actorder": actorder,
        "strategy": "channel" if group is None else "group", "group_size": group,
    }  # fmt: skip
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


VARIANTS = {
    "w4a16": (QuantizationModifier, {"scheme": "W4A16", "targets": "Linear", "ignore": ["lm_head"]}),
    "w8a16": (QuantizationModifier, {"scheme": "W8A16", "targets": "Linear", "ignore": ["lm_head"]}),
    "w4a16-head": (QuantizationModifier, {"scheme": "W4A16", "targets": "Linear", "ignore": HEAD}),
    "w4-asym-g32": (GPTQModifier, scheme(4, 32, False) | {"ignore": ["lm_head"]}),
    "w4-actorder-weight": (GPTQModifier, scheme(4, 32, True, "static") | {"ignore": ["lm_head"]}),
    "w3-g64": (QuantizationModifier, scheme(3, 64, True) | {"ignore": ["lm_head"]}),
    "w6-asym-g64": (QuantizationModifier, scheme(6, 64, False) | {"ignore": ["lm_head"]}),
    "w8a8": (QuantizationModifier, {"scheme": "W8A8", "targets": "Linear", "ignore": ["lm_head"]}),
}


def main(checkpoint: Path, out: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    rows = torch.randint(1, 4000, (16, 64), generator=torch.Generator().manual_seed(0)).tolist()
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * 64] * len(rows)})
    for name, (modifier, settings) in VARIANTS.items():
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float16)
        recipe = modifier(**settings)
        given = {"dataset": data, "num_calibration_samples": len(rows)} if modifier is GPTQModifier else {}
        oneshot(model=model, recipe=recipe, tokenizer=tokenizer, **given)
        model.save_pretrained(out / name, save_compressed=True)
        tokenizer.save_pretrained(out / name)
        dequantised(out / name)


def dequantised(folder: Path) -> None:
    import json

    config = QuantizationConfig.model_validate(json.loads((folder / "config.json").read_text())["quantization_config"])
    (of,) = config.config_groups.values()
    with safe_open(folder / "model.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    bases = {name.removesuffix("_scale") for name in stored if name.endswith(".weight_scale")}
    compressor = BaseCompressor.get_value_from_registry(of.format or config.format)
    found = {}
    for base in bases:
        parts = {key.rpartition(".")[2]: value for key, value in stored.items() if key.startswith(base)}
        parts["weight_scale"] = parts["weight_scale"].float()  # so that the product is not rounded again
        found[base.removesuffix(".weight")] = compressor.decompress(parts, of)["weight"].float().contiguous()
    save_file(found, folder / "dequantised.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
