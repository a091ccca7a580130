"""The CUDA kernel as an operator of ONNX Runtime: emulated, in real sessions on a CPU."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import test_kernels as contract
import torch
from cuda_kernels import emulated_library
from onnx import TensorProto, helper
from test_kernels import HEADS, LIBRARY, TYPES, attention_session, expected, problem, real

from pythia_export.base.native_library import kernels_path
from pythia_export.runtime import Session, speed

POSITIONS = "position_ids"  # lie on the GPU, and are not waited for


@pytest.fixture(scope="module", params=["emulated", "GPU"])
def library(request) -> Path:
    """The kernels: emulated, or those for a GPU where one is and ONNX Runtime reaches it."""
    built = emulated_library() if request.param == "emulated" else kernels_path("cuda")
    if request.param == "GPU" and not torch.cuda.is_available():
        pytest.skip("no GPU that torch reaches")
    if built is None:
        pytest.skip("no build of the kernels in this checkout, or no CMake")
    return built


@pytest.fixture(autouse=True)
def in_its_place(library, monkeypatch) -> None:
    """The tests of the contract run by it."""
    monkeypatch.setattr(contract, "LIBRARY", library)
    if library == kernels_path("cuda"):
        onnxruntime.preload_dlls()
        monkeypatch.setattr(contract, "PROVIDERS", ["CUDAExecutionProvider", "CPUExecutionProvider"])
        monkeypatch.setattr(contract, "MEMORY", "cuda")


def cases(test) -> list:
    (mark,) = [mark for mark in test.pytestmark if mark.name == "parametrize"]
    return [x for x in mark.args[1] if not (isinstance(x[-1], str) and x[-1].startswith(f"{POSITIONS} holds"))]


@pytest.mark.parametrize("cache", TYPES)
@pytest.mark.parametrize("size", HEADS)
@pytest.mark.parametrize(("T", "past"), [(1, 9), (11, 9)])
def test_attention_is_the_contract(size, cache, T, past):
    contract.test_attention_is_the_contract(size, cache, T, past)


@pytest.mark.parametrize("cache", TYPES)
def test_buffers_are_shared_copied_and_grown(cache):
    contract.test_a_shared_buffer_is_written_in_place_and_nowhere_else(cache)
    contract.test_a_prompt_in_parts_is_the_prompt_in_one(cache, 5)


def test_a_long_cache_is_split_and_one_bias_serves_all():
    contract.test_a_long_cache_of_one_head_is_shared_between_threads("int8", 1)
    contract.test_one_bias_serves_every_row_of_the_batch("float32", 9)


@pytest.mark.parametrize("cache", TYPES)
def test_float16_activations_are_computed_in_float32(cache):
    contract.test_float16_activations_are_computed_in_float32(cache, 1, 9)


@pytest.mark.parametrize("cache", TYPES)
def test_bfloat16_activations(cache, monkeypatch):
    """numpy has no such type: its bits go in, and torch reads what comes out."""
    monkeypatch.setitem(TYPES, "bfloat16", TensorProto.BFLOAT16)
    feeds = problem(T=5, past=9, cache=cache)
    opened = attention_session(2, 8, cache, activations="bfloat16")
    binding = opened.io_binding()
    for name, x in feeds.items():
        if name in ("qkv", "cos", "sin", "bias"):
            short = torch.from_numpy(x.copy()).bfloat16()
            feeds[name], bits = short.float().numpy(), short.view(torch.uint16).numpy()
            value = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, TensorProto.BFLOAT16)
        else:
            value = onnxruntime.OrtValue.ortvalue_from_numpy(x)
        binding.bind_ortvalue_input(name, value)
    for name in (
        "attention",
        "present_key",
        "present_value",
        *(("key_scale", "value_scale") if cache == "int8" else ()),
    ):
        binding.bind_output(name)
    opened.run_with_iobinding(binding)
    out, key, *_ = binding.get_outputs()
    wanted, codes = expected(feeds, 2, 8, cache)
    got, seen = torch.from_dlpack(out._ortvalue.to_dlpack()).float().numpy(), real(feeds)
    assert np.abs(got - wanted)[seen].max() <= 8e-3 * np.abs(wanted[seen]).max()
    assert (key.numpy() == codes["key"]).all()


@pytest.mark.parametrize(
    ("break_it", "words"), cases(contract.test_bad_input_is_an_error_that_names_node_input_found_and_expected)
)
def test_bad_input_is_the_error_that_it_is_on_a_cpu(break_it, words):
    contract.test_bad_input_is_an_error_that_names_node_input_found_and_expected(break_it, words)


@pytest.mark.parametrize(
    ("cache", "scales", "words"),
    [("int8", False, "past_key_scale is missing"), ("float32", True, "past_key_scale was given")],
)
def test_scales_belong_to_a_cache_of_int8_alone(cache, scales, words):
    contract.test_scales_belong_to_a_cache_of_int8_alone(cache, scales, words)


def test_a_position_that_the_tables_do_not_have_is_not_a_number():
    feeds = problem(T=2, past=9, padding=(0, 0, 0))
    feeds["position_ids"][1, 1] = 256
    out = attention_session(2, 8).run(None, feeds)[0]
    assert np.isnan(out[1, 1]).all() and np.isfinite(out[0]).all() and np.isfinite(out[1, 0]).all()


def test_heads_too_wide_for_it_are_refused_by_name():
    with pytest.raises(Exception, match=r"/layers\.0/attention: there is no kernel for a head_dim beyond 256"):
        attention_session(2, 8).run(None, problem(n=258, T=1, past=3))


def test_partial_rotary_is_the_contract():
    contract.test_partial_rotary_passes_the_cases_of_onnx_for_rotary_embedding()
    for interleaved, positions in product((0, 1), (True, False)):
        contract.test_partial_rotary_of_float16_is_float32_rounded_once(interleaved, positions)


@pytest.mark.parametrize(
    ("shapes", "attributes", "words"), cases(contract.test_partial_rotary_refuses_what_does_not_fit)
)
def test_partial_rotary_refuses_what_it_does_on_a_cpu(shapes, attributes, words):
    contract.test_partial_rotary_refuses_what_does_not_fit(shapes, attributes, words)


def test_partial_rotary_of_bfloat16_and_of_a_position_that_the_tables_do_not_have():
    rng = np.random.default_rng(0)
    node = helper.make_node("PartialRotary", ["x", "cos", "sin", "at"], ["y"], domain="pythia", rotary_embedding_dim=4)
    inputs = [(name, TensorProto.BFLOAT16, None) for name in ("x", "cos", "sin")] + [("at", TensorProto.INT64, None)]
    opened = contract.session([node], inputs, [("y", TensorProto.BFLOAT16, None)])
    binding, shapes = opened.io_binding(), {"x": (1, 2, 3, 80), "cos": (9, 2), "sin": (9, 2)}
    feeds = {name: torch.from_numpy(rng.standard_normal(shape)).bfloat16() for name, shape in shapes.items()}
    for name, x in feeds.items():
        bits = x.view(torch.uint16).numpy()
        value = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, TensorProto.BFLOAT16)
        binding.bind_ortvalue_input(name, value)
    binding.bind_cpu_input("at", np.array([[8, 9, 0]]))
    binding.bind_output("y")
    opened.run_with_iobinding(binding)
    y = torch.from_dlpack(binding.get_outputs()[0]._ortvalue.to_dlpack())
    assert y[:, :, 1].isnan().all()
    x, (c, s) = feeds["x"][:, :, ::2].float(), (feeds[name][[8, 0]].float() for name in ("cos", "sin"))
    a, b = x[..., :2], x[..., 2:4]
    assert (y[:, :, ::2] == torch.cat((a * c - b * s, b * c + a * s, x[..., 4:]), -1).bfloat16()).all()


def test_types_and_shapes_are_those_of_the_cpu():
    contract.test_shapes_are_known_before_any_run("int8")
    with pytest.raises(Exception, match="num_heads is 0"):
        attention_session(0, 8)


def test_a_whole_graph_gives_the_logits_of_the_cpus_kernel(library, tmp_path, monkeypatch):
    from models import InMemory, export_model, hugging_face, on_disk, small_config

    from pythia_export.recipe import Export, Quantize

    config = small_config(layers=2)
    original = InMemory(config, on_disk(hugging_face(config)))
    exported = export_model(original, tmp_path, Quantize(method="rtn"), Export(kv_cache="int8"))
    ids, mask, found = np.random.default_rng(0).integers(0, 96, (2, 9)), np.ones((2, 9), np.int64), []
    mask[1, :4] = 0
    graph, provider = (tmp_path / "model.onnx").read_bytes(), "cpu" if contract.MEMORY == "cpu" else "cuda"
    for path, on in ((LIBRARY, "cpu"), (library, provider)):
        monkeypatch.setattr(speed, "kernels_path", lambda provider, path=path: path)
        opened = Session(graph, tmp_path, config, kv_cache="shared", kv_dtype="int8", provider=on)
        assert opened.speed == "native" and opened.why.startswith(path.name)
        cache = opened.start(2, 16)
        found.append([opened.step(cache, ids, mask), opened.step(cache, ids[:, :1]), opened.step(cache, ids[:, 1:2])])
    for one, other in zip(*found, strict=True):
        precision = 1e-4 if provider == "cpu" else 1e-2  # ONNX Runtime's products on a GPU are of tensor cores
        assert np.abs(one - other)[0].max() <= precision * np.abs(one[0]).max()
    assert exported.config is config


@pytest.mark.skipif(kernels_path("cuda") is None, reason="not built; `make cuda` builds it")
def test_the_library_for_a_gpu_serves_a_cpu_where_there_is_none(monkeypatch):
    monkeypatch.setattr(contract, "LIBRARY", kernels_path("cuda"))
    contract.test_attention_is_the_contract("64/16", "int8", 3, 9)
    contract.test_float16_activations_are_computed_in_float32("float16", 1, 9)


def test_a_session_on_a_gpu_takes_the_library_for_it(library, monkeypatch):
    graph = speed._OURS
    monkeypatch.setattr(speed, "kernels_path", {"cuda": library, "cpu": None}.get)
    assert speed.speed_of(graph, "cuda", True)[::2] == ("native", library)
    assert speed.speed_of(graph, "cuda", False)[0] == "function"
    monkeypatch.setattr(speed, "kernels_path", {"cuda": None, "cpu": library}.get)
    name, why, library = speed.speed_of(graph, "cuda", True)
    assert (name, library) == ("function", None) and "make cuda" in why
