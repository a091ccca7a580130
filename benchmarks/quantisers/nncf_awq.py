"""NNCF's side of `quantisers.py`, in an interpreter that has it: AWQ and scale estimation; 4 bits alone."""

from __future__ import annotations

import nncf
from _peer import job, keep
from transformers import AutoModelForCausalLM

asked = job()
assert asked["bits"] == 4
model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype="float32").eval()
model.config.use_cache = False
rows = list(asked["calibration"].split(1))
left_out = [".*embed_in.*", ".*lm_head.*", ".*embed_out.*"]
found = nncf.compress_weights(
    model, mode=nncf.CompressWeightsMode.INT4_SYM, ratio=1.0, group_size=asked["group"], all_layers=True,
    ignored_scope=nncf.IgnoredScope(patterns=left_out, validate=False), awq=True, scale_estimation=True,
    subset_size=len(rows), dataset=nncf.Dataset(rows, lambda row: row),
)  # fmt: skip
keep(found, asked)
