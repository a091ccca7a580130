"""The function bodies of pythia.RotaryAttention, one call at a time, against the contract written out in numpy."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from models import small_config
from onnx import helper

from pythia_export.graph.ops import DOMAIN, OPSET, rotary_attention
from pythia_export.model.neox import NeoXConfig
from pythia_export.model.rotary import rotary_tables

INPUTS = [
    *("qkv", "past_key", "past_value", "cos", "sin", "position_ids", "seqlens_k", "total_length", "attention_bias"),
    *("past_key_scale", "past_value_scale"),
]
OUTPUTS = ["attention", "present_key", "present_value", "present_key_scale", "present_value_scale"]
Arrays = dict[str, np.ndarray]


def one_call(config: NeoXConfig, standard: bool, cache: str | None, feeds: Arrays) -> onnx.ModelProto:
    """A model of one node and its function."""
    names, outs = (INPUTS, OUTPUTS) if cache == "int8" else (INPUTS[:9], OUTPUTS[:3])
    node = helper.make_node(
        "RotaryAttention", names, outs, domain=DOMAIN, num_heads=config.num_heads, rotary_dim=config.rotary_dim
    )

    def value(name: str, like: str, shape: list) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(feeds[like].dtype), shape)

    inputs = [value(name, name, [None] * feeds[name].ndim) for name in names]
    like = dict(zip(OUTPUTS, ["qkv", "past_key", "past_value", "past_key_scale", "past_value_scale"], strict=True))
    outputs = [value(name, like[name], [None] * feeds[like[name]].ndim) for name in outs]
    opsets = [helper.make_opsetid(*pair) for pair in (("", OPSET), ("com.microsoft", 1), (DOMAIN, 1))]
    graph = helper.make_graph([node], "one_call", inputs, outputs)
    function = rotary_attention(config, standard, cache=cache)
    return helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10)


def feeds_for(config: NeoXConfig, dtype: str, batch: int, fresh: int, past: int, room: int) -> Arrays:
    """Random tokens behind `past` cached ones in a buffer of `room` places; what lies behind them is garbage."""
    rng, total = np.random.default_rng(fresh + past), past + fresh
    shape = (batch, config.num_heads, room, config.head_dim)
    cos, sin = (table.astype(np.float32) for table in rotary_tables(config))
    feeds = {
        "qkv": rng.standard_normal((batch, fresh, 3 * config.hidden_size)).astype(np.float32),
        "cos": cos,
        "sin": sin,
        "position_ids": np.tile(np.arange(past, total), (batch, 1)),
        "seqlens_k": np.full(batch, total - 1, np.int32),
        "total_length": np.array(total, np.int32),
        "attention_bias": np.zeros((batch, 1, fresh, total), np.float32),
    }
    feeds["attention_bias"][0, :, :, 0] = -3e4  # the first row is padded by one token
    for part in ("key", "value"):
        if dtype == "int8":
            feeds[f"past_{part}"] = rng.integers(-127, 128, shape).astype(np.int8)
            feeds[f"past_{part}_scale"] = rng.uniform(0.005, 0.02, shape[:3]).astype(np.float32)
        else:
            feeds[f"past_{part}"] = rng.standard_normal(shape).astype(dtype)
    return feeds


def contract(config: NeoXConfig, dtype: str, feeds: Arrays) -> Arrays:
    """What the operator is to compute, in float64, one token and head at a time."""
    heads, dim, half = config.num_heads, config.head_dim, config.rotary_dim // 2
    batch, fresh, _ = feeds["qkv"].shape
    total = int(feeds["total_length"])
    packed = feeds["qkv"].astype(np.float64).reshape(batch, fresh, 3, heads, dim)
    out = np.zeros((batch, fresh, heads, dim))
    present = {}
    for part in ("key", "value"):
        room = max(total, feeds[f"past_{part}"].shape[2])
        for name in (part, f"{part}_scale") if dtype == "int8" else (part,):
            past = feeds[f"past_{name}"]
            present[f"present_{name}"] = np.zeros((batch, heads, room, *past.shape[3:]), past.dtype)
            present[f"present_{name}"][:, :, : past.shape[2]] = past

    def turned(x: np.ndarray, position: int) -> np.ndarray:
        a, b, rest = x[:half], x[half : 2 * half], x[2 * half :]
        c, s = (feeds[t][position].astype(np.float64) for t in ("cos", "sin"))
        return np.concatenate([a * c - b * s, b * c + a * s, rest])

    for b in range(batch):
        for h in range(heads):
            for t in range(fresh):
                at, position = total - fresh + t, int(feeds["position_ids"][b, t])
                for part, x in (("key", turned(packed[b, t, 1, h], position)), ("value", packed[b, t, 2, h])):
                    scale = np.abs(x).max() / 127
                    if dtype == "int8":
                        present[f"present_{part}_scale"][b, h, at] = scale
                        x = np.round(x / scale) if scale else x * 0
                    present[f"present_{part}"][b, h, at] = x
            read = {part: present[f"present_{part}"][b, h, :total].astype(np.float64) for part in ("key", "value")}
            if dtype == "int8":
                read = {part: x * present[f"present_{part}_scale"][b, h, :total, None] for part, x in read.items()}
            for t in range(fresh):
                query, seen = turned(packed[b, t, 0, h], int(feeds["position_ids"][b, t])), total - fresh + t + 1
                scores = read["key"][:seen] @ query / np.sqrt(dim) + feeds["attention_bias"][b, 0, t, :seen]
                shares = np.exp(scores - scores.max())
                out[b, t, h] = shares / shares.sum() @ read["value"][:seen]
    return {"attention": out.reshape(batch, fresh, -1), **present}


def run(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    names = [x.name for x in model.graph.input]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = [x.name for x in model.graph.output]
    return dict(zip(outputs, session.run(outputs, {n: feeds[n] for n in names}), strict=True))


def reference(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    from onnx.reference import ReferenceEvaluator

    names, outputs = [x.name for x in model.graph.input], [x.name for x in model.graph.output]
    return dict(zip(outputs, ReferenceEvaluator(model).run(None, {n: feeds[n] for n in names}), strict=True))


def check(got: Arrays, expected: Arrays, dtype: str) -> None:
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].shape == array.shape, name
        difference = np.abs(got[name].astype(np.float64) - array.astype(np.float64))
        if name == "attention" and array.shape[1] > 1:
            difference = difference[:, 1:]  # a query that is padding itself sees padding alone: of no use to anyone
        if dtype == "int8" and array.dtype == np.int8:
            # A float32 rotation may round a tie the other way than float64.
            assert difference.max() <= 1 and (difference > 0).mean() < 1e-3, name
        else:
            assert difference.max() <= {"float32": 2e-6, "float16": 2e-3, "int8": 2e-3}[dtype], name


CALLS = {"decode": (1, 7), "prefill": (5, 0), "a second part": (3, 4)}  # new tokens, cached before


@pytest.mark.parametrize("size", ["14m", "160m"])  # 8 and 16 turned dimensions: GroupQueryAttention turns 16 itself
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_body_over_onnx_runtimes_operators_is_the_contract(size, call, dtype):
    """With a buffer longer than what is cached, as a shared one is, and with one that grows."""
    config = small_config(size=size)
    fresh, past = CALLS[call]
    batch = 1 if dtype == "float32" and fresh > 1 and past else 2  # GroupQueryAttention takes a second part of one row
    for room in (past + fresh + 3, past):
        feeds = feeds_for(config, dtype, batch, fresh, past, room)
        model = one_call(config, False, None if dtype == "float32" else dtype, feeds)
        got, expected = run(model, feeds), contract(config, dtype, feeds)
        if dtype == "float32":  # GroupQueryAttention leaves what lies behind as it finds it, or not at all
            total = int(feeds["total_length"])
            for arrays in (got, expected):
                arrays |= {n: arrays[n][:, :, :total] for n in ("present_key", "present_value")}
        check(got, expected, dtype)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_body_of_standard_operators_is_the_contract_without_onnx_runtime_too(call, dtype):
    config = small_config()
    fresh, past = CALLS[call]
    feeds = feeds_for(config, dtype, 2, fresh, past, past)
    model = one_call(config, True, None if dtype == "float32" else dtype, feeds)
    onnx.checker.check_model(model, full_check=True)
    expected = contract(config, dtype, feeds)
    check(run(model, feeds), expected, dtype)
    check(reference(model, feeds), expected, dtype)


def test_a_head_of_zeros_is_stored_as_zeros():
    """Its scale is 0, and 0 / 0 would be no number: what a cast makes of that is each machine's own affair."""
    config = small_config()
    feeds = feeds_for(config, "int8", 1, 2, 0, 4)
    feeds["qkv"][0, 1] = 0
    model = one_call(config, False, "int8", feeds)
    with np.errstate(divide="raise", invalid="raise"):
        reference(model, feeds)
    got = run(model, feeds)
    assert np.isfinite(got["attention"]).all()
    for part in ("key", "value"):
        assert not got[f"present_{part}"][0, :, 1].any() and not got[f"present_{part}_scale"][0, :, 1].any()
        assert got[f"present_{part}"][0, :, 0].any()


def test_halves_are_rounded_to_even():
    config = small_config()
    feeds = feeds_for(config, "int8", 1, 1, 0, 1)
    value = np.zeros(config.head_dim, np.float32)
    value[:5] = 127, 0.5, 1.5, 2.5, -0.5
    feeds["qkv"][0, 0, 2 * config.hidden_size :] = np.tile(value, config.num_heads)
    got = run(one_call(config, False, "int8", feeds), feeds)
    assert got["present_value"][0, 0, 0, :5].tolist() == [127, 0, 2, 2, 0]
    assert got["present_value_scale"][0, 0, 0] == 1
