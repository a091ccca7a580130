#!/usr/bin/env bash
# nncf 3.4.0, ONNX: compress_weights to int4 adds the bias of a linear twice, below opset 21.
#
# The model is MatMul and Add, as exporters write a linear with a bias. Below opset 21 DequantizeLinear has no blocks, so
# NNCF puts ONNX Runtime's MatMulNBits in MatMul's place. It takes the constant of the Add for MatMul's bias and gives it
# to MatMulNBits as its input `bias`. The Add stays where it was, so the output has the bias twice. No warning, and the
# checker passes. From opset 21 on, where MatMul stays, and of a Gemm, whose bias is its own input, it is there once.
# transformers 5.24 exports with opset 20 by default: `OnnxConfig(quantizer=NNCFOnnxQuantizer(...))` to int4, which its
# documentation shows, doubles every bias whose Add is not fused into another operator.
# Expected: the bias once, with the Add left out or without the input.
# Fails when that is no longer what is seen.
set -euo pipefail
at="$(mktemp -d)" && trap 'rm -rf "$at"' EXIT
python3 -m venv "$at/venv"
"$at/venv/bin/pip" install --quiet --disable-pip-version-check nncf==3.4.0 onnx==1.23.2 onnxruntime==1.32.0 'numpy>=2,<3'
cd "$at" && "$at/venv/bin/python" - 2>&1 <<'PYTHON' | grep -v '^INFO\|━\|^[│┃┍┝┕]'
import sys
from collections import Counter

import nncf
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(0)
K, N = 64, 32
W, BIAS = rng.normal(size=(K, N)).astype(np.float32), np.full(N, 100, np.float32)  # a bias that nothing else hides


def linear(opset: int, gemm: bool) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"], "mul"), helper.make_node("Add", ["xw", "b"], ["y"], "add")]
    if gemm:
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "gemm")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n]) for name, n in (("x", K), ("y", N))]
    constants = [numpy_helper.from_array(array, name) for array, name in ((W, "w"), (BIAS, "b"))]
    graph = helper.make_graph(nodes, "linear", values[:1], values[1:], constants)
    domains = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


def biases(opset: int, gemm: bool = False) -> tuple[int, dict[str, int]]:
    """How many times the bias is in what the compressed model gives for zeros, and the model's operators."""
    model = nncf.compress_weights(linear(opset, gemm), mode=nncf.CompressWeightsMode.INT4_SYM, group_size=32,
                                  all_layers=True)  # fmt: skip
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (y,) = session.run(None, {"x": np.zeros((1, K), np.float32)})
    assert np.ptp(y) == 0
    return round(float(y[0, 0]) / 100), dict(Counter(node.op_type for node in model.graph.node))


twice, once, of_gemm = biases(20), biases(21), biases(20, gemm=True)
print(f"nncf {nncf.__version__}: opset 20 {twice}; opset 21 {once}; opset 20, Gemm {of_gemm}")
if (twice[0], once[0], of_gemm[0]) != (2, 1, 1) or "Add" not in twice[1]:
    sys.exit("this has changed")
PYTHON
