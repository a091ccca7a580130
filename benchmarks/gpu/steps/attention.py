"""Attention by its kernel alone: decoding beside the memory's rate, prompts beside torch's own attention."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from bench import Bench
from cuda_kernels import Device, Prepared, device_of, prepared

HEADS, HEAD_DIM, ROTARY_DIM = 32, 128, 32  # pythia-6.9b's
COPIES = 12  # of a cache, in turn: one that the GPU's own cache holds would be read faster than memory is


def speed(bench: Bench) -> None:
    """Decode at 128 and 1,500 tokens and prompts of 1,500, in 16 bits."""
    rate = memory_rate(bench)
    device = device_of(bench.library(), bench.device)
    heads, n = bench.sized((HEADS, HEAD_DIM), (2, 32))
    for dtype, cache in ((torch.float16, "float16"), (torch.bfloat16, "float16"), (torch.float16, "int8")):
        named = f"{str(dtype)[6:]}, cache of {cache}"
        for context in bench.sized((128, 1500), (12,)):
            calls = [_call(device, heads, n, 1, context, cache, dtype, seed) for seed in range(bench.sized(COPIES, 2))]
            turns = itertools.cycle(calls)
            seconds = bench.seconds(lambda turns=turns: next(turns).launch(), 20 * len(calls))
            read = sum(x.nbytes for x in calls[0].outputs[1:])
            bench.say(f"decode at {context:,}, {named}", seconds * 1e6, "µs a layer")
            bench.say(f"decode at {context:,}, {named}", read / seconds / rate, "of the memory's rate")
        tokens = bench.sized(1500, 20)
        ours = bench.seconds(_call(device, heads, n, tokens, 0, cache, dtype, 0).launch, 20)
        q, k, v = (torch.randn(1, heads, tokens, n, dtype=dtype, device=device.name) for _ in range(3))
        theirs = bench.seconds(lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v, is_causal=True), 20)
        bench.say(f"prompt of {tokens:,}, {named}", ours * 1e6, "µs a layer")
        bench.target(f"prompt of {tokens:,}, {named}", theirs / ours, 0.5, "of torch's speed")


def memory_rate(bench: Bench) -> float:
    """Bytes a second that the memory gives to a plain copy or a plain read, whichever is faster."""
    size = bench.sized(2**32, 2**16)
    one, other = (torch.ones(size // 4, device=bench.device) for _ in range(2))
    copied = 2 * size / bench.seconds(lambda: other.copy_(one), 5)
    read = size / bench.seconds(one.sum, 5)
    bench.say("memory, copied", copied / 1e12, "TB/s, read and written")
    bench.say("memory, read", read / 1e12, "TB/s")
    return max(copied, read)


def _call(
    device: Device, heads: int, n: int, fresh: int, past: int, cache: str, dtype: torch.dtype, seed: int
) -> Prepared:
    """One call on random numbers, no padding, into the cache that it reads."""
    generator, total, rotary = torch.Generator(device.name).manual_seed(seed), past + fresh, ROTARY_DIM * n // HEAD_DIM

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device.name)

    kept = {"float16": torch.float16, "int8": torch.int8}[cache]
    feeds: dict[str, Any] = {name: (20 * normal(1, heads, total, n)).to(kept) for name in ("past_key", "past_value")}
    if cache == "int8":
        feeds |= {f"{name}_scale": normal(1, heads, total).abs() / 20 for name in ("past_key", "past_value")}
    feeds["qkv"] = normal(1, fresh, 3 * heads * n).to(dtype)
    feeds |= {name: normal(total, rotary // 2).to(dtype) for name in ("cos", "sin")}
    feeds["position_ids"] = torch.arange(past, total, device=device.name)[None]
    feeds["bias"] = torch.zeros(1, 1, fresh, total, dtype=dtype, device=device.name)
    return prepared(device, feeds, heads, rotary, cache, total, shared=True)
