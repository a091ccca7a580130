"""GPTQModel's side of `quantisers.py`, in an interpreter that has it: act-order with static groups, and GPTAQ."""

from __future__ import annotations

import sys
from pathlib import Path

here = str(Path(__file__).parent)
sys.path = [path for path in sys.path if path != here]  # this file has the library's name
from gptqmodel import GPTQModel, QuantizeConfig  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

sys.path.append(here)
from _peer import job, keep  # noqa: E402

asked = job()
config = QuantizeConfig(
    bits=asked["bits"], group_size=asked["group"], sym=True, desc_act=True, static_groups=True, act_group_aware=False,
    damp_percent=0.01, mse=2.4, gptaq=asked["gptaq"], offload_to_disk=False, device="cpu", format="gptq_v2",
)  # fmt: skip
rounded = GPTQModel.load(asked["model"], config, dtype="float32")
samples = [{"input_ids": row[None], "attention_mask": row.new_ones(1, len(row))} for row in asked["calibration"]]
rounded.quantize(samples, batch_size=8, calibration_sort=None)
model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype="float32")
for name, linear in rounded.model.named_modules():
    if hasattr(linear, "qweight"):
        linear.post_init()
        linear.scales = linear.scales.float()
        model.get_submodule(name).weight.data = linear.dequantize_weight().T.float().contiguous()
keep(model, asked)
