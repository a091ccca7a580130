"""What `serve` makes of codes of 3 bits for a browser, whose ONNX Runtime has no fast product with packed weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pythia_export.graph.browser import unpack, unpacked_bytes
from pythia_export.graph.ops import DOMAIN, LINEAR_3, MICROSOFT, OPSET, linear_3_bits
from pythia_export.weights.narrow import narrow_shape, unpack_narrow


@pytest.mark.parametrize(("K", "block"), [(128, 128), (768, 256), (1024, 32)])
def test_three_bits_are_floats_when_a_session_opens_and_the_product_is_one_of_floats(K, block, tmp_path):
    rng, N, blocks = np.random.default_rng(0), 5, K // block
    held = {
        "B": rng.integers(0, 256, (N, *narrow_shape(K)), np.uint8),
        "scales": rng.random((N, blocks), np.float32),
        "zeros": rng.integers(0, 8, (N, (blocks + 1) // 2), np.uint8) * 17,
        "bias": rng.random(N, np.float32),
    }
    node = helper.make_node(
        LINEAR_3, ["A", "B", "scales", "zeros", "", "bias"], ["Y"], name="/product", domain=DOMAIN, K=K, N=N, bits=3,
        block_size=block, accuracy_level=0,
    )  # fmt: skip
    value = helper.make_tensor_value_info
    ends = [value("A", TensorProto.FLOAT, ["rows", K])], [value("Y", TensorProto.FLOAT, ["rows", N])]
    tensors = [numpy_helper.from_array(array, name) for name, array in held.items()]
    opsets = [helper.make_opsetid(*pair) for pair in (("", OPSET), (MICROSOFT, 1), (DOMAIN, 1))]
    graph = helper.make_graph([node], "product", *ends, tensors)
    model = helper.make_model(graph, functions=[linear_3_bits()], opset_imports=opsets, ir_version=10)
    assert unpacked_bytes(model) == 4 * K * N
    unpack(model)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "as_run.onnx")
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    ran = {node.op_type for node in onnx.load(tmp_path / "as_run.onnx").graph.node}
    assert ran <= {"FusedMatMul", "MatMul", "Gemm", "Add"}, "nothing is unpacked at a step"
    x = rng.standard_normal((3, K), np.float32)
    codes = unpack_narrow(held["B"]).reshape(N, blocks, block)
    zeros = np.stack([held["zeros"] & 15, held["zeros"] >> 4], -1).reshape(N, -1)[:, :blocks, None]
    weight = ((codes.astype(np.float64) - zeros) * held["scales"][..., None]).reshape(N, K)
    np.testing.assert_allclose(session.run(None, {"A": x})[0], x @ weight.T + held["bias"], rtol=0, atol=2e-4)
