"""pythia.LinearNBits in ONNX Runtime: the kernel, and the function that stands in for it, against the contract."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from native import LIBRARY, needs_library
from onnx import TensorProto, helper, numpy_helper, shape_inference
from places import SUPPORT

from pythia_export.graph.ops import DOMAIN, LINEAR, MICROSOFT, OPSET, linear_nbits

ARM = platform.machine() in ("aarch64", "arm64", "ARM64")
SETS = ("neondot", "reference") if ARM else ("amx", "avx512vnni", "avx2", "reference")
CONSTANT = ("B", "scales", "zero_points", "g_idx", "bias")
NODE = "/layers.0/dense/MatMul"


def problem(rows, depth, columns, bits, block, symmetric=True, bias=False):
    """x, and the operator's constant inputs by name."""
    rng = np.random.default_rng(0)
    blocks = -(-depth // block)
    x = rng.standard_normal((rows, depth)).astype("f")
    weights = {
        "B": rng.integers(0, 256, (columns, blocks, block * bits // 8), dtype=np.uint8),
        "scales": (rng.uniform(0.01, 0.1, columns * blocks) * rng.choice([-1, 1], columns * blocks)).astype("f"),
    }
    if not symmetric:
        weights["zero_points"] = rng.integers(0, 256, columns * -(-blocks * bits // 8), dtype=np.uint8)
    if bias:
        weights["bias"] = rng.standard_normal(columns).astype("f")
    return x, weights


def model(weights, depth, columns, bits, block, rank=2, called=LINEAR):
    """One node over constant weights, its function beside it."""
    inputs = ["A", *(name if name in weights else "" for name in CONSTANT)]
    attributes = {"K": depth, "N": columns, "bits": bits, "block_size": block}
    node = helper.make_node(called, inputs, ["Y"], name=NODE, domain=DOMAIN, **attributes)
    graph = helper.make_graph(
        [node],
        "one product",
        [helper.make_tensor_value_info("A", TensorProto.FLOAT, [f"d{i}" for i in range(rank)])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid(*pair) for pair in (("", OPSET), (MICROSOFT, 1), (DOMAIN, 1))]
    return helper.make_model(
        graph, opset_imports=opsets, functions=[linear_nbits()] if called == LINEAR else [], ir_version=10
    )


def session(made, native=True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    if native:
        options.register_custom_ops_library(str(LIBRARY))
    return onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])


def session_by(isa, made, monkeypatch) -> onnxruntime.InferenceSession:
    monkeypatch.setenv("PYTHIA_KERNELS_ISA", isa)
    try:
        return session(made)
    except Exception as e:
        if "PYTHIA_KERNELS_ISA names a version" not in str(e):
            raise
        pytest.skip(f"this processor does not run {isa}")


def codes_of(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """[N, count] of [N, bytes], the low half first."""
    both = packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)
    return both[:, :count].astype(int)


def expected(x, weights, bits, block):
    """The contract in float64."""
    columns, blocks = weights["B"].shape[:2]
    padded = np.zeros((len(x), blocks * block), "f")
    padded[:, : x.shape[1]] = x
    by_block = padded.reshape(len(x), blocks, block)
    largest = np.abs(by_block).max(-1, keepdims=True)
    by = np.where(largest == 0, 1, largest / np.float32(127)).astype("f")
    rounded = np.round(by_block * (1 / by)) * by.astype(float)
    zero = np.full((columns, blocks), 2 ** (bits - 1))
    if "zero_points" in weights:
        zero = codes_of(weights["zero_points"].reshape(columns, -1), bits, blocks)
    codes = codes_of(weights["B"].reshape(columns, -1), bits, blocks * block).reshape(columns, blocks, block)
    matrix = (codes - zero[..., None]) * weights["scales"].reshape(columns, blocks, 1).astype(float)
    return np.einsum("mbk,nbk->mn", rounded, matrix) + weights.get("bias", 0)


SHORT_OF_MEMORY = """
import resource, sys
from test_matmul_nbits import model, problem, session
depth, columns, rows = map(int, sys.argv[1:4])
x, weights = problem(rows, depth, columns, 4, 256)
opened = session(model(weights, depth, columns, 4, 256))
held = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (held + (100 << 20),) * 2)
try:
    opened.run(None, {"A": x})
except Exception as e:
    print(e)
"""


@needs_library
@pytest.mark.skipif(sys.platform != "linux", reason="a limit of a process's memory is Linux's")
@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1 << 22, 16, 9), "pythia: memory could not be allocated"),  # by a task, on any thread
        ((16, 1 << 20, 64), f"pythia::LinearNBits {NODE}: ONNX Runtime failed at making an output: .*allocate memory"),
    ],
)
def test_memory_that_does_not_suffice_is_an_error_of_one_call(shape, said):
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, *map(str, shape)], capture_output=True, text=True, timeout=120,
        cwd=Path(__file__).parent, env=os.environ | {"PYTHONPATH": str(SUPPORT)},
    )  # fmt: skip
    assert done.returncode == 0 and re.search(said, done.stdout), done


@needs_library
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 1, 3, 64)])
def test_rows_may_lie_in_any_number_of_dimensions(shape, native):
    x, weights = problem(int(np.prod(shape[:-1])), 64, 40, 4, 32)
    opened = session(model(weights, 64, 40, 4, 32, len(shape)), native)
    got = opened.run(None, {"A": x.reshape(shape)})[0]
    assert got.shape == (*shape[:-1], 40)
    assert largest_difference(got.reshape(-1, 40), expected(x, weights, 4, 32)) <= 1e-5


@needs_library
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_what_a_large_call_took_is_given_back():
    x, weights = problem(9000, 20480, 16, 4, 256)
    opened = session(model(weights, 20480, 16, 4, 256))

    def held() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = held()
    opened.run(None, {"A": x})
    assert held() - before < 64e6 < x.nbytes / 4


def largest_difference(got, want) -> float:
    """Of what a sum of products is, where they do not cancel."""
    assert got.shape == want.shape
    return np.abs(got - want).max() / max(np.abs(want).max(), 4)


@needs_library
@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize(("symmetric", "bias"), [(True, False), (False, True)])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
def test_the_kernel_is_the_contract(isa, symmetric, bias, bits, block, monkeypatch):
    for depth, columns in ((512, 96), (block + 5, 37), (1280, 1)):
        x, weights = problem(70, depth, columns, bits, block, symmetric, bias)
        opened = session_by(isa, model(weights, depth, columns, bits, block), monkeypatch)
        want = expected(x, weights, bits, block)
        for rows in (1, 2, 5, 6, 16, 23, 33, 70):
            got = opened.run(None, {"A": x[:rows]})[0]
            assert np.abs(got - want[:rows]).max() <= 3e-6 * np.abs(want).max()  # where sums do not cancel


@pytest.mark.parametrize(("symmetric", "bias"), [(True, False), (False, True)])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_function_is_the_contract(symmetric, bias, bits):
    x, weights = problem(7, 512, 96, bits, 32, symmetric, bias)
    got = session(model(weights, 512, 96, bits, 32), native=False).run(None, {"A": x})[0]
    assert largest_difference(got, expected(x, weights, bits, 32)) <= 3e-6


@needs_library
def test_leading_dimensions_are_rows_and_shapes_are_known():
    x, weights = problem(12, 64, 40, 4, 32)
    made = model(weights, 64, 40, 4, 32, rank=3)
    opened = session(made)
    got = opened.run(None, {"A": x.reshape(3, 4, 64)})[0]
    assert got.shape == (3, 4, 40)
    assert largest_difference(got.reshape(12, 40), expected(x, weights, 4, 32)) <= 3e-6
    assert opened.get_outputs()[0].shape == ["d0", "d1", 40]
    shape_inference.infer_shapes(made, strict_mode=True)


@needs_library
def test_artifacts_that_call_it_by_its_old_name_run_by_the_same_kernel():
    x, weights = problem(5, 512, 96, 4, 32, symmetric=False, bias=True)
    new, old = (session(model(weights, 512, 96, 4, 32, called=called)) for called in (LINEAR, "MatMulNBits"))
    assert (new.run(None, {"A": x})[0] == old.run(None, {"A": x})[0]).all()
    with pytest.raises(Exception, match=re.escape(f"pythia::MatMulNBits {NODE}: A is [5, 511]")):
        old.run(None, {"A": x[:, 1:]})


@needs_library
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("rows", [1, 9, 20])
def test_a_number_that_is_not_finite_spoils_its_row_alone(bad, rows):
    x, weights = problem(rows, 512, 96, 4, 32)
    x[0, 400] = bad
    got = session(model(weights, 512, 96, 4, 32)).run(None, {"A": x})[0]
    assert np.isnan(got[0]).all()
    if rows > 1:
        assert largest_difference(got[1:], expected(x[1:], weights, 4, 32)) <= 3e-6


@needs_library
@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("rows", [1, 9, 20])
def test_numbers_too_small_for_a_scale_count_as_zeros(isa, rows, monkeypatch):
    """A 127th of 190 * 2^-149 is rounded to 2^-149, of which 190 would be a code beyond int8."""
    x, weights = problem(rows, 64, 40, 4, 32)
    x[:, :32], x[:, 32:] = 190 * 2.0**-149, 0
    weights["scales"] *= np.float32(1e38)
    got = session_by(isa, model(weights, 64, 40, 4, 32), monkeypatch).run(None, {"A": x})[0]
    assert (got == 0).all()


@needs_library
def test_a_version_that_is_not_there_is_an_error_and_not_the_function(monkeypatch):
    _, weights = problem(1, 64, 40, 4, 32)
    monkeypatch.setenv("PYTHIA_KERNELS_ISA", "amx512")
    script = "import sys; import onnxruntime as ort\n"
    script += "o = ort.SessionOptions(); o.register_custom_ops_library(sys.argv[1])\n"
    script += "ort.InferenceSession(sys.stdin.buffer.read(), o, providers=['CPUExecutionProvider'])"
    made = model(weights, 64, 40, 4, 32).SerializeToString()  # a process of its own: operators are registered once
    ran = subprocess.run([sys.executable, "-c", script, str(LIBRARY)], input=made, capture_output=True)
    assert ran.returncode and b"PYTHIA_KERNELS_ISA names a version" in ran.stderr


@needs_library
@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"bits": 3}, "bits is 3; 2, 4 or 8 was expected"),
        ({"block_size": 48}, "block_size is 48; 16, 32, 64, 128 or 256 was expected"),
        ({"K": 0}, "K is 0 and N is 40; 1 to 16777216 was expected"),
        ({"N": -1}, "K is 64 and N is -1; 1 to 16777216 was expected"),
    ],
)
def test_attributes_that_make_no_sense_are_refused(attributes, words):
    _, weights = problem(1, 64, 40, 4, 32)
    made = model(weights, 64, 40, 4, 32)
    for attribute in made.graph.node[0].attribute:
        attribute.i = attributes.get(attribute.name, attribute.i)
    with pytest.raises(Exception, match=re.escape(f"pythia::LinearNBits {NODE}: {words}")):
        session(made)


@needs_library
@pytest.mark.parametrize(
    ("changed", "shape", "words"),
    [
        ({"depth": 96}, (2, 64), "A is [2, 64]; [..., 96] with at least one row was expected"),
        ({}, (0, 64), "A is [0, 64]; [..., 64] with at least one row was expected"),
        ({"rank": 0}, (), "A is []; [..., 64] with at least one row was expected"),
        ({"columns": 41}, (2, 64), "B is [40, 2, 16]; [41, 2, 16] was expected"),
        ({"bits": 8}, (2, 64), "B is [40, 2, 16]; [40, 2, 32] was expected"),
        ({"scales": (79,)}, (2, 64), "scales is [79]; [80] was expected"),
        ({"scales": (2, 40)}, (2, 64), "scales is [2, 40]; [40, 2] was expected"),
        ({"zero_points": (41,)}, (2, 64), "zero_points is [41]; [40] was expected"),
        ({"g_idx": (64,)}, (2, 64), "g_idx is given; weights in the order of their columns were expected"),
        ({"bias": (39,)}, (2, 64), "bias is [39]; [40] was expected"),
    ],
)
def test_bad_input_is_an_error_that_names_node_input_found_and_expected(changed, shape, words):
    _, weights = problem(2, 64, 40, 4, 32, symmetric=False, bias=True)
    for name in CONSTANT:
        if name in changed:
            weights[name] = np.resize(weights.get(name, np.int32(0)), changed[name])
    sizes = {"depth": 64, "columns": 40, "bits": 4, "block": 32} | {
        k: v for k, v in changed.items() if k not in CONSTANT
    }
    opened = session(model(weights, **sizes))
    with pytest.raises(Exception, match=re.escape(f"pythia::LinearNBits {NODE}: {words}")):
        opened.run(None, {"A": np.zeros(shape, "f")})
