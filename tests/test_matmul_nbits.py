"""pythia.MatMulNBits in ONNX Runtime: the kernel, and the function that stands in for it, against the contract."""

from __future__ import annotations

import re

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference
from test_kernels import LIBRARY, needs_library

from pythia_export.graph.ops import DOMAIN, MICROSOFT, OPSET, matmul_nbits

SETS = ("avx512vnni", "avx2", "reference")


def problem(rows, depth, columns, bits, block, symmetric=True, bias=False, seed=0):
    """x, and the operator's constant inputs: a, B, scales, zero_points, bias (None where absent)."""
    rng = np.random.default_rng(seed)
    blocks = -(-depth // block)
    return (
        rng.standard_normal((rows, depth)).astype("f"),
        rng.integers(0, 256, (columns, blocks, block * bits // 8), dtype=np.uint8),
        rng.uniform(0.01, 0.1, columns * blocks).astype("f"),
        None if symmetric else rng.integers(0, 256, columns * -(-blocks * bits // 8), dtype=np.uint8),
        rng.standard_normal(columns).astype("f") if bias else None,
    )


def model(weights, depth, columns, bits, block, rank=2, changed=None):
    """One node over constant weights, its function beside it."""
    given = dict(zip(("B", "scales", "zero_points", "bias"), weights, strict=True))
    held = {k: v for k, v in given.items() if v is not None}
    names = [
        "A",
        *(k if k in held else "" for k in ("B", "scales", "zero_points")),
        "",
        "bias" if "bias" in held else "",
    ]
    while not names[-1]:
        names.pop()
    attributes = {"K": depth, "N": columns, "bits": bits, "block_size": block} | (changed or {})
    node = helper.make_node("MatMulNBits", names, ["Y"], name="/layers.0/dense/MatMul", domain=DOMAIN, **attributes)
    lead = [f"d{i}" for i in range(rank - 1)]
    graph = helper.make_graph(
        [node],
        "one product",
        [helper.make_tensor_value_info("A", TensorProto.FLOAT, [*lead, depth])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in held.items()],
    )
    opsets = [helper.make_opsetid(*pair) for pair in (("", OPSET), (MICROSOFT, 1), (DOMAIN, 1))]
    return helper.make_model(graph, opset_imports=opsets, functions=[matmul_nbits()], ir_version=10)


def session(made, native=True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    if native:
        options.register_custom_ops_library(str(LIBRARY))
    return onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])


def codes_of(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """[N, count] of [N, bytes], the low half first."""
    return (
        packed[:, :count] if bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)[:, :count]
    )


def expected(x, B, scales, zero_points, bias, bits, block):
    """The contract in float64."""
    columns, blocks = B.shape[:2]
    padded = np.zeros((len(x), blocks * block))
    padded[:, : x.shape[1]] = x
    by_block = padded.reshape(len(x), blocks, block)
    largest = np.abs(by_block).max(-1).astype("f")
    by = np.where(largest == 0, 1, largest / np.float32(127)).astype("f")
    rounded = np.round((by_block.astype("f") / by[..., None]).astype("f")) * by[..., None].astype(float)
    zero = np.full((columns, blocks), 2 ** (bits - 1))
    if zero_points is not None:
        zero = codes_of(zero_points.reshape(columns, -1), bits, blocks).astype(int)
    codes = codes_of(B.reshape(columns, -1), bits, blocks * block).reshape(columns, blocks, block).astype(int)
    weights = (codes - zero[..., None]) * scales.reshape(columns, blocks, 1).astype(float)
    return np.einsum("mbk,nbk->mn", rounded, weights) + (0 if bias is None else bias)


def close(got, want, depth: int) -> None:
    """Within float32's rounding of a sum of `depth` products, which may cancel."""
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 2e-6 * max(np.abs(want).max(), depth**0.5 / 4)


@needs_library
@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize(("symmetric", "bias"), [(True, False), (False, True)])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
def test_the_kernel_is_the_contract(isa, symmetric, bias, bits, block, monkeypatch):
    monkeypatch.setenv("PYTHIA_KERNELS_ISA", isa)
    for depth, columns in ((512, 96), (block + 5, 37), (1280, 1)):
        x, *weights = problem(23, depth, columns, bits, block, symmetric, bias)
        try:
            opened = session(model(weights, depth, columns, bits, block))
        except Exception as e:
            if "PYTHIA_KERNELS_ISA names a version" not in str(e):
                raise
            pytest.skip(f"this processor does not run {isa}")
        for rows in (1, 2, 5, 6, 23):
            close(opened.run(None, {"A": x[:rows]})[0], expected(x[:rows], *weights, bits, block), depth)


@pytest.mark.parametrize(("symmetric", "bias"), [(True, False), (False, True)])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_function_is_the_contract(symmetric, bias, bits):
    """ONNX Runtime's own rounding of activations may differ by a code where two are equally near."""
    x, *weights = problem(7, 512, 96, bits, 32, symmetric, bias)
    want = expected(x, *weights, bits, 32)
    got = session(model(weights, 512, 96, bits, 32), native=False).run(None, {"A": x})[0]
    assert np.abs(got - want).max() <= 2e-3 * np.abs(want).max()


@needs_library
def test_leading_dimensions_are_rows_and_shapes_are_known():
    x, *weights = problem(12, 64, 40, 4, 32)
    made = model(weights, 64, 40, 4, 32, rank=3)
    opened = session(made)
    got = opened.run(None, {"A": x.reshape(3, 4, 64)})[0]
    close(got.reshape(12, 40), expected(x, *weights, 4, 32), 64)
    assert opened.get_outputs()[0].shape == ["d0", "d1", 40]
    shape_inference.infer_shapes(made, strict_mode=True)


@needs_library
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("rows", [1, 9])
def test_a_number_that_is_not_finite_spoils_its_row_alone(bad, rows):
    x, *weights = problem(rows, 512, 96, 4, 32)
    x[0, 400] = bad
    got = session(model(weights, 512, 96, 4, 32)).run(None, {"A": x})[0]
    assert np.isnan(got[0]).all()
    if rows > 1:
        close(got[1:], expected(x[1:], *weights, 4, 32), 512)


@needs_library
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"bits": 2}, "bits is 2; 4 or 8 was expected"),
        ({"block_size": 48}, "block_size is 48; 16, 32, 64, 128 or 256 was expected"),
        ({"K": 0}, "K is 0 and N is 40; 1 to 16777216 was expected"),
        ({"N": -1}, "K is 64 and N is -1; 1 to 16777216 was expected"),
    ],
)
def test_attributes_that_make_no_sense_are_refused(changed, words):
    _, *weights = problem(1, 64, 40, 4, 32)
    with pytest.raises(Exception, match=re.escape(f"pythia::MatMulNBits /layers.0/dense/MatMul: {words}")):
        session(model(weights, 64, 40, 4, 32, changed=changed))


@needs_library
@pytest.mark.parametrize(
    ("changed", "rows", "words"),
    [
        ({"K": 96}, 2, "A is [2, 64]; [..., 96] with at least one row was expected"),
        ({}, 0, "A is [0, 64]; [..., 64] with at least one row was expected"),
        ({"N": 41}, 2, "B is [40, 2, 16]; [41, 2, 16] was expected"),
        ({"bits": 8}, 2, "B is [40, 2, 16]; [40, 2, 32] was expected"),
        ({"scales": 79}, 2, "scales is [79]; [80] was expected"),
        ({"zero_points": 41}, 2, "zero_points is [41]; [40] was expected"),
        ({"bias": 39}, 2, "bias is [39]; [40] was expected"),
    ],
)
def test_bad_input_is_an_error_that_names_node_input_found_and_expected(changed, rows, words):
    x, B, scales, zero_points, bias = problem(2, 64, 40, 4, 32, symmetric=False, bias=True)
    changed = dict(changed)
    cut = {"scales": scales, "zero_points": np.append(zero_points, zero_points), "bias": bias}
    for name in cut:
        kept = changed.pop(name, None)
        cut[name] = (
            {"scales": scales, "zero_points": zero_points, "bias": bias}[name] if kept is None else cut[name][:kept]
        )
    opened = session(model([B, *cut.values()], 64, 40, 4, 32, changed=changed))
    with pytest.raises(Exception, match=re.escape(f"pythia::MatMulNBits /layers.0/dense/MatMul: {words}")):
        opened.run(None, {"A": x[:rows]})
