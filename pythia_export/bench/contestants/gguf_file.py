"""A GPT-NeoX checkpoint as the GGUF that llama.cpp reads: names and metadata of its `convert_hf_to_gguf.py`.

The vocabulary is not written: llama.cpp is fed token ids here, as everyone is. Matrices are stored as float16,
vectors as float32, as llama.cpp wants them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from ...model.neox import IGNORED_BUFFERS, NeoXConfig
from ...model.rope import PLAIN

_NAMES = {
    "gpt_neox.embed_in": "token_embd",
    "gpt_neox.final_layer_norm": "output_norm",
    "embed_out": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def write_gguf(config: NeoXConfig, weights: list[Path], path: Path) -> None:
    """
    Raises:
        ValueError: llama.cpp's graph of GPT-NeoX does not compute this model.
    """
    if config.activation not in ("gelu", "gelu_tanh") or config.rope != PLAIN or config.tied_head:
        raise ValueError(
            f"llama.cpp's GPT-NeoX has GELU, plain rotary embedding and a head of its own; this model has "
            f"{config.hidden_act}, {config.rope.type} and tie_word_embeddings = {str(config.tied_head).lower()}"
        )
    if not config.attention_bias:
        raise ValueError("llama.cpp's GPT-NeoX has biases in attention; this model has attention_bias = false")
    writer = GGUFWriter(path, "gptneox")
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(config.rotary_base)
    writer.add_head_count(config.num_heads)
    writer.add_parallel_residual(config.parallel_residual)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    for file in weights:
        for name, value in _tensors(file):
            if name.endswith(IGNORED_BUFFERS):
                continue
            if "query_key_value" in name:
                value = stacked(value, config.num_heads)
            writer.add_tensor(gguf_name(name), value.astype(np.float16 if value.ndim == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """``gpt_neox.layers.3.mlp.dense_h_to_4h.weight`` is ``blk.3.ffn_up.weight``."""
    module, _, kind = name.rpartition(".")
    if not module.startswith("gpt_neox.layers."):
        return f"{_NAMES[module]}.{kind}"
    _, _, layer, rest = module.split(".", 3)
    return f"blk.{layer}.{_NAMES[rest]}.{kind}"


def stacked(value: np.ndarray, heads: int) -> np.ndarray:
    """From [heads, 3, head_dim, ...], as GPT-NeoX lays out the fused product, to [3, heads, head_dim, ...]."""
    return value.reshape(heads, 3, -1, *value.shape[1:]).swapaxes(0, 1).reshape(value.shape)


def _tensors(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors of a safetensors file without its package, which may be missing where llama.cpp is."""
    data = np.memmap(file, np.uint8, "r")
    start = 8 + int(data[:8].view("<u8")[0])
    for name, entry in json.loads(bytes(data[8:start])).items():
        if name == "__metadata__" or entry["dtype"] not in _DTYPES:
            continue  # masks of booleans among the buffers that are ignored
        begin, end = entry["data_offsets"]
        raw = np.frombuffer(data, _DTYPES[entry["dtype"]], math.prod(entry["shape"]), start + begin)
        if entry["dtype"] == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        yield name, raw.reshape(entry["shape"])
