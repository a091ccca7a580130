"""Greedy continuations by transformers 5's ONNX runner: FOLDER PROMPTS(json) NEW -> JSON lists of ids a prompt."""

import json
import sys
from pathlib import Path

import onnxruntime
import torch
from torch.utils import _pytree as pytree
from transformers import AutoConfig, AutoTokenizer
from transformers.exporters.metadata import ExportMetadata
from transformers.exporters.runners.runner_onnx import OnnxModelRunner

folder, prompts, new = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
config = AutoConfig.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
tokenizer.pad_token = tokenizer.eos_token
layers, heads = config.num_hidden_layers, config.num_attention_heads
# What the graph gives, in the order of its outputs.
outputs = {"logits": 0, "present": [{"key": 0, "value": 0} for _ in range(layers)]}
metadata = ExportMetadata(
    export_dtype="float32", out_spec=pytree.treespec_dumps(pytree.tree_structure(outputs)), out_constants=[]
)
session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
kept = torch.int8 if session.get_inputs()[-1].type == "tensor(int8)" else torch.float32
model = OnnxModelRunner(metadata, session)


def run(batch: list[str]) -> list[list[int]]:
    tokens = tokenizer(batch, return_tensors="pt", padding=True)
    ids, mask = tokens.input_ids, tokens.attention_mask
    empty = torch.zeros(len(batch), heads, 0, config.hidden_size // heads, dtype=kept)
    past = [{"key": empty, "value": empty} for _ in range(layers)]
    found = []
    for _ in range(new):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=past)
        past, ids = out["present"], out["logits"][:, -1].argmax(-1, keepdim=True)
        mask = torch.cat([mask, torch.ones_like(ids)], 1)
        found.append(ids)
    return torch.cat(found, 1).tolist()


print(json.dumps({"alone": [run([prompt])[0] for prompt in prompts], "together": run(prompts)}))
