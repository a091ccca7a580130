"""Greedy continuations by OpenVINO on the CPU: FOLDER PROMPTS(json) NEW -> JSON lists of token ids a prompt."""

import json
import sys
from pathlib import Path

import numpy as np
import openvino
from tokenizers import Tokenizer

folder, prompts, new = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
core = openvino.Core()
# By default OpenVINO rounds activations to int8 before products with int4 weights.
exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
model = core.compile_model(core.read_model(folder / "model.onnx"), "CPU", exact)
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
names = {output.get_any_name() for output in model.outputs}
past_names = [port.get_any_name() for port in model.inputs if port.get_any_name().startswith("past_key_values")]
assert {name.replace("past_key_values", "present") for name in past_names} | {"logits"} == names, sorted(names)


def run(batch: list[str]) -> list[list[int]]:
    rows = [tokenizer.encode(prompt).ids for prompt in batch]
    longest = max(map(len, rows))
    ids = np.array([[0] * (longest - len(row)) + row for row in rows])
    mask = np.array([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    _, heads, _, size = model.input(past_names[0]).partial_shape
    kept = model.input(past_names[0]).element_type.to_dtype()
    past = {name: np.zeros((len(rows), heads.get_length(), 0, size.get_length()), kept) for name in past_names}
    found = []
    for _ in range(new):
        positions = np.clip(mask.cumsum(1) - 1, 0, None)[:, -ids.shape[1] :]
        out = model({"input_ids": ids, "attention_mask": mask, "position_ids": positions} | past)
        if len(out["logits"]) != len(rows):
            raise RuntimeError(f"logits of {len(out['logits'])} row for {len(rows)}")
        past = {name: out[name.replace("past_key_values", "present")] for name in past_names}
        ids = out["logits"][:, -1].argmax(-1)[:, None]
        mask = np.concatenate([mask, np.ones_like(ids)], 1)
        found.append(ids[:, 0])
    return np.stack(found, 1).tolist()


alone = [run([prompt])[0] for prompt in prompts]
try:
    together = run(prompts)
except RuntimeError as e:  # of GroupQueryAttention it runs one row alone; how it says so depends on the processor
    together = str(e)
print(json.dumps({"alone": alone, "together": together}))
