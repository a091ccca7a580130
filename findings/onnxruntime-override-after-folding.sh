#!/usr/bin/env bash
# onnxruntime 1.31.1 and 1.32.0: SessionOptions.add_initializer may change nothing, without a word.
#
# The option gives a tensor to use in place of the initializer of that name. The graph is y = x * -n with n = 3, and the
# option gives n = 5. Without optimisation y is -5. At any other level -n was folded into a constant first, and y is -3:
# the session opens, and no warning names the tensor.
# Expected: -5 at each level, or an error. Fails when that is no longer what is seen.
set -euo pipefail
at="$(mktemp -d)" && trap 'rm -rf "$at"' EXIT
for version in 1.31.1 1.32.0; do
    python3 -m venv "$at/$version"
    "$at/$version/bin/pip" install --quiet --disable-pip-version-check "onnxruntime==$version" onnx==1.23.2 'numpy>=2,<3'
    "$at/$version/bin/python" - 2>"$at/log" <<'PYTHON'
import numpy as np
import onnx
import onnxruntime

helper, scalar = onnx.helper, np.array(3, np.float32)
x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy")
nodes = [helper.make_node("Neg", ["n"], ["m"]), helper.make_node("Mul", ["x", "m"], ["y"])]
graph = helper.make_graph(nodes, "g", [x], [y], [onnx.numpy_helper.from_array(scalar, "n")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()

five, found = onnxruntime.OrtValue.ortvalue_from_numpy(np.array(5, np.float32)), {}
for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.add_initializer("n", five)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    found[level] = float(session.run(None, {"x": np.ones(2, np.float32)})[0][0])
print(f"onnxruntime {onnxruntime.__version__}: n = 5 in place of 3, y by level: {found}")
assert found == {"ORT_DISABLE_ALL": -5.0, "ORT_ENABLE_BASIC": -3.0, "ORT_ENABLE_ALL": -3.0}, "no longer so"
PYTHON
    ! grep -qi initializer "$at/log" || { echo "a warning names it now"; exit 1; }
done
