"""GPTQModel's side of `peers.py`: one job, given as JSON, in an interpreter that has GPTQModel and nothing of ours.

Prints nothing of use (the library draws progress on stdout); what was measured goes to the file `report`.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gptqmodel import GPTQModel, QuantizeConfig
from gptqmodel.looper.gptq_processor import GPTQProcessor
from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module
from safetensors.torch import save_file

SETTINGS: dict[str, Any] = {
    "bits": 4,
    "sym": True,
    "desc_act": True,  # act-order; False by default
    "static_groups": True,  # groups stay where they are stored, as ours do; False by default
    "act_group_aware": False,  # its other order, on by default; excludes desc_act
    "damp_percent": 0.01,  # 0.05 by default
    "damp_auto_increment": 0.01,  # its default: the ladder adds where ours doubles
    "mse": 0.0,  # its default: scales from the largest weight, no search
    "true_sequential": True,  # its default
    "lm_head": False,  # its default: the head stays in float
    "offload_to_disk": False,  # True by default; False keeps its disk out of the time
    "device": "cpu",
}


def main() -> None:
    job = json.loads(sys.argv[1])
    solved: dict[str, torch.Tensor] = {}
    if job["weights"]:
        _keep_what_is_solved(solved)
    settings = SETTINGS | _no_silent_rounding() | {"group_size": job["group_size"]}
    config = QuantizeConfig(**settings)
    model = GPTQModel.load(job["model"], config, dtype=torch.float32)
    ids = torch.from_numpy(np.load(job["ids"]))
    samples = [{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in ids]

    began = time.perf_counter()
    log = model.quantize(samples, batch_size=job["batch"], calibration_sort=None)["gptq"]
    seconds = time.perf_counter() - began
    peak = _peak_memory_bytes()

    for entry in log:
        assert int(entry["samples"]) == ids.numel(), f"{entry['module']} saw {entry['samples']} of {ids.numel()} tokens"
        float(entry["loss"])  # a fallback leaves a word here
    report = {
        "quantize_seconds": seconds,
        "peak_memory_bytes": peak,
        "linears": len(log),
        "damp": max(float(entry["damp"]) for entry in log),
        "versions": {name: version(name) for name in ("gptqmodel", "torch", "transformers")},
        "settings": settings | {"batch_size": job["batch"], "dtype": "float32"},
    }
    if job["weights"]:
        packed = {f"{name}.weight": _unpacked(m) for name, m in model.model.named_modules() if hasattr(m, "qweight")}
        assert len(packed) == len(log) and packed.keys() == solved.keys(), "a linear is missing"
        folder = Path(job["weights"])
        save_file(packed, folder / "packed.safetensors")
        save_file(solved, folder / "solved.safetensors")
    Path(job["report"]).write_text(json.dumps(report))


def _no_silent_rounding() -> dict[str, Any]:
    """Return what keeps it from rounding to nearest where calibration is thin, as this version calls it: 7 does so by
    default after less than 0.5 % of the tokens, 5 does not by default."""
    names = {field.name for field in fields(QuantizeConfig)}
    return {"fallback": None} if "fallback" in names else {"fail_safe": False}


def _keep_what_is_solved(solved: dict[str, torch.Tensor]) -> None:
    """Copies each matrix when GPTQ is done with it, before it is packed with scales in float16."""
    process = GPTQProcessor.process

    def kept(self: Any, module: Any, *args: Any, **kwargs: Any) -> None:
        process(self, module, *args, **kwargs)
        solved[f"{module.full_name}.weight"] = module.weight.data.float().clone()

    GPTQProcessor.process = kept


def _unpacked(linear: Any) -> torch.Tensor:
    """[out, in] float32 of what it packed: the codes times the float16 scales, the product not rounded again."""
    if linear.qzero_format() == 1:  # zero points are stored less one, and only loading a checkpoint adds it again
        convert_gptq_v1_to_v2_format_module(linear, bits=linear.bits, pack_dtype=linear.pack_dtype)
    linear.post_init()
    linear.scales = linear.scales.float()
    return linear.dequantize_weight().T.float().contiguous()


def _peak_memory_bytes() -> int:
    """VmHWM: ru_maxrss would also count what the parent had resident when it forked."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024


if __name__ == "__main__":
    main()
