"""GPT-NeoX in plain torch and float16, as fast as torch is without a compiler: what decoding is held to.

Random weights, a static cache, and each token's work captured as a CUDA graph, so that no launch is waited for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pythia_export.model.neox import NeoXConfig

_INTO = {"qkv": (1, 3), "dense": (1, 1), "up": (1, 4), "down": (4, 1)}  # inputs and outputs, in widths of the model


class TorchDecoder:
    def __init__(self, config: NeoXConfig, room: int, device: str) -> None:
        d, self.config, self.device = config.hidden_size, config, device

        def drawn(*shape: int) -> Tensor:
            return torch.empty(*shape, dtype=torch.float16, device=device).normal_(0, 0.02)

        self.table, self.head = drawn(config.vocab_size, d), drawn(config.vocab_size, d)
        self.layers = [{name: drawn(n * d, m * d) for name, (m, n) in _INTO.items()} for _ in range(config.num_layers)]
        shape = (1, config.num_heads, room, config.head_dim)
        self.cache = [(drawn(*shape), drawn(*shape)) for _ in self.layers]
        angle = torch.rand(room, config.rotary_dim // 2, device=device)
        self.cos, self.sin = angle.cos().half(), angle.sin().half()
        self.token = torch.zeros(1, 1, dtype=torch.int64, device=device)

    def graphed(self, context: int) -> Callable[[], None]:
        """The work of one token behind `context` others, to be repeated."""
        if self.device == "cpu":
            return lambda: self._run(self.token, context)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(side):
            for _ in range(3):
                self._run(self.token, context)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph):
            self._run(self.token, context)
        return graph.replay

    def prompt(self, tokens: int) -> None:
        self._run(self.token.expand(1, tokens), 0)

    @torch.inference_mode()
    def _run(self, ids: Tensor, begin: int) -> Tensor:
        x, end = F.embedding(ids, self.table), begin + ids.shape[1]
        for layer, (keys, values) in zip(self.layers, self.cache, strict=True):
            z = F.layer_norm(x, x.shape[-1:])
            q, k, v = F.linear(z, layer["qkv"]).unflatten(-1, (3, self.config.num_heads, -1)).permute(2, 0, 3, 1, 4)
            keys[:, :, begin:end], values[:, :, begin:end] = self._turned(k, begin, end), v
            mixed = F.scaled_dot_product_attention(
                self._turned(q, begin, end), keys[:, :, :end], values[:, :, :end], is_causal=begin == 0
            )
            mlp = F.linear(F.gelu(F.linear(z, layer["up"])), layer["down"])
            x = x + F.linear(mixed.transpose(1, 2).flatten(2), layer["dense"]) + mlp
        return F.linear(F.layer_norm(x[:, -1:], x.shape[-1:]), self.head)

    def _turned(self, x: Tensor, begin: int, end: int) -> Tensor:
        rotary = self.config.rotary_dim
        a, b = x[..., :rotary].chunk(2, -1)
        cos, sin = self.cos[begin:end], self.sin[begin:end]
        return torch.cat((a * cos - b * sin, b * cos + a * sin, x[..., rotary:]), -1)
