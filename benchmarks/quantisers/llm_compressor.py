"""llm-compressor's side of `quantisers.py`, in an interpreter that has it: GPTQ, with act-order and static groups."""

from __future__ import annotations

from _peer import job, keep
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

asked = job()
rows = asked["calibration"].tolist()
row = asked["group"] == -1
weights = {
    "num_bits": asked["bits"], "type": "int", "symmetric": True, "actorder": None if row else "static",
    "strategy": "channel" if row else "group", "group_size": None if row else asked["group"],
    "observer": "mse",
}  # fmt: skip
recipe = GPTQModifier(
    config_groups={"group_0": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head", "embed_out"],
    dampening_frac=0.01,
)  # fmt: skip
model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype="float32")
data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(rows[0])] * len(rows)})
oneshot(
    model=model, recipe=recipe, tokenizer=AutoTokenizer.from_pretrained(asked["model"]), dataset=data,
    num_calibration_samples=len(rows), max_seq_length=len(rows[0]),
)  # fmt: skip
keep(model, asked)
