#!/usr/bin/env bash
# onnxruntime 1.30.0, CPU: GroupQueryAttention's output counts as wide as its packed input, where that width is computed.
#
# The model is com.microsoft.GroupQueryAttention over queries, keys and values packed in one input [rows, tokens, 3 * 32],
# and a MatMul with a matrix [32, 8] behind it. With the input as it is, the session opens. With the input behind a Reshape
# to the same shape, whose dimensions a Concat puts together, the session is refused: "Incompatible dimensions for matrix
# multiplication". onnxruntime 1.31.1 opens and runs both, with the same results.
# Expected: the output's width follows from the numbers of heads, not from how the input's shape is known.
# Fails when that is no longer what is seen.
set -euo pipefail
at="$(mktemp -d)" && trap 'rm -rf "$at"' EXIT
python3 -m venv "$at/venv"
"$at/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.2 'numpy>=2,<3'
"$at/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$at/older" onnxruntime==1.30.0
cat > "$at/tried.py" <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime

onnxruntime.set_default_logger_severity(4)

HEADS, SIZE, TOKENS = 2, 16, 3
WIDTH = HEADS * SIZE
RESHAPED = "tokens = Shape <start: int = 1, end: int = 2> (qkv)\n shape = Concat <axis: int = 0> (rows, tokens, width)\n packed = Reshape (qkv, shape)"


def found(reshaped: bool) -> np.ndarray | str:
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[B, T, {3 * WIDTH}] qkv, float[B, {HEADS}, P, {SIZE}] past_key, float[B, {HEADS}, P, {SIZE}] past_value, int32[B] last, int32[1] total)
            => (float[B, T, 8] y) {{
            rows = Constant <value_ints: ints = [0]> ()
            width = Constant <value_ints: ints = [{3 * WIDTH}]> ()
            matrix = ConstantOfShape <value: tensor = float[1] {{1}}> (sides)
            {RESHAPED if reshaped else "packed = Identity (qkv)"}
            out, key, value = com.microsoft.GroupQueryAttention <num_heads: int = {HEADS}, kv_num_heads: int = {HEADS}>
                (packed, "", "", past_key, past_value, last, total)
            y = MatMul (out, matrix)
        }}""")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([WIDTH, 8]), "sides"))
    empty = np.zeros((1, HEADS, 0, SIZE), np.float32)
    feeds = {
        "qkv": np.random.default_rng(0).standard_normal((1, TOKENS, 3 * WIDTH), np.float32),
        "past_key": empty, "past_value": empty, "last": np.array([TOKENS - 1], np.int32), "total": np.array([TOKENS], np.int32),
    }
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as e:
        return f"refused: {' '.join(str(e).split())[-90:]}"
    return session.run(None, feeds)[0]


plain, reshaped = found(False), found(True)
print(f"onnxruntime {onnxruntime.__version__}: plain {'runs' if isinstance(plain, np.ndarray) else plain}; "
      f"reshaped {'runs' if isinstance(reshaped, np.ndarray) else reshaped}")
older = sys.argv[1] == "older"
same = isinstance(reshaped, np.ndarray) and np.array_equal(plain, reshaped)
if not isinstance(plain, np.ndarray) or same == older or (older and "Incompatible dimensions" not in reshaped):
    sys.exit("this has changed")
PYTHON
PYTHONPATH="$at/older" "$at/venv/bin/python" "$at/tried.py" older
"$at/venv/bin/python" "$at/tried.py" newer
