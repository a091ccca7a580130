"""What programs other than ours read beside a graph: Optimum and transformers.js `config.json`, onnxruntime-genai its
`genai_config.json`.

Each was seen to run an artifact that has these: onnxruntime-genai 0.18, transformers.js 4.3, Optimum's ONNX 0.1
(tests/end_to_end/test_consumers.py).
"""

from __future__ import annotations

from typing import Any

from ..model.generation import Generation
from ..model.neox import NeoXConfig, spelt
from ..recipe import Recipe
from ..weights.names import MODEL, dtype_name, graph_name
from .decoder import kv_cache


def config_json(config: NeoXConfig, recipe: Recipe) -> dict[str, Any]:
    found = config.to_dict(recipe.export.dtype)
    graph = graph_name(recipe)
    if graph is not None:
        name = graph.removeprefix("onnx/")
        found["transformers.js_config"] = {
            "dtype": dtype_name(recipe),
            "use_external_data_format": {name: True},
        }
    return found


def genai_config_json(config: NeoXConfig, recipe: Recipe, generation: Generation) -> dict[str, Any] | None:
    """None where onnxruntime-genai cannot feed the graph: codes of int8 have scales beside them, in our own operator.

    `type` is "decoder": there is no name for GPT-NeoX. Its `position_ids` are named because the graph has them.
    """
    if recipe.export.cache_dtype == "int8" and not recipe.export.static_scales:
        return None
    tokens = {
        "bos_token_id": generation.bos_token_id,
        "eos_token_id": spelt(generation.eos_token_ids),
        "pad_token_id": generation.fill_token_id,
    }
    return {
        "model": {
            "type": "decoder",
            **{name: token for name, token in tokens.items() if token is not None},  # it refuses a null
            "vocab_size": config.vocab_size,
            "context_length": config.max_positions,
            "decoder": {
                "filename": MODEL,
                "session_options": {
                    "log_id": "onnxruntime-genai",
                    "provider_options": [{"cuda": {}}] if recipe.export.target == "cuda" else [],
                },
                "head_size": config.head_dim,
                "hidden_size": config.hidden_size,
                "num_attention_heads": config.num_heads,
                "num_key_value_heads": config.num_heads,
                "num_hidden_layers": config.num_layers,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": generation.do_sample,
            "max_length": config.max_positions,
            "min_length": 0,
            "num_beams": 1,
            "past_present_share_buffer": kv_cache(recipe.export) == "shared",
            "repetition_penalty": generation.repetition_penalty,
            "temperature": generation.temperature,
            "top_k": generation.top_k,
            "top_p": generation.top_p,
        },
    }
