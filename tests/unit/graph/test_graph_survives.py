"""What other programs do to a graph that they open, and what must be left when they have done it.

Here are those that come with onnx and ONNX Runtime. `make test-tools` has more of them.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from models import Exported, InMemory, export_model, hugging_face, on_disk, small_config
from onnx import compose, helper

from pythia_export.graph.decoder import KEEP
from pythia_export.recipe import Export, Quantize

FOUR_BITS = Quantize(method="rtn", bits=4, group_size=32)
BASIC, EXTENDED = (
    getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}") for level in ("BASIC", "EXTENDED")
)


@pytest.fixture(scope="module")
def source() -> InMemory:
    config = small_config(layers=2)
    return InMemory(config, on_disk(hugging_face(config)))


def optimised(made: Exported, level: onnxruntime.GraphOptimizationLevel) -> onnx.ModelProto:
    """Return the graph as ONNX Runtime would run it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(made.folder / "optimised.onnx")
    options.log_severity_level = 3  # it warns that what it saves is for this machine
    onnxruntime.InferenceSession(str(made.folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return onnx.load(made.folder / "optimised.onnx", load_external_data=False)


def logits(made: Exported, graph: onnx.ModelProto, prefix: str = "") -> np.ndarray:
    path = made.folder / "changed.onnx"
    path.write_bytes(graph.SerializeToString())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = made.feeds(np.arange(5, 17)[None], np.ones((1, 12), np.int64))
    return session.run([prefix + "logits"], {prefix + name: value for name, value in feeds.items()})[0]


@pytest.mark.parametrize("target", ["cpu", "web"])
def test_a_step_of_the_standard_graph_computes_no_constant(source, target, tmp_path):
    """A CastLike of a constant is taken apart after constants were folded, and would be computed at every step."""
    made = export_model(source, tmp_path, FOUR_BITS, Export(rotary="onnx", target=target))
    graph = optimised(made, EXTENDED).graph
    constant = {tensor.name for tensor in graph.initializer} | {
        name for node in graph.node if node.op_type == "Constant" for name in node.output
    }
    computed = [node.name for node in graph.node if set(node.input) <= constant | {""} and node.op_type != "Constant"]
    assert not computed
    assert Counter(node.op_type for node in graph.node)["Cast"] <= 4  # of the mask and of the embedding


@pytest.mark.parametrize("export", [Export(), Export(accuracy_level=4), Export(kv_cache="int8"), Export(rotary="onnx")])
def test_every_name_may_get_a_prefix(source, export, tmp_path):
    """onnx renames functions by their names alone: a call inside one that has its name is renamed too."""
    made = export_model(source, tmp_path, FOUR_BITS, export)
    renamed = compose.add_prefix(made.model, "first/")
    assert (logits(made, renamed, "first/") == logits(made, made.model)).all()


@pytest.mark.parametrize("rotary", ["custom", "gqa", "onnx"])
def test_how_many_logits_are_wanted_can_be_set_after_constants_were_folded(source, rotary, tmp_path):
    made = export_model(source, tmp_path, FOUR_BITS, Export(rotary=rotary))
    whole = logits(made, made.model)
    folded = optimised(made, BASIC)
    assert KEEP in {tensor.name for tensor in folded.graph.initializer}
    folded.graph.input.append(helper.make_tensor_value_info(KEEP, onnx.TensorProto.INT64, []))
    (made.folder / "changed.onnx").write_bytes(folded.SerializeToString())
    session = onnxruntime.InferenceSession(str(made.folder / "changed.onnx"), providers=["CPUExecutionProvider"])
    feeds = made.feeds(np.arange(5, 17)[None], np.ones((1, 12), np.int64))
    for keep in (0, 1, 3, 12, 20):
        (got,) = session.run(["logits"], feeds | {KEEP: np.array(keep, np.int64)})
        assert got.shape[1] == min(keep or 12, 12)
        assert np.abs(got - whole[:, -keep or None :]).max() <= 1e-5
