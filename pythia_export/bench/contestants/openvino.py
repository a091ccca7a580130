"""The artifact in OpenVINO, by the graph of standard operators over its weights.

As docs/guides/consumers.md shows it: OpenVINO keeps the cache, and computes as it does by default, which rounds
activations to int8 where weights have 4 bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as ops
from openvino.passes import MakeStateful, Manager

from ..job import Job

PACKAGES = ("openvino",)


def keep_cache(model: Any) -> None:
    """Let OpenVINO keep the cache, in place: past and present become one state, and `beam_idx` [B] int32 an input.

    Reordering by beam_idx and a start of no tokens are what OpenVINO looks for: with both, and after `convert_model`,
    which finds attention in standard operators, it computes attention over the state in one operator. Otherwise it
    prepares two products anew for every length of the cache.
    """
    beams = ops.parameter([-1], np.int32, name="beam_idx")
    beams.output(0).tensor.add_names({"beam_idx"})
    model.add_parameters([beams])
    states = {}
    for port in model.inputs:
        name = port.get_any_name()
        if name.startswith("past_key_values"):
            states[name] = name.replace("past_key_values", "present")
            readers, zero = port.get_target_inputs(), ops.constant(np.int64(0))
            ordered = ops.gather(port.get_node(), beams, zero)
            for reader in readers:
                reader.replace_source_output(ordered.output(0))
    model.validate_nodes_and_infer_types()
    passes = Manager()
    passes.register_pass(MakeStateful(states))
    passes.run_passes(model)
    rows = ops.gather(ops.shape_of(model.input("input_ids").get_node()), ops.constant([0]), ops.constant(0))
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            _, heads, _, size = node.get_output_partial_shape(0)
            rest = ops.constant(np.array([heads.get_length(), 0, size.get_length()]))
            start = ops.broadcast(ops.constant(np.float32(0)), ops.concat([rows, rest], 0))
            node.set_arguments([start.output(0)])
    model.validate_nodes_and_infer_types()


class OpenVINO:
    def __init__(self, job: Job) -> None:
        assert job.standard is not None
        graph = Path(job.standard)
        self.files = [graph, graph.with_name("model.onnx_data")]
        model = openvino.convert_model(graph)
        keep_cache(model)
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": job.threads}
        self._request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

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
        before, self._length = self._length, self._length + len(ids)
        feeds = {
            "input_ids": ids[None],
            "attention_mask": np.ones((1, self._length), np.int64),
            "position_ids": np.arange(before, self._length)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        found: np.ndarray = self._request.infer(feeds)["logits"][0]
        return found


open_contestant = OpenVINO
