"""Greedy and beam continuations by Optimum: FOLDER PROMPTS(json) NEW -> JSON lists of token ids a prompt."""

import json
import sys

from optimum.onnxruntime import ORTModelForCausalLM
from transformers import AutoTokenizer

folder, prompts, new = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
model = ORTModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
tokenizer.pad_token = tokenizer.eos_token


def run(batch: list[str], **search) -> list[list[int]]:
    inputs = tokenizer(batch, return_tensors="pt", padding=True)
    out = model.generate(
        input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=new, do_sample=False,
        pad_token_id=tokenizer.pad_token_id, **search,
    )  # fmt: skip
    return out[:, inputs.input_ids.shape[1] :].tolist()


found = {"alone": [run([prompt])[0] for prompt in prompts], "together": run(prompts)}
found["beam"] = run(prompts[:1], num_beams=3)
print(json.dumps(found))
