"""The CUDA kernels by ctypes, without ONNX Runtime: on a GPU where one is, and everywhere their source emulated."""

from __future__ import annotations

import ctypes
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cuda_kernels import ACTIVATIONS, CACHED, Device, Rotary, device_of, emulated_library, prepared
from linears import problem as linear
from linears import run_gptq
from test_kernels import HEADS, TYPES, expected, problem, real

from pythia_export.base.device import CPU
from pythia_export.base.native_library import kernels_path
from pythia_export.rounding import native


@pytest.fixture(scope="module", params=["emulated", "GPU"])
def device(request) -> Device:
    if request.param == "GPU":
        if not torch.cuda.is_available():
            pytest.skip("no GPU that torch reaches")
        path = kernels_path("cuda")
        if path is None:
            pytest.skip("the CUDA kernel is not built; `make cuda` builds it")
        return device_of(path, "cuda")
    path = emulated_library()
    if path is None:
        pytest.skip("no build of the kernels in this checkout, or no CMake")
    return device_of(path, "cpu")


def attend(device: Device, feeds, heads: int, rotary_dim: int, cache: str, dtype=torch.float32, room: int = 0):
    """The outputs of `RotaryAttention` of one call; present has `room` places, or as many as are needed."""
    on = {name: torch.from_numpy(np.ascontiguousarray(value)).to(device.name) for name, value in feeds.items()}
    for name in ("qkv", "cos", "sin", "bias"):
        on[name] = on[name].to(dtype)
    launch, outputs = prepared(device, on, heads, rotary_dim, cache, int(feeds["total_length"]), room)
    launch()
    device.wait()
    return [x.float().cpu().numpy() if x is outputs[0] else x.cpu().numpy() for x in outputs]


def rounded(feeds, dtype: torch.dtype):
    """The activations as `dtype` has them, in float32."""
    return feeds | {
        name: torch.from_numpy(feeds[name].copy()).to(dtype).float().numpy() for name in ("qkv", "cos", "sin", "bias")
    }


@pytest.mark.parametrize("dtype", ACTIVATIONS, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("cache", TYPES)
def test_it_keeps_the_contract(device, cache, dtype):
    for (n, rotary_dim), (T, past) in product(HEADS.values(), [(1, 9), (1, 300), (11, 0), (70, 9)]):
        feeds = rounded(problem(2, n, rotary_dim, T=T, past=past, cache=cache), dtype)
        feeds["position_ids"] %= len(feeds["cos"])
        got = attend(device, feeds, 2, rotary_dim, cache, dtype)
        wanted, codes = expected(feeds, 2, rotary_dim, cache)
        seen = real(feeds)
        most = ACTIVATIONS[dtype][1] * np.abs(wanted[seen]).max()
        if dtype != torch.float32 and T >= 16:  # tensor cores read queries and weights of the softmax rounded
            most *= 2
        assert np.abs(got[0] - wanted)[seen].max() <= most, (n, T, past)
        for name, value in zip(("key", "value", "key_scale", "value_scale"), got[1:], strict=False):
            assert (value == codes[name]).all(), (name, n, T, past)


def test_a_prompt_in_parts_is_the_prompt_in_one(device):
    feeds = problem(2, 64, 16, T=12, cache="int8", padding=(0, 0, 0))
    whole = attend(device, feeds, 2, 16, "int8", room=16)
    parts, past = [], feeds
    for begin, end in ((0, 5), (5, 6), (6, 12)):
        part = past | {"qkv": feeds["qkv"][:, begin:end], "position_ids": feeds["position_ids"][:, begin:end]}
        part |= {"bias": feeds["bias"][:, :, begin:end, :end], "total_length": np.array(end, np.int32)}
        out, *cached = attend(device, part, 2, 16, "int8", room=16)
        parts.append(out)
        past = feeds | dict(zip(CACHED, cached, strict=True))
    assert np.abs(np.concatenate(parts, 1) - whole[0]).max() <= 1e-5 * np.abs(whole[0]).max()
    for one, other in zip(cached, whole[1:], strict=True):
        assert (one == other).all()


@pytest.mark.parametrize("dtype", ACTIVATIONS, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("head_dim", [20, 80, 256])
def test_partial_rotary_turns_what_it_should(device, dtype, interleaved, head_dim):
    generator, half = torch.Generator().manual_seed(0), head_dim // 8
    x = torch.randn(2, 3, 4, head_dim, generator=generator).to(dtype)
    cos, sin = (torch.randn(7, half, generator=generator).to(dtype) for _ in range(2))
    position = torch.tensor([[0, 6, 2, 5], [1, 1, 4, 3]])
    on = [tensor.to(device.name) for tensor in (x, cos, sin, position)]
    y = torch.zeros_like(on[0])
    call = Rotary(2, 3, 4, head_dim, 2 * half, 12 * head_dim, 4 * head_dim, head_dim, 7, ACTIVATIONS[dtype][0])
    call.interleaved, (call.x, call.cos, call.sin, call.position) = interleaved, (tensor.data_ptr() for tensor in on)
    call.y = y.data_ptr()
    assert device.library.pythia_cuda_rotate(ctypes.byref(call), device.stream) == 0
    device.wait()
    c, s = (table[position][:, None].float() for table in (cos, sin))  # [2, 1, 4, half]
    expected, one = x.float(), slice(0, 2 * half, 2) if interleaved else slice(half)
    other = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    a, b = expected[..., one].clone(), expected[..., other].clone()
    expected[..., one], expected[..., other] = a * c - b * s, b * c + a * s
    assert (y.cpu() == expected.to(dtype)).all()


@pytest.mark.skipif(not native.available(CPU), reason="the kernels are not built (`make kernels`)")
@pytest.mark.parametrize(
    ("bits", "symmetric", "group_size", "width"), [(4, True, -1, 8), (3, False, 32, 3), (8, True, 16, 64)]
)
def test_its_beam_rounds_as_that_of_the_cpu(device, monkeypatch, bits, symmetric, group_size, width):
    """On a GPU sums of products are taken in another order, and a weight between two codes may fall to either side."""
    W, H = linear("correlated", 20, 320)
    of_cpu = run_gptq(W, H.float(), bits, group_size, symmetric, True, True, width)
    launched = []

    def launch(block, stream=None):
        launched.append(stream)
        return device.library.pythia_cuda_beam(block, ctypes.c_void_p(stream))

    monkeypatch.setattr(native, "_library", lambda name: SimpleNamespace(pythia_beam=launch, pythia_cuda_beam=launch))
    got = run_gptq(W.to(device.name), H.float().to(device.name), bits, group_size, symmetric, True, True, width)
    device.wait()
    assert len(launched) == 10
    same = (got.q.cpu() == of_cpu.q).all(1).float().mean()
    assert same == 1 if device.name == "cpu" else same >= 0.9
    assert torch.allclose(got.scale.cpu(), of_cpu.scale, rtol=1e-6)


@pytest.mark.skipif(not native.available(CPU), reason="the kernels are not built (`make kernels`)")
@pytest.mark.parametrize(("width", "places", "apart"), [(16, 32, 128), (1, 32, 0), (64, 7, 40)])
def test_a_block_of_its_beam_is_the_cpus_bit_for_bit(device, monkeypatch, width, places, apart):
    """The same numbers in, codes, errors and costs out: every operation is rounded by itself on both."""
    rng, rows, first = np.random.default_rng(0), 300, 5
    window = first + places + apart
    factor = np.tril(rng.normal(size=(places, places)) / 4) + np.diag(rng.uniform(1, 2, places))
    given = {
        "free": rng.normal(size=(places, rows)), "settled": rng.normal(size=(places, rows)) / 8,
        "scale": rng.uniform(0.1, 0.3, (places, rows)), "zero": np.full((places, rows), 8.0), "factor": factor,
        "owed": rng.normal(size=(rows * width, places)) / 8, "cost": rng.uniform(0, 1, (rows, width)),
        "errors": rng.normal(size=(rows * width, window)),
    }  # fmt: skip
    codes, found = rng.integers(0, 16, (rows * width, window)), []
    emulated = SimpleNamespace(pythia_beam=lambda block: device.library.pythia_cuda_beam(block, None))
    for name in ("cpu", device.name):
        on = {key: torch.tensor(value, dtype=torch.float32, device=name) for key, value in given.items()}
        on["codes"] = torch.tensor(codes, dtype=torch.uint8, device=name)
        assert native.round_block(native.Block(15, first, apart, **on))
        found.append([on[key].cpu() for key in ("codes", "errors", "cost")])
        if device.name == "cpu":
            monkeypatch.setattr(native, "_library", lambda name: emulated)
    device.wait()
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(found[0][0], torch.tensor(codes, dtype=torch.uint8))
