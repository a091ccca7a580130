#!/usr/bin/env bash
# openvino 2026.4.1, CPU: a cache that MakeStateful made does not compile where attention over it is reordered by beams.
#
# The model is scaled dot product attention over past and new keys and values, all of known heads and width. MakeStateful
# makes states of the past, which start with no tokens. Without a Gather behind the past it compiles and runs. With one,
# by which generation with beams reorders rows, compile_model raises an internal check of a node
# ("contains less parent edges than 0"). With an explicit start, a Broadcast of zero, it compiles.
# Expected: the same start, zero tokens, with the Gather as without it; or an error of MakeStateful that says what lacks.
# Fails when that is no longer what is seen.
set -euo pipefail
at="$(mktemp -d)" && trap 'rm -rf "$at"' EXIT
python3 -m venv "$at/venv"
"$at/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 'numpy>=2,<3'
"$at/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import openvino
from openvino import Model, opset13 as ops
from openvino.passes import MakeStateful, Manager

SHAPE = openvino.PartialShape([1, 2, -1, 16])


def attention(beams: bool, start: bool) -> Model:
    query, key, value, *past = (ops.parameter(SHAPE, np.float32, name=n) for n in ("q", "k", "v", "past.k", "past.v"))
    beam = ops.parameter([1], np.int32, name="beam_idx")
    for node in (query, key, value, *past, beam):
        node.output(0).tensor.set_names({node.friendly_name})
    read = [ops.gather(node, beam, ops.constant(np.int64(0))) if beams else node for node in past]
    keys, values = ops.concat([read[0], key], 2), ops.concat([read[1], value], 2)
    results = [ops.result(node) for node in (ops.scaled_dot_product_attention(query, keys, values), keys, values)]
    for node, name in zip(results, ("out", "present.k", "present.v"), strict=True):
        node.friendly_name = name
        node.input_value(0).tensor.set_names({name})
    model = Model(results, [query, key, value, *past, *([beam] if beams else [])])
    passes = Manager()
    passes.register_pass(MakeStateful({"past.k": "present.k", "past.v": "present.v"}))
    passes.run_passes(model)
    if start:
        empty = ops.broadcast(ops.constant(np.float32(0)), ops.constant(np.array([1, 2, 0, 16])))
        for node in model.get_ops():
            if node.get_type_name() == "ReadValue":
                node.set_arguments([empty.output(0)])
        model.validate_nodes_and_infer_types()
    return model


def found(beams: bool, start: bool = False) -> str:
    x = np.ones((1, 2, 3, 16), np.float32)
    feeds = {"q": x, "k": x, "v": x} | ({"beam_idx": np.zeros(1, np.int32)} if beams else {})
    try:
        openvino.Core().compile_model(attention(beams, start), "CPU").create_infer_request().infer(feeds)
    except RuntimeError as e:
        return str(e).strip().splitlines()[-1]
    return "runs"


plain, reordered, started = found(False), found(True), found(True, start=True)
print(f"openvino {openvino.__version__}: {plain}; with beams: {reordered}; with beams and a start: {started}")
if not (plain == started == "runs" and "less parent edges" in reordered):
    sys.exit("this has changed")
PYTHON
