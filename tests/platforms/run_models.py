"""Run models in ONNX Runtime and keep what they answer: run_models.py LIBRARY FOLDER ANSWERS.npz

Needs numpy and onnxruntime alone, so that it runs under an emulator (arm64.py). A file of FOLDER is one product, fed
with its `NAME.npz`. A folder in it is a decoder: a prompt in one pass, then a token at a time.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime


def opened(model: Path, library: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 2, 3
    if library:
        options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def decoded(session: onnxruntime.InferenceSession, ids: np.ndarray, mask: np.ndarray, prompt: int) -> np.ndarray:
    past = {
        x.name: np.zeros([len(ids), x.shape[1], 0, x.shape[3]], "f")
        for x in session.get_inputs()
        if x.name.startswith("past_key_values")
    }
    names = ["logits", *(name.replace("past_key_values", "present") for name in past)]
    positions, found = np.clip(mask.cumsum(1) - 1, 0, None), []
    for begin, end in [(0, prompt), *((t, t + 1) for t in range(prompt, ids.shape[1]))]:
        feeds = {
            "input_ids": ids[:, begin:end],
            "attention_mask": mask[:, :end],
            "position_ids": positions[:, begin:end],
        }
        logits, *present = session.run(names, feeds | past)
        past = dict(zip(past, present, strict=True))
        found.append(logits)
    return np.concatenate(found, 1)


def main(library: str, folder: Path, answers: Path) -> None:
    found, began = {}, time.perf_counter()
    for model in sorted(folder.glob("*.onnx")):
        session, feeds = opened(model, library), np.load(model.with_suffix(".npz"))
        for rows in feeds["rows"]:
            found[f"{model.stem}, rows {rows}"] = session.run(None, {"A": feeds["A"][:rows]})[0]
    for model in sorted(folder.glob("*/model.onnx")):
        text = np.load(model.with_name("text.npz"))
        found[model.parent.name] = decoded(opened(model, library), text["ids"], text["mask"], int(text["prompt"]))
    np.savez(answers, **found)
    print(f"onnxruntime {onnxruntime.__version__}, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
