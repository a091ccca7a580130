"""Greedy continuations by OpenVINO on the CPU: FOLDER PROMPTS(json) NEW -> JSON lists of token ids a prompt.

`alone` and `together` pass the cache from call to call, `kept` lets OpenVINO keep it (docs/guides/consumers.md).
"""

import json
import re
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


def keeping() -> openvino.InferRequest:
    """The graph whose cache is OpenVINO's state, by the code that docs/guides/consumers.md shows."""
    page = (Path(__file__).parents[2] / "docs" / "guides" / "consumers.md").read_text()
    (block,) = (found for found in re.findall(r"```py\n(.*?)```", page, re.DOTALL) if "def keep_cache" in found)
    made: dict = {}
    exec(block.partition("\nmodel = ")[0], made)  # the function; the lines behind it open build/demo-openvino
    found = openvino.convert_model(folder / "model.onnx")
    made["keep_cache"](found)
    return core.compile_model(found, "CPU", exact).create_infer_request()


def run(batch: list[str], kept: bool = False) -> list[list[int]]:
    request = keeping().infer if kept else model
    rows = [tokenizer.encode(prompt).ids for prompt in batch]
    longest = max(map(len, rows))
    ids = np.array([[0] * (longest - len(row)) + row for row in rows])
    mask = np.array([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    _, heads, _, size = model.input(past_names[0]).partial_shape
    kind = model.input(past_names[0]).element_type.to_dtype()
    empty = np.zeros((len(rows), heads.get_length(), 0, size.get_length()), kind)
    past = {"beam_idx": np.arange(len(rows), dtype=np.int32)} if kept else {name: empty for name in past_names}
    found = []
    for _ in range(new):
        positions = np.clip(mask.cumsum(1) - 1, 0, None)[:, -ids.shape[1] :]
        out = request({"input_ids": ids, "attention_mask": mask, "position_ids": positions} | past)
        if len(out["logits"]) != len(rows):
            raise RuntimeError(f"logits of {len(out['logits'])} row for {len(rows)}")
        if not kept:
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
found = {"alone": alone, "together": together}
if not isinstance(together, str):
    found["kept"] = [run(prompts[:1], kept=True)[0], *run(prompts, kept=True)[1:]]
print(json.dumps(found))
