"""Codes of 2 and 3 bits: the kernels that read them as they are stored, and the functions in their place."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnxruntime
import pytest
from native import needs_library
from onnx import TensorProto, helper, numpy_helper
from oracles import relative
from test_decoder_layers import MASK, exported, logits_of, opened
from test_matmul_nbits import SETS, session, session_by

from pythia_export.graph.ops import DOMAIN, LINEAR, LINEAR_3, MICROSOFT, OPSET, linear_3_bits, linear_nbits
from pythia_export.recipe import Export, Quantize
from pythia_export.weights.narrow import pack_narrow
from pythia_export.weights.nibbles import pack_bits

NODE = "/layers.0/dense/MatMul"
ROWS = (1, 2, 5, 16, 33)
SHAPES = [(128, 16), (384, 128), (250, 16), (768, 64), (1024, 128), (512, 256)]  # depth, block: planes of 16, 32 and 64


def product(depth, columns, bits, block, level, symmetric=True, seed=0):
    """x, the model of one node, and what the contract says of it in float64."""
    rng = np.random.default_rng(seed)
    blocks = -(-depth // block)
    x = rng.standard_normal((max(ROWS), depth)).astype("f")
    codes = rng.integers(0, 2**bits, (columns, blocks * block), np.uint8)
    zeros = np.full((columns, blocks), 2 ** (bits - 1), np.uint8)
    if not symmetric:
        zeros = rng.integers(0, 2**bits, (columns, blocks), np.uint8)
    weights = {
        "B": pack_narrow(codes) if bits == 3 else pack_bits(codes, bits).reshape(columns, blocks, -1),
        "scales": rng.uniform(0.01, 0.1, (columns, blocks)).astype("f"),
    }
    if not symmetric or bits == 3:
        weights["zero_points"] = pack_bits(zeros, 4 if bits == 3 else bits)
    called = LINEAR_3 if bits == 3 else LINEAR
    attributes = {"K": depth, "N": columns, "bits": bits, "block_size": block}
    if bits == 3:
        attributes["accuracy_level"] = level
    node = helper.make_node(called, ["A", *weights], ["Y"], name=NODE, domain=DOMAIN, **attributes)
    graph = helper.make_graph(
        [node],
        "one product",
        [helper.make_tensor_value_info("A", TensorProto.FLOAT, ["rows", depth])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid(*pair) for pair in (("", OPSET), (MICROSOFT, 1), (DOMAIN, 1))]
    bodies = [linear_3_bits() if bits == 3 else linear_nbits()]
    made = helper.make_model(graph, opset_imports=opsets, functions=bodies, ir_version=10)

    padded = np.zeros((len(x), blocks, block), "f")
    padded.reshape(len(x), -1)[:, :depth] = x
    if level == 4:
        by = np.abs(padded).max(-1, keepdims=True) / np.float32(127)
        padded = np.round(padded * (1 / by)) * by.astype(float)
    matrix = (codes.reshape(columns, blocks, block) - zeros[..., None].astype(float)) * weights["scales"][..., None]
    return x, made, np.einsum("mbk,nbk->mn", padded, matrix)


@needs_library
@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_of_two_bits_give_the_bits_that_the_same_codes_in_four_give(isa, symmetric, monkeypatch):
    for depth, block in SHAPES:
        x, two, _ = product(depth, 37, 2, block, 4, symmetric)
        four = onnx.ModelProto.FromString(two.SerializeToString())
        next(a for a in four.graph.node[0].attribute if a.name == "bits").i = 4
        for weight in four.graph.initializer:
            if weight.name != "scales":
                packed = numpy_helper.to_array(weight)
                codes = (packed[..., None] >> np.array([0, 2, 4, 6], np.uint8) & 3).reshape(*packed.shape[:-1], -1)
                if weight.name == "zero_points":
                    codes = codes[:, : -(-depth // block)]
                elif symmetric:  # the middle of 4 bits is 8, of 2 bits 2
                    codes = codes + np.uint8(6)
                weight.CopyFrom(numpy_helper.from_array(pack_bits(codes, 4), weight.name))
        by_two, by_four = session_by(isa, two, monkeypatch), session_by(isa, four, monkeypatch)
        for rows in (1, 2):
            got, want = (opened.run(None, {"A": x[:rows]})[0] for opened in (by_two, by_four))
            assert got.tobytes() == want.tobytes(), (depth, block, rows)


@needs_library
@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "level"), [(2, 4), (3, 4), (3, 0)])
def test_the_kernel_is_the_contract(isa, bits, level, symmetric, monkeypatch):
    for depth, block in SHAPES:
        x, made, want = product(depth, 37, bits, block, level, symmetric)
        opened = session_by(isa, made, monkeypatch)
        for rows in ROWS:
            got = opened.run(None, {"A": x[:rows]})[0]
            assert np.abs(got - want[:rows]).max() <= 3e-6 * np.abs(want).max(), (depth, block, rows)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "level", "block"), [(2, 4, 32), (3, 4, 16), (3, 0, 16), (3, 4, 128)])
def test_the_function_is_the_contract(bits, level, block, symmetric):
    for depth in (128, 768, 1024):
        x, made, want = product(depth, 37, bits, block, level, symmetric)
        got = session(made, native=False).run(None, {"A": x})[0]
        assert np.abs(got - want).max() <= 3e-6 * np.abs(want).max()


def test_onnx_runtime_unpacks_three_bits_once_when_a_session_opens(tmp_path):
    _, made, _ = product(1024, 37, 3, 128, 4)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "as_run.onnx")
    onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert [node.op_type for node in onnx.load(tmp_path / "as_run.onnx").graph.node] == ["MatMulNBits"]


@needs_library
@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"bits": 4}, "bits is 4; 3 was expected"),
        ({"accuracy_level": 1}, "accuracy_level is 1; 0 or 4 was expected"),
        ({"K": 192, "block_size": 64}, "a row has 192 codes of 3 bits; a multiple of 128 was expected"),
    ],
)
def test_attributes_that_make_no_sense_are_refused(attributes, words):
    _, made, _ = product(256, 37, 3, 32, 4)
    for attribute in made.graph.node[0].attribute:
        attribute.i = attributes.get(attribute.name, attribute.i)
    with pytest.raises(Exception, match=re.escape(f"pythia::{LINEAR_3} {NODE}: {words}")):
        session(made)


@needs_library
def test_codes_of_another_shape_are_an_error_that_says_which_was_expected():
    x, made, _ = product(256, 37, 3, 32, 4)
    made.graph.initializer[0].dims[:] = [37, 2, 3, 16]
    with pytest.raises(Exception, match=re.escape("B is [37, 2, 3, 16]; [37, 1, 3, 32] was expected")):
        session(made).run(None, {"A": x})


@needs_library
@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("scheme", [{"bits": 3, "group_size": 32}, {"bits": 3, "symmetric": False}, {"bits": 2}])
def test_the_layers_are_one_node_and_give_what_the_function_gives(scheme, level, tmp_path):
    quantize = Quantize(method="rtn", three_bit_field=3, head={"method": "rtn", "bits": 3}, **scheme)
    graph, ids, wanted = exported(tmp_path, quantize, intermediate_size=256)
    assert graph.places.linears["gpt_neox.layers.0.mlp.dense_4h_to_h"].stored_bits == scheme["bits"]
    export = Export(accuracy_level=level)
    by_kernel, by_function = (logits_of(opened(graph, export, native), ids) for native in (True, False))
    assert relative(by_kernel, by_function, MASK) <= (1e-5 if level == 0 else 2e-2)
    assert relative(by_kernel, wanted, MASK) <= (1e-5 if level == 0 else 5e-2)
