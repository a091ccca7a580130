"""The checkpoint as transformers 5 exports it, with weights of int4 by NNCF: to ONNX, or to OpenVINO's own format.

Both are what transformers' documentation shows: `OnnxConfig(ort_fusions="cpu")` or `OpenVINOConfig`, with a quantizer
of `mode=INT4_SYM`, whose other settings stay NNCF's own: groups of 128, embedding and head in 8 bits. The graph takes a
cache and any number of tokens. Of ONNX it is opset 21: in 20, which is transformers' default, NNCF adds each bias twice
(findings/nncf-int4-adds-a-bias-twice.sh).

ONNX Runtime runs the one, with its cache passed from call to call; OpenVINO the other, with its cache inside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..job import Job

PACKAGES = ("transformers", "torch", "nncf", "openvino", "onnxruntime", "onnxscript")
SAMPLE = 8  # tokens of the sample that an export traces


def prepare(job: Job) -> None:
    import nncf
    import torch
    from transformers import GPTNeoXForCausalLM
    from transformers.exporters import NNCFOnnxQuantizer, NNCFOpenVINOQuantizer, NNCFWeightCompressionConfig
    from transformers.exporters.configs import OnnxConfig, OpenVINOConfig
    from transformers.exporters.exporter_onnx import OnnxExporter
    from transformers.exporters.exporter_openvino import OpenVINOExporter
    from transformers.exporters.utils import decompose_prefill_decode

    model = GPTNeoXForCausalLM.from_pretrained(job.checkpoint, dtype=torch.float32).eval()
    ids = torch.arange(1, SAMPLE + 1)[None]
    sample = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    traced, inputs = decompose_prefill_decode(model, sample, multi_token_decode=True)["decode"]
    weights = NNCFWeightCompressionConfig(mode=nncf.CompressWeightsMode.INT4_SYM)
    if job.variant == "onnx":
        quantizer = NNCFOnnxQuantizer(weights)
        chosen = OnnxConfig(opset_version=21, dynamic=True, ort_fusions="cpu", quantizer=quantizer)
        exported = OnnxExporter().export(traced, inputs, config=chosen)
    else:
        chosen = OpenVINOConfig(dynamic=True, quantizer=NNCFOpenVINOQuantizer(weights))
        exported = OpenVINOExporter().export(traced, inputs, config=chosen)
    exported.save_pretrained(str(_folder(job)))


def _folder(job: Job) -> Path:
    return job.folder(f"transformers-{job.variant}-int4")


class ByOnnxRuntime:
    def __init__(self, job: Job) -> None:
        import onnxruntime

        folder = _folder(job)
        self.files = sorted(folder.glob("*.onnx*"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job.threads
        graph = next(folder.glob("*.onnx"))
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self._inputs = {value.name: value for value in self._session.get_inputs()}
        self._outputs = [value.name for value in self._session.get_outputs()]
        self._of_cache = [name for name in self._inputs if name not in _TOKENS]

    def prefill(self, ids: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.logits(ids)[-1]
        return found

    def step(self, token: int) -> np.ndarray:
        found: np.ndarray = self._forward(np.array([token]))[-1]
        return found

    def logits(self, ids: np.ndarray) -> np.ndarray:
        self._past, self._length = [_empty(self._inputs[name]) for name in self._of_cache], 0
        return self._forward(ids)

    def _forward(self, ids: np.ndarray) -> np.ndarray:
        past: dict[str, np.ndarray] = dict(zip(self._of_cache, self._past, strict=True))
        feeds = past | _tokens(ids, self._length, self._inputs)
        logits, *self._past = self._session.run(self._outputs, feeds)
        self._length += len(ids)
        found: np.ndarray = logits[0]
        return found


class ByOpenVINO:
    def __init__(self, job: Job) -> None:
        import openvino

        folder = _folder(job)
        self.files = sorted([*folder.glob("*.xml"), *folder.glob("*.bin")])
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": job.threads}
        graph = next(folder.glob("*.xml"))
        compiled = openvino.Core().compile_model(str(graph), "CPU", settings)
        self._inputs = {name: port for port in compiled.inputs for name in port.get_names()}
        self._request = compiled.create_infer_request()

    def prefill(self, ids: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.logits(ids)[-1]
        return found

    def step(self, token: int) -> np.ndarray:
        found: np.ndarray = self._forward(np.array([token]))[-1]
        return found

    def logits(self, ids: np.ndarray) -> np.ndarray:
        self._request.reset_state()
        self._length = 0
        return self._forward(ids)

    def _forward(self, ids: np.ndarray) -> np.ndarray:
        out = self._request.infer(_tokens(ids, self._length, self._inputs))
        self._length += len(ids)
        found: np.ndarray = out["logits"][0]
        return found


_TOKENS = ("input_ids", "attention_mask", "position_ids", "cache_position", "beam_idx")


def _tokens(ids: np.ndarray, before: int, wanted: dict[str, Any]) -> dict[str, np.ndarray]:
    """What of the inputs is no cache, as far as the graph has it, for `ids` [T] behind `before` tokens."""
    places = np.arange(before, before + len(ids))
    feeds = {
        "input_ids": ids[None], "attention_mask": np.ones((1, before + len(ids)), np.int64),
        "position_ids": places[None], "cache_position": places, "beam_idx": np.zeros(1, np.int32),
    }  # fmt: skip
    return {name: value for name, value in feeds.items() if name in wanted}


def _empty(value: Any) -> np.ndarray:
    """A cache of no tokens: [1, heads, 0, head_dim]. The graph calls its numbers by names, `"4"`."""
    return np.zeros((1, int(value.shape[1]), 0, int(value.shape[3])), np.float32)


def open_contestant(job: Job) -> ByOnnxRuntime | ByOpenVINO:
    return ByOnnxRuntime(job) if job.variant == "onnx" else ByOpenVINO(job)
