"""Checkpoints as other quantisers write them: packed slowly and obviously, a number after another.

`make test-import` holds these bytes to those that the tools themselves write.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which output of eight is next in the word


@dataclass
class Rounded:
    """One linear: codes [out, in], scale and zero point [out, groups], the group of each column [in]."""

    q: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    groups: np.ndarray
    bits: int

    @classmethod
    def random(cls, out: int, fan_in: int, bits: int, size: int, symmetric: bool, seed: int, order=None) -> Rounded:
        rng = np.random.default_rng(seed)
        size = fan_in if size < 0 else size
        groups = np.arange(fan_in) // size
        groups = groups if order is None else groups[order(rng, fan_in)]
        shape = (out, -(-fan_in // size))
        zero = np.full(shape, 2 ** (bits - 1)) if symmetric else rng.integers(1, 2**bits - 1, shape)
        scale = (rng.uniform(0.5, 1.5, shape) * 0.5 / 2**bits).astype(np.float16)
        return cls(rng.integers(0, 2**bits, (out, fan_in)), scale, zero, groups, bits)

    @classmethod
    def nearest(cls, weight: np.ndarray, bits: int, size: int) -> Rounded:
        """The weight [out, in] itself, rounded to nearest: symmetric, a scale for `size` columns."""
        out, fan_in = weight.shape
        middle, parts = 2 ** (bits - 1), weight.reshape(out, -1, size)
        scale = (np.abs(parts).max(2) / (middle - 1)).astype(np.float16)
        q = np.clip(np.rint(parts / scale[..., None].astype(np.float32)) + middle, 0, 2 * middle - 1).astype(np.int64)
        groups = np.arange(fan_in) // size
        return cls(q.reshape(out, fan_in), scale, np.full(scale.shape, middle), groups, bits)

    def dense(self) -> np.ndarray:
        """[out, in] float32, a column at a time."""
        columns = [
            (self.q[:, j] - self.zero[:, g]).astype(np.float32) * self.scale[:, g].astype(np.float32)
            for j, g in enumerate(self.groups)
        ]
        return np.stack(columns, axis=1)


def words(numbers, bits: int) -> list[int]:
    """Numbers as one long integer, the first lowest, cut into signed words of 32 bits."""
    whole = 0
    for i, number in enumerate(numbers):
        whole |= int(number) << (i * bits)
    count = -(-len(numbers) * bits // 32)
    return [(w := (whole >> (32 * k)) & 0xFFFFFFFF) - (w >> 31 << 32) for k in range(count)]


def int32(rows) -> torch.Tensor:
    return torch.tensor(np.array(rows, np.int32))


def gptq(of: Rounded, less: int = 1, g_idx: bool = True) -> dict[str, torch.Tensor]:
    """qweight is packed along the inputs, qzeros along the outputs; `less` is taken from zero points."""
    return {
        "qweight": int32([words(row, of.bits) for row in of.q]).T.contiguous(),
        "qzeros": int32([words(column - less, of.bits) for column in of.zero.T]),
        "scales": torch.tensor(of.scale.T.copy()),
    } | ({"g_idx": int32(of.groups)} if g_idx else {})


def awq(of: Rounded) -> dict[str, torch.Tensor]:
    def packed(rows):
        ordered = [[row[8 * k + i] for k in range(len(row) // 8) for i in AWQ_ORDER] for row in rows]
        return int32([words(row, 4) for row in ordered])

    return {"qweight": packed(of.q.T), "qzeros": packed(of.zero.T), "scales": torch.tensor(of.scale.T.copy())}


def compressed(of: Rounded, symmetric: bool) -> dict[str, torch.Tensor]:
    """Numbers are signed in memory; half of the range is added where they are packed, so codes are as they are here."""
    zero = {"weight_zero_point": int32([words(column, of.bits) for column in of.zero.T]).T.contiguous()}
    return {
        "weight_packed": int32([words(row, of.bits) for row in of.q]),
        "weight_scale": torch.tensor(of.scale),
        "weight_shape": torch.tensor(of.q.shape),
    } | ({} if symmetric else zero)


def settings(form: str, bits: int, size: int, symmetric: bool, **more) -> dict:
    """`quantization_config`, as far as each tool's own has what is needed."""
    if form == "compressed-tensors":
        whole = size < 0
        weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "channel" if whole else "group",
                   "group_size": None if whole else size}  # fmt: skip
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "format": "pack-quantized"}
        return {"quant_method": form, "format": "pack-quantized", "version": "0.19.0", "ignore": ["lm_head"],
                "config_groups": {"group_0": group}} | more  # fmt: skip
    common = {"bits": bits, "group_size": size, "sym": symmetric}
    own = {
        "gptq": {"quant_method": "gptq", "checkpoint_format": "gptq", "desc_act": False},
        "gptq_v2": {"quant_method": "gptq", "checkpoint_format": "gptq_v2", "desc_act": False},
        "awq": {"quant_method": "awq", "version": "gemm", "zero_point": True},
        "auto_gptq": {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "autoround_version": "1"},
        "auto_awq": {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq", "autoround_version": "1"},
    }[form]
    return common | own | more


def packed(form: str, of: Rounded, symmetric: bool) -> dict[str, torch.Tensor]:
    if form == "compressed-tensors":
        return compressed(of, symmetric)
    if form in ("awq", "auto_awq"):
        return awq(of)
    return gptq(of, less=0 if form == "gptq_v2" else 1, g_idx=form != "auto_gptq")


def quantise(
    folder: Path, form: str, bits=4, size=32, symmetric=True, head=False, order=None, nearest=False, **more
) -> dict:
    """Put codes of a format in the place of a checkpoint's linears, random ones or the `nearest`; returns each, by name
    without `.weight`."""
    path = folder / "model.safetensors"
    found, made = load_file(path), {}
    config = json.loads((folder / "config.json").read_text())
    for name in sorted(found):
        base = name.removesuffix(".weight")
        if found[name].ndim != 2 or base == name or "embed_in" in name or ("embed_out" in name and not head):
            continue
        weight = found.pop(name)
        if nearest:
            made[base] = Rounded.nearest(weight.float().numpy(), bits, size)
        else:
            made[base] = Rounded.random(*weight.shape, bits, size, symmetric, len(made), order)
        found |= {f"{base}.{part}": tensor for part, tensor in packed(form, made[base], symmetric).items()}
    config["quantization_config"] = settings(form, bits, size, symmetric, **more)
    if head and form == "compressed-tensors":
        config["quantization_config"]["ignore"] = []
    (folder / "config.json").write_text(json.dumps(config))
    save_file(found, path)
    return made
