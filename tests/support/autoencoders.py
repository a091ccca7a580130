"""Sparse autoencoders in SAELens's form, with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

KINDS = {
    "standard": ("b_enc",), "jumprelu": ("b_enc", "threshold"), "topk": ("b_enc",),
    "gated": ("b_gate", "b_mag", "r_mag"),
}  # fmt: skip


def save_autoencoder(
    folder: Path, hook: str, d_in: int, d_sae: int, kind: str = "standard", seed: int = 0, dtype=torch.float32, **config
) -> dict[str, torch.Tensor]:
    """Write cfg.json, as SAELens 6 has it, and sae_weights.safetensors; return the tensors."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape, by):
        return by * torch.randn(shape, generator=generator)

    tensors = {"W_enc": noise(d_in, d_sae, by=d_in**-0.5), "W_dec": noise(d_sae, d_in, by=d_sae**-0.5)}
    tensors |= {"b_dec": noise(d_in, by=0.1)} | {name: noise(d_sae, by=0.1) for name in KINDS[kind]}
    if kind == "jumprelu":
        tensors["threshold"] = tensors["threshold"].abs()
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    metadata = {"hook_name": hook, "sae_lens_version": "6.54.12", "model_name": "a model"}
    metadata |= {key: config.pop(key) for key in ("hook_head_index", "model_from_pretrained_kwargs") if key in config}
    settings = {
        "d_in": d_in, "d_sae": d_sae, "dtype": str(dtype).removeprefix("torch."), "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": metadata, "architecture": kind,
    }  # fmt: skip
    settings |= {"k": 8, "rescale_acts_by_decoder_norm": False} if kind == "topk" else {}
    (folder / "cfg.json").write_text(json.dumps(settings | config))
    return tensors
