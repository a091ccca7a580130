"""The native operators through ONNX Runtime, a node at a time, against their contract in numpy."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from native import LIBRARY, needs_library
from onnx import TensorProto, helper

from pythia_export.base.native_library import instruction_set

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int8": TensorProto.INT8}
HEADS = {"32/8": (32, 8), "64/16": (64, 16), "256/64": (256, 64), "128/32": (128, 32), "80/20": (80, 20)}
POSITIONS = 256
PROVIDERS, MEMORY = ["CPUExecutionProvider"], "cpu"  # where sessions compute, and buffers that are bound lie


def session(nodes, inputs, outputs) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    options.register_custom_ops_library(str(LIBRARY))
    graph = helper.make_graph(
        nodes,
        "one node",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("pythia", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=PROVIDERS)


def attention_session(
    heads: int, rotary_dim: int, cache: str = "float32", scales: bool | None = None, activations: str = "float32"
):
    scales = cache == "int8" if scales is None else scales
    given = ["past_key_scale", "past_value_scale"] if scales else []
    names = ["qkv", "past_key", "past_value", "cos", "sin", "position_ids", "seqlens_k", "total_length", "bias", *given]
    kinds = {"position_ids": TensorProto.INT64, "seqlens_k": TensorProto.INT32, "total_length": TensorProto.INT32}
    kinds |= {"past_key": TYPES[cache], "past_value": TYPES[cache]}
    kinds |= dict.fromkeys(("qkv", "cos", "sin", "bias", "attention"), TYPES[activations])
    out = ["attention", "present_key", "present_value", *(["key_scale", "value_scale"] if given else [])]
    node = helper.make_node(
        "RotaryAttention",
        names,
        out,
        name="/layers.0/attention",
        domain="pythia",
        num_heads=heads,
        rotary_dim=rotary_dim,
    )
    return session(
        [node],
        [(name, kinds.get(name, TensorProto.FLOAT), None) for name in names],
        [
            (name, TYPES[cache] if name.startswith("present") else kinds.get(name, TensorProto.FLOAT), None)
            for name in out
        ],
    )


def problem(heads=2, n=32, rotary_dim=8, B=3, T=5, past=0, room=None, cache="float32", seed=0, padding=(0, 2, 4)):
    """Inputs of one call: rows b are padded on the left by padding[b] tokens."""
    rng = np.random.default_rng(seed)
    total = past + T
    room = past if room is None else room
    mask = np.zeros((B, total))
    for b in range(B):
        mask[b, : padding[b % 3]] = -3e4
    position = np.clip(np.arange(past, total)[None] - np.array([padding[b % 3] for b in range(B)])[:, None], 0, None)
    angle = np.outer(np.arange(POSITIONS), 10000.0 ** (-np.arange(rotary_dim // 2) / max(1, rotary_dim // 2)))
    filled = {name: rng.standard_normal((B, heads, room, n)) for name in ("past_key", "past_value")}
    feeds = {
        "qkv": rng.standard_normal((B, T, 3 * heads * n)).astype("f"),
        "cos": np.cos(angle).astype("f"),
        "sin": np.sin(angle).astype("f"),
        "position_ids": position.astype(np.int64),
        "seqlens_k": np.full(B, total - 1, np.int32),
        "total_length": np.array(total, np.int32),
        "bias": np.broadcast_to(mask[:, None, None], (B, 1, T, total)).astype("f"),
    }
    for name, value in filled.items():
        if cache == "int8":
            feeds[f"{name}_scale"] = rng.uniform(0.01, 0.02, (B, heads, room)).astype("f")
            feeds[name] = (value * 40).clip(-127, 127).astype(np.int8)
        else:
            feeds[name] = value.astype(cache)
    return feeds


def stored(x: np.ndarray, cache: str) -> tuple[np.ndarray, np.ndarray | None]:
    """x [..., head_dim] float32 as the cache holds it, and scales."""
    if cache != "int8":
        return x.astype(cache), None
    scale = np.abs(x).max(-1) / np.float32(127)
    safe = np.where(scale > 0, scale, 1)[..., None]
    return np.round(x / safe).astype(np.int8), scale


def expected(feeds, heads: int, rotary_dim: int, cache: str):
    """The contract, token by token, in float64; keys are turned in float32, as every implementation does."""
    B, T, width = feeds["qkv"].shape
    n, total = width // 3 // heads, int(feeds["total_length"])
    past, half = total - T, rotary_dim // 2
    q, k, v = feeds["qkv"].reshape(B, T, 3, heads, n).transpose(2, 0, 3, 1, 4)

    def turned(x):
        c, s = (feeds[t][feeds["position_ids"]][:, None] for t in ("cos", "sin"))
        a, b, rest = x[..., :half], x[..., half:rotary_dim], x[..., rotary_dim:]
        return np.concatenate([a * c - b * s, b * c + a * s, rest], -1)

    codes, read = {}, {}
    for name, new in (("key", turned(k)), ("value", v)):
        code, scale = stored(new, cache)
        codes[name] = np.concatenate([feeds[f"past_{name}"][:, :, :past], code], 2)
        read[name] = codes[name].astype(np.float64)
        if scale is not None:
            codes[f"{name}_scale"] = np.concatenate([feeds[f"past_{name}_scale"][:, :, :past], scale], 2)
            read[name] *= codes[f"{name}_scale"][..., None]
    out = np.zeros((B, T, heads, n))
    for b in range(B):
        for h in range(heads):
            for t in range(T):
                seen = past + t + 1
                score = read["key"][b, h, :seen] @ turned(q)[b, h, t].astype(np.float64) / np.sqrt(n)
                score += feeds["bias"][b, 0, t, :seen]
                weight = np.exp(score - score.max())
                out[b, t, h] = weight @ read["value"][b, h, :seen] / weight.sum()
    return out.reshape(B, T, heads * n), codes


def real(feeds) -> np.ndarray:
    """[B, T] of the tokens that are not padding."""
    T = feeds["qkv"].shape[1]
    return feeds["bias"][:, 0, 0, -T:] == 0


@needs_library
@pytest.mark.parametrize("cache", TYPES)
@pytest.mark.parametrize("size", HEADS)
@pytest.mark.parametrize(("T", "past"), [(1, 9), (3, 9), (7, 0), (11, 9), (70, 20)])
def test_attention_is_the_contract(size, cache, T, past):
    n, rotary_dim = HEADS[size]
    feeds = problem(2, n, rotary_dim, T=T, past=past, cache=cache)
    got = attention_session(2, rotary_dim, cache).run(None, feeds)
    wanted, codes = expected(feeds, 2, rotary_dim, cache)
    seen = real(feeds)
    assert np.abs(got[0] - wanted)[seen].max() <= 1e-5 * np.abs(wanted[seen]).max()
    for name, value in zip(("key", "value", "key_scale", "value_scale"), got[1:], strict=False):
        assert (value == codes[name]).all(), name


@needs_library
@pytest.mark.parametrize("cache", TYPES)
def test_a_shared_buffer_is_written_in_place_and_nowhere_else(cache):
    feeds = problem(T=1, past=9, room=16, cache=cache)
    _, codes = expected(feeds, 2, 8, cache)
    opened = attention_session(2, 8, cache)
    binding = opened.io_binding()
    shared = {name: onnxruntime.OrtValue.ortvalue_from_numpy(x.copy(), MEMORY) for name, x in feeds.items()}
    for name, value in shared.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("attention")
    for part in ("key", "value"):
        binding.bind_ortvalue_output(f"present_{part}", shared[f"past_{part}"])
        if cache == "int8":
            binding.bind_ortvalue_output(f"{part}_scale", shared[f"past_{part}_scale"])
    opened.run_with_iobinding(binding)
    for part in ("key", "value"):
        after = shared[f"past_{part}"].numpy()
        assert (after[:, :, :10] == codes[part]).all()
        assert (after[:, :, 10:] == feeds[f"past_{part}"][:, :, 10:]).all()
    apart = opened.run(None, feeds)  # into a buffer of its own: the same, as far as it is valid
    assert (apart[1][:, :, :10] == codes["key"]).all() and apart[1].shape[2] == 16
    assert np.array_equal(apart[0], binding.copy_outputs_to_cpu()[0])


@needs_library
@pytest.mark.parametrize("cache", ["float16", "int8"])
def test_a_smaller_cache_costs_what_its_rounding_does(cache):
    feeds = problem(T=40, padding=(0, 0, 0))
    wanted, _ = expected(feeds, 2, 8, "float32")
    empty = problem(T=40, padding=(0, 0, 0), cache=cache)
    got = attention_session(2, 8, cache).run(None, feeds | {k: v for k, v in empty.items() if k.startswith("past")})[0]
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert error <= (2e-3 if cache == "float16" else 2e-2)
    assert error > 1e-5  # it is used


@needs_library
@pytest.mark.parametrize("cache", TYPES)
@pytest.mark.parametrize("T", [5, 1])
def test_a_prompt_in_parts_is_the_prompt_in_one(cache, T):
    """70 tokens at once, and the last T of them after the others; the growing cache goes from call to call."""
    whole = problem(T=70, cache=cache)
    opened = attention_session(2, 8, cache)
    at_once = opened.run(None, whole)

    def tokens(start, stop):
        return whole | {
            "qkv": whole["qkv"][:, start:stop],
            "position_ids": whole["position_ids"][:, start:stop],
            "bias": whole["bias"][:, :, start:stop, :stop],
            "total_length": np.array(stop, np.int32),
            "seqlens_k": np.full(3, stop - 1, np.int32),
        }

    first = opened.run(None, tokens(0, 70 - T))
    past = ("past_key", "past_value", "past_key_scale", "past_value_scale")
    second = opened.run(None, tokens(70 - T, 70) | dict(zip(past, first[1:], strict=False)))
    for one, parts in zip(at_once[1:], second[1:], strict=True):
        assert (one == parts).all()
    joined = np.concatenate([first[0], second[0]], 1)
    assert np.abs(joined - at_once[0])[real(whole)].max() <= 1e-5 * np.abs(at_once[0]).max()


@needs_library
@pytest.mark.parametrize("cache", TYPES)
@pytest.mark.parametrize(("T", "past"), [(1, 9), (7, 0)])
def test_padding_on_the_right_is_hidden_by_the_bias(cache, T, past):
    """What lies in hidden places, be it enormous, changes nothing to the bit."""
    feeds = problem(T=T, past=past, cache=cache, padding=(0, 0, 0))
    total = past + T
    feeds["bias"][1, :, :, 3:total] = -3e4
    feeds["bias"][1, 0, np.arange(T), np.arange(past, total)] = 0  # a token sees itself, as a stock operator needs
    wanted, _ = expected(feeds, 2, 8, cache)
    opened = attention_session(2, 8, cache)
    got = opened.run(None, feeds)[0]
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()
    loud = feeds | {"past_value": feeds["past_value"].copy()}
    loud["past_value"][1, :, 3:] = 100
    assert past == 0 or np.array_equal(opened.run(None, loud)[0], got)


@needs_library
@pytest.mark.parametrize("activations", ["float32", "float16"])
@pytest.mark.parametrize("T", [1, 9])
def test_one_bias_serves_every_row_of_the_batch(activations, T):
    feeds = problem(T=T, past=9, padding=(3, 3, 3))
    feeds |= {name: feeds[name].astype(activations) for name in ("qkv", "cos", "sin", "bias")}
    opened = attention_session(2, 8, activations=activations)
    wanted = opened.run(None, feeds)[0]
    assert np.array_equal(opened.run(None, feeds | {"bias": feeds["bias"][:1]})[0], wanted)


@needs_library
@pytest.mark.parametrize("cache", TYPES)
@pytest.mark.parametrize("T", [1, 3])
def test_a_long_cache_of_one_head_is_shared_between_threads(cache, T):
    """With fewer heads than threads the cached length is split, and the parts are joined."""
    feeds = problem(1, 64, 16, B=1, T=T, past=1500, cache=cache, padding=(700, 0, 0)) | {
        "position_ids": np.arange(T)[None]
    }
    wanted, codes = expected(feeds, 1, 16, cache)
    got = attention_session(1, 16, cache).run(None, feeds)
    assert np.abs(got[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert (got[1] == codes["key"]).all()


@needs_library
@pytest.mark.parametrize("cache", TYPES)
@pytest.mark.parametrize(("T", "past"), [(1, 9), (20, 9)])
def test_float16_activations_are_computed_in_float32(cache, T, past):
    feeds = problem(n=80, rotary_dim=20, T=T, past=past, cache=cache)
    halves = feeds | {name: feeds[name].astype(np.float16) for name in ("qkv", "cos", "sin", "bias")}
    wide = feeds | {name: halves[name].astype(np.float32) for name in ("qkv", "cos", "sin", "bias")}
    wanted = attention_session(2, 20, cache).run(None, wide)
    got = attention_session(2, 20, cache, activations="float16").run(None, halves)
    assert got[0].dtype == np.float16
    assert np.array_equal(got[0], wanted[0].astype(np.float16))
    for one, other in zip(got[1:], wanted[1:], strict=True):
        assert (one == other).all()


@needs_library
@pytest.mark.parametrize("cache", TYPES)
@pytest.mark.parametrize("T", [1, 9])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_not_lost(cache, T, bad):
    feeds = problem(T=T, past=9, cache=cache, padding=(0, 0, 0))
    feeds["qkv"][0, 0, -1] = bad  # of the value of the last head
    with np.errstate(invalid="ignore"):
        got = attention_session(2, 8, cache).run(None, feeds)[0]
    assert not np.isfinite(got[0, :, -1]).any()
    assert np.isfinite(got[1:]).all() and np.isfinite(got[:, :, :32]).all()


@needs_library
@pytest.mark.parametrize("cache", ["float32", "int8"])
def test_shapes_are_known_before_any_run(cache):
    """The type and shape of an output that the graph does not declare; what cannot be known has a name of its own."""
    kind = TYPES[cache]
    names = ["qkv", "past_key", "past_value", "cos", "sin", "positions", "seqlens", "total", "bias"]
    scales = ["key_scale", "value_scale"] if cache == "int8" else []
    node = helper.make_node(
        "RotaryAttention", [*names, *scales], ["a", "k", "v", *(["ks", "vs"] if scales else [])],
        domain="pythia", num_heads=2, rotary_dim=8,
    )  # fmt: skip
    inputs = [
        ("qkv", TensorProto.FLOAT16, ["rows", "new", 192]),
        *((name, kind, ["rows", 2, "past", 32]) for name in names[1:3]),
        *((name, TensorProto.FLOAT16, [256, 4]) for name in names[3:5]),
        ("positions", TensorProto.INT64, ["rows", "new"]),
        ("seqlens", TensorProto.INT32, ["rows"]),
        ("total", TensorProto.INT32, []),
        ("bias", TensorProto.FLOAT16, ["rows", 1, "new", "total"]),
        *((name, TensorProto.FLOAT, ["rows", 2, "past"]) for name in scales),
    ]
    turn = helper.make_node("Identity", ["a"], ["out"])
    opened = session([node, turn], inputs, [("out", TensorProto.FLOAT16, None), ("k", kind, None), ("v", kind, None)])
    out, key, _ = opened.get_outputs()
    assert (out.type, out.shape) == ("tensor(float16)", ["rows", "new", 64])
    assert key.shape[:2] + key.shape[3:] == ["rows", 2, 32] and key.shape[2].startswith("pythia_unknown")


@needs_library
@pytest.mark.parametrize("isa", ["avx512", "avx2", "sse2", "neon", "reference"])
def test_every_version_gives_the_same(isa, monkeypatch):
    feeds = problem(n=80, rotary_dim=20, T=9, past=5)
    best = attention_session(2, 20).run(None, feeds)[0]
    monkeypatch.setenv("PYTHIA_KERNELS_ISA", isa)
    try:
        opened = attention_session(2, 20)
    except Exception as e:
        if "PYTHIA_KERNELS_ISA names a version" not in str(e):
            raise
        pytest.skip(f"this processor does not run {isa}")
    assert instruction_set(LIBRARY) == isa
    assert np.abs(best - opened.run(None, feeds)[0])[real(feeds)].max() <= 1e-5


@needs_library
@pytest.mark.parametrize("cache", TYPES)
@pytest.mark.parametrize("T", [1, 4, 20, 70])
def test_a_row_that_hides_everything_is_the_mean_of_what_it_hides_not_a_nan(T, cache):
    """As softmax has it; torch's mask is the least float32."""
    feeds = problem(T=T, past=10, cache=cache, padding=(0, 0, 0))
    feeds["bias"] = np.full_like(feeds["bias"], np.finfo("f").min)
    got = attention_session(2, 8, cache).run(None, feeds)[0]
    assert np.abs(got - expected(feeds, 2, 8, cache)[0]).max() <= 1e-5


@needs_library
@pytest.mark.parametrize("isa", ["avx512", "avx2", "sse2", "neon", "reference"])
@pytest.mark.parametrize("T", [4, 9, 20, 70, 130])
def test_what_is_not_finite_stays_with_those_who_see_it(T, isa, monkeypatch):
    monkeypatch.setenv("PYTHIA_KERNELS_ISA", isa)
    if instruction_set(LIBRARY) != isa:
        pytest.skip(f"this processor does not run {isa}")
    feeds = problem(T=T, past=3, B=1)
    before = attention_session(2, 8).run(None, feeds)[0]
    at = T - 3
    feeds["qkv"][0, at, -1] = np.inf  # a value's
    got = attention_session(2, 8).run(None, feeds)[0]
    assert (got[:, :at] == before[:, :at]).all() and not np.isfinite(got[:, at:, -1]).any()


@needs_library
def test_a_version_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setenv("PYTHIA_KERNELS_ISA", "mmx")
    with pytest.raises(Exception, match=r"/layers\.0/attention: PYTHIA_KERNELS_ISA names a version that .* not have"):
        attention_session(2, 8)
    assert instruction_set(LIBRARY) is None
    monkeypatch.setenv("PYTHIA_KERNELS_ISA", "")  # as if it were not set
    empty = instruction_set(LIBRARY)
    monkeypatch.delenv("PYTHIA_KERNELS_ISA")
    assert empty == instruction_set(LIBRARY) is not None


def changed(**changes):
    return lambda feeds: feeds | {name: change(feeds[name]) for name, change in changes.items()}


@needs_library
@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (
            changed(total_length=lambda x: np.array(18, np.int32), bias=lambda x: np.zeros((3, 1, 5, 18), "f")),
            "past_key holds 9 places",
        ),
        (changed(total_length=lambda x: np.array(3, np.int32)), "total_length is 3; 5 new tokens"),
        (changed(total_length=lambda x: np.array(-1, np.int32)), "total_length is -1"),
        (changed(seqlens_k=lambda x: x - 1), r"seqlens_k\[0\] is 12; total_length - 1 = 13"),
        (changed(position_ids=lambda x: x + 250), "position_ids holds 2.. ; cos has 256".replace(" ;", ";")),
        (changed(position_ids=lambda x: x - 300), "position_ids holds -"),
        (changed(qkv=lambda x: x[:, :0], position_ids=lambda x: x[:, :0]), "at least one row and one token"),
        (changed(qkv=lambda x: x[:0]), "at least one row and one token"),
        (changed(qkv=lambda x: x[..., :-1]), "num_heads 2 was expected in the last place"),
        (changed(qkv=lambda x: x[..., :-6]), r"past_key is \[3, 2, 9, 32\]; \[3, 2, \?, 31\]"),
        (changed(past_value=lambda x: x[:, :, :-1]), "past_value is .* was expected"),
        (changed(cos=lambda x: x[:, :-1]), r"cos is \[256, 3\]; \[\?, 4\]"),
        (changed(bias=lambda x: x[..., :-1]), "attention_bias is .*14"),
        (changed(bias=lambda x: x[:2]), "attention_bias is .*; 1 or 3 was expected first"),
    ],
)
def test_bad_input_is_an_error_that_names_node_input_found_and_expected(break_it, words):
    opened = attention_session(2, 8)
    with pytest.raises(Exception, match=words) as refused:
        opened.run(None, break_it(problem(past=9)))
    assert "pythia::RotaryAttention /layers.0/attention: " in str(refused.value)


def damaged(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """x with an axis longer, shorter or gone, with one too many, with no element, with a number out of bounds."""
    how, axis = rng.integers(6), int(rng.integers(x.ndim)) if x.ndim else None
    if how == 0 and x.dtype.kind == "i" and x.dtype != np.int8 and x.size:
        wrong = np.array(x)
        wrong.reshape(-1)[rng.integers(x.size)] = rng.choice(
            [-1, 0, 300, *(getattr(np.iinfo(x.dtype), m) for m in ("min", "max"))]
        )
        return wrong
    if how == 1 or axis is None:
        return x[None]
    if how == 2 and x.shape[axis]:
        return np.asarray(np.take(x, 0, axis))
    if how == 3 and x.shape[axis]:
        return np.concatenate([x, np.take(x, [0], axis)], axis)
    if how == 4:
        return np.take(x, range(max(0, x.shape[axis] - int(rng.integers(1, 4)))), axis)
    return np.zeros((0,) * x.ndim, x.dtype)


@needs_library
def test_fuzzed_calls_are_right_or_refused_by_name():
    """Sizes drawn at random; none, one or two of the inputs damaged."""
    rng, refused, right, opened = np.random.default_rng(0), 0, 0, {}
    for seed in range(300):
        cache = str(rng.choice(list(TYPES)))
        heads, n, T = (int(rng.choice(of)) for of in ((1, 2, 3), (2, 6, 18, 34, 80), (1, 1, 2, 3, 4, 8, 9, 66)))
        rotary_dim, past = min(n, int(rng.choice([0, 2, 6, 20]))), int(rng.choice([0, 1, 9, 70]))
        room = past + int(rng.choice([0, 1, T, T + 3]))
        feeds = problem(heads, n, rotary_dim, int(rng.integers(1, 4)), T, past, room, cache, seed, padding=(0, 0, 0))
        feeds["bias"] = rng.standard_normal(feeds["bias"].shape, np.float32)
        bad = {name: damaged(rng, feeds[name]) for name in rng.choice(list(feeds), rng.integers(3), replace=False)}
        key = heads, rotary_dim, cache
        opened[key] = opened.get(key) or attention_session(*key)
        try:
            got = opened[key].run(None, feeds | bad)
        except Exception as e:
            assert bad and "pythia::RotaryAttention /layers.0/attention: " in str(e), (bad, e)
            refused += 1
            continue
        used = feeds | bad  # what was damaged may be fit for use: positions, rows of tables, one bias for all
        used["total_length"] = used["total_length"].reshape(())
        used["bias"] = np.broadcast_to(used["bias"], (len(used["qkv"]), *used["bias"].shape[1:]))
        wanted, _ = expected(used, heads, rotary_dim, cache)
        assert np.abs(got[0] - wanted).max() <= 1e-5 * np.abs(wanted).max(), (seed, key, T, past, room, list(bad))
        right += 1
    assert refused > 100 and right > 100


@needs_library
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: attention_session(2, 7), "rotary_dim is 7; an even number"),
        (lambda: attention_session(0, 8), "num_heads is 0"),
    ],
)
def test_a_node_that_makes_no_sense_is_refused(make, words):
    def run():
        opened = make()
        if isinstance(opened, onnxruntime.InferenceSession):
            opened.run(None, problem(past=9))

    with pytest.raises(Exception, match=words):
        run()


@needs_library
@pytest.mark.parametrize(
    ("cache", "scales", "words"),
    [
        ("int8", False, "past_key_scale is missing; a cache of int8 needs it"),
        ("float32", True, "past_key_scale was given; only a cache of int8 has it"),
    ],
)
def test_scales_belong_to_a_cache_of_int8_alone(cache, scales, words):
    feeds = problem(past=9, cache="int8") if scales else problem(past=9, cache=cache)
    feeds |= {k: x for k, x in problem(past=9, cache=cache).items() if k in ("past_key", "past_value")}
    opened = attention_session(2, 8, cache, scales)
    with pytest.raises(Exception, match=words):
        opened.run(None, {i.name: feeds[i.name] for i in opened.get_inputs()})


@needs_library
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (
            {"qkv": TensorProto.DOUBLE},
            r"tensor\(double\)' of input parameter \(qkv\).*RotaryAttention\) in node \(here",
        ),
        ({"past_key": TensorProto.UINT8}, r"'tensor\(uint8\)' of input parameter \(past_key\)"),
        ({"seqlens": TensorProto.INT64}, r"'tensor\(int64\)' of input parameter \(seqlens\)"),
        ({"past_key": TensorProto.FLOAT16}, "here"),  # each alone has a kernel, both together have none
        ({"cos": TensorProto.FLOAT16}, "here"),
    ],
)
def test_types_that_no_kernel_has_are_refused_when_the_session_opens(wrong, words):
    names = ["qkv", "past_key", "past_value", "cos", "sin", "positions", "seqlens", "total", "bias"]
    kinds = dict.fromkeys(names, TensorProto.FLOAT) | {"positions": TensorProto.INT64}
    kinds |= {"seqlens": TensorProto.INT32, "total": TensorProto.INT32} | wrong
    node = helper.make_node(
        "RotaryAttention", names, ["o", "k", "v"], "here", domain="pythia", num_heads=2, rotary_dim=8
    )
    outputs = [("o", kinds["qkv"], None), ("k", kinds["past_key"], None), ("v", kinds["past_value"], None)]
    with pytest.raises(Exception, match=words):
        session([node], [(name, kind, None) for name, kind in kinds.items()], outputs)


# PartialRotary


@needs_library
def test_partial_rotary_passes_the_cases_of_onnx_for_rotary_embedding():
    pytest.importorskip("PIL", reason="onnx's collection of cases imports Pillow")
    from onnx import numpy_helper
    from onnx.backend.test.case.node import collect_testcases

    cases = [c for c in collect_testcases("RotaryEmbedding") if "expanded" not in c.name]
    assert len(cases) == 8
    for case in cases:
        model = case.model
        node = model.graph.node[0]
        node.op_type, node.domain = "PartialRotary", "pythia"
        inputs = [(i.name, i.type.tensor_type.elem_type, None) for i in model.graph.input]
        opened = session([node], inputs, [(o.name, o.type.tensor_type.elem_type, None) for o in model.graph.output])
        for given, wanted in case.data_sets:
            arrays = [x if isinstance(x, np.ndarray) else numpy_helper.to_array(x) for x in (*given, *wanted)]
            feeds = {i[0]: x for i, x in zip(inputs, arrays, strict=False)}
            assert np.allclose(opened.run(None, feeds)[0], arrays[-1], rtol=1e-5, atol=1e-6), case.name


@needs_library
@pytest.mark.parametrize(
    ("shapes", "attributes", "words"),
    [
        (((1, 2, 3), (5, 2), (5, 2), (1, 2)), {}, "num_heads 0"),
        (((1, 2, 3, 4), (5, 1), (5, 1), (1, 3)), {}, "cos_cache is"),
        (((1, 2, 3, 4), (5, 2), (5, 2), (1, 2)), {}, "position_ids is"),
        (((1, 2, 3, 4), (5, 3), (5, 3), (1, 3)), {"rotary_embedding_dim": 6}, "rotary_embedding_dim is 6"),
        (((4,), (5, 2), (5, 2), (1, 2)), {}, "3 or 4 dimensions"),
        (((1, 2, 0, 4), (5, 2), (5, 2), (1, 0)), {}, "at least one row, head and token"),
        (((1, 2, 3, 4), (1, 2), (1, 2), (1, 3)), {}, "position_ids holds 1; cos_cache has 1 positions"),
    ],
)
def test_partial_rotary_refuses_what_does_not_fit(shapes, attributes, words):
    names = ["x", "cos", "sin", "position"]
    node = helper.make_node("PartialRotary", names, ["y"], domain="pythia", **attributes)
    kinds = [TensorProto.FLOAT] * 3 + [TensorProto.INT64]
    opened = session(
        [node], [(n, k, None) for n, k in zip(names, kinds, strict=True)], [("y", TensorProto.FLOAT, None)]
    )
    feeds = {n: np.ones(s, np.int64 if n == "position" else "f") for n, s in zip(names, shapes, strict=True)}
    with pytest.raises(Exception, match=words):
        opened.run(None, feeds)


@needs_library
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("positions", [True, False])
def test_partial_rotary_of_float16_is_float32_rounded_once(interleaved, positions):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 5, 20)).astype(np.float16)
    shape = (9, 5) if positions else (2, 5, 5)
    feeds = {"x": x, "cos": rng.standard_normal(shape).astype("e"), "sin": rng.standard_normal(shape).astype("e")}
    if positions:
        feeds["position"] = rng.integers(0, 9, (2, 5))

    def run(kind):
        node = helper.make_node(
            "PartialRotary", list(feeds), ["y"], domain="pythia", rotary_embedding_dim=10, interleaved=interleaved
        )
        inputs = [(n, TensorProto.INT64 if n == "position" else TYPES[kind], None) for n in feeds]
        opened = session([node], inputs, [("y", TYPES[kind], None)])
        return opened.run(None, {n: v if n == "position" else v.astype(kind) for n, v in feeds.items()})[0]

    assert np.array_equal(run("float16"), run("float32").astype(np.float16))
