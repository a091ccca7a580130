#!/usr/bin/env bash
# onnxruntime 1.31.1 and 1.32.0: whether external data may lie behind a link depends on how the model is opened.
#
# A folder as the hub's cache has it: snapshots/main/model.onnx and model.onnx_data are links into blobs/. Opened by its
# path the model runs. Opened from bytes, with session.model_external_initializers_file_folder_path naming the very same
# folder, it is refused: "External data path escapes model directory". With the path, the folder is that of what
# model.onnx leads to (blobs/); with the option, it is the folder that was named.
# Expected: the same answer both ways. Fails when that is no longer what is seen.
set -euo pipefail
at="$(mktemp -d)" && trap 'rm -rf "$at"' EXIT
for version in 1.31.1 1.32.0; do
    python3 -m venv "$at/$version"
    "$at/$version/bin/pip" install --quiet --disable-pip-version-check "onnxruntime==$version" onnx==1.23.2 'numpy>=2,<3'
    "$at/$version/bin/python" - "$at/made-$version" <<'PYTHON'
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

blobs, snapshot = (Path(sys.argv[1]) / name for name in ("blobs", "snapshots/main"))
blobs.mkdir(parents=True), snapshot.mkdir(parents=True)
w = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [256, 256], np.eye(256, dtype="f4").tobytes(), raw=True)
x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 256]) for n in "xy")
graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [w])
model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
onnx.save(model, blobs / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=0)
for name, blob in (("model.onnx", "b0"), ("model.onnx_data", "b1")):
    (blobs / name).rename(blobs / blob)
    (snapshot / name).symlink_to(os.path.relpath(blobs / blob, snapshot))

options = onnxruntime.SessionOptions()
options.log_severity_level = 4
onnxruntime.InferenceSession(snapshot / "model.onnx", options, providers=["CPUExecutionProvider"])
options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(snapshot))
try:
    data = (snapshot / "model.onnx").read_bytes()
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
except Exception as e:
    assert "escapes model directory" in str(e), e
    print(f"onnxruntime {onnxruntime.__version__}: by path it opens, from bytes: {str(e).splitlines()[0][:120]}...")
else:
    sys.exit(f"onnxruntime {onnxruntime.__version__}: opens both ways now")
PYTHON
done
