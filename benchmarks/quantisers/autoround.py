"""AutoRound's side of `quantisers.py`, in an interpreter that has it."""

from __future__ import annotations

from _peer import job, keep
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer

asked = job()
model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype="float32")
rows = asked["calibration"]
rounder = AutoRound(
    model, AutoTokenizer.from_pretrained(asked["model"]), bits=asked["bits"], group_size=asked["group"], sym=True,
    dataset=list(rows.split(1)), nsamples=len(rows), seqlen=rows.shape[1], batch_size=8, iters=asked["iters"],
    device_map="cpu", enable_torch_compile=False, amp=False, seed=0,
)  # fmt: skip
found = rounder.quantize()
keep(found[0] if isinstance(found, tuple) else model, asked)
