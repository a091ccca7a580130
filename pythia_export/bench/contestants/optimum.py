"""Optimum's ONNX export of the checkpoint, with a KV cache: in float32, quantised dynamically to int8, or to int4.

int4 is the recipe of onnx-community's models (`q4` of transformers.js' scripts/quantize.py): round to nearest by ONNX
Runtime's own quantiser, symmetric, in blocks of 32.

It runs as it is run, in `ORTModelForCausalLM`: torch and transformers are in its memory and in its start.
"""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForCausalLM

from ..job import Job

PACKAGES = ("optimum", "optimum-onnx", "onnxruntime-gpu", "onnxruntime", "transformers", "torch")
FILES = {"float32": "model.onnx", "int8": "model_quantized.onnx", "int4": "model_q4.onnx"}


def prepare(job: Job) -> None:
    exported = job.folder("optimum-float32")
    if not (exported / FILES["float32"]).is_file():
        from optimum.exporters.onnx import main_export

        main_export(model_name_or_path=job.checkpoint, output=str(exported), task="text-generation-with-past")
    if job.variant == "int8":
        from optimum.onnxruntime import ORTQuantizer
        from optimum.onnxruntime.configuration import AutoQuantizationConfig

        settings = getattr(AutoQuantizationConfig, _instructions())(
            is_static=False, per_channel=True, nodes_to_exclude=_products_of_activations(exported / FILES["float32"])
        )
        quantizer = ORTQuantizer.from_pretrained(exported, file_name=FILES["float32"])
        quantizer.quantize(save_dir=job.folder("optimum-int8"), quantization_config=settings)
    if job.variant == "int4":
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        rounded = MatMulNBitsQuantizer(onnx.load(exported / FILES["float32"]), block_size=32, is_symmetric=True)
        rounded.process()
        job.folder("optimum-int4").mkdir(exist_ok=True)
        rounded.model.save_model_to_file(str(job.folder("optimum-int4") / FILES["int4"]), True)
    for name in ("config.json", "generation_config.json"):
        if job.variant != "float32" and (exported / name).is_file():
            shutil.copyfile(exported / name, job.folder(f"optimum-{job.variant}") / name)


def _products_of_activations(model: Path) -> list[str]:
    """Attention's matrix products, which have no weights. Optimum quantises them too unless they are named, and
    then the demo's perplexity doubles at 512 tokens."""
    graph = onnx.load(model, load_external_data=False).graph
    weights = {initializer.name for initializer in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and not weights & set(node.input)]


def _instructions() -> str:
    """Which of Optimum's configurations is for this processor."""
    if platform.machine() in ("arm64", "aarch64"):
        return "arm64"
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return "avx2"
    wider = {"avx512_vnni": "avx512_vnni", "avx512f": "avx512"}
    return next((name for flag, name in wider.items() if flag in flags), "avx2")


class Optimum:
    def __init__(self, job: Job) -> None:
        folder, file = job.folder(f"optimum-{job.variant}"), FILES[job.variant]
        self.files = [path for path in folder.iterdir() if path.name in (file, f"{file}_data", f"{file}.data")]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job.threads
        self._model = ORTModelForCausalLM.from_pretrained(
            folder, file_name=file, session_options=options, provider="CPUExecutionProvider"
        )

    def prefill(self, ids: np.ndarray) -> np.ndarray:
        self._past, self._length = None, 0
        found: np.ndarray = self._forward(ids)[-1]
        return found

    def step(self, token: int) -> np.ndarray:
        found: np.ndarray = self._forward(np.array([token]))[-1]
        return found

    def logits(self, ids: np.ndarray) -> np.ndarray:
        self._past, self._length = None, 0
        return self._forward(ids)

    def _forward(self, ids: np.ndarray) -> np.ndarray:
        total = self._length + len(ids)
        out = self._model(
            input_ids=torch.from_numpy(ids)[None],
            attention_mask=torch.ones(1, total, dtype=torch.int64),
            position_ids=torch.arange(self._length, total)[None],
            past_key_values=self._past,
        )
        self._past, self._length = out.past_key_values, total
        found: np.ndarray = out.logits[0].numpy()
        return found


open_contestant = Optimum
