"""GPT-NeoX as Pythia uses it: its configuration, and THE table of its tensors. No torch here.

Pythia's block is ``x + attn(ln1(x)) + mlp(ln2(x))`` (parallel residual). The fused QKV product is laid out
``[heads, 3, head_dim]``; rotary embedding turns the first ``rotary_dim`` dimensions of each head, half-split.
Everything else (sequential residual, tied embeddings, other activations) is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from .errors import SourceError

Role = Literal["embedding", "linear", "bias", "norm", "head"]

# Stored by some revisions, derived from the configuration: never read.
IGNORED_BUFFERS = ("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq")

LINEARS = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
EMBEDDING = "gpt_neox.embed_in"
FINAL_NORM = "gpt_neox.final_layer_norm"
HEAD = "embed_out"


def layer_prefix(layer: int) -> str:
    return f"gpt_neox.layers.{layer}"


def cache_parts(dtype: str) -> tuple[str, ...]:
    """What a layer caches, by the names that the graph gives it: codes of int8 have scales."""
    return ("key", "value", "key_scale", "value_scale") if dtype == "int8" else ("key", "value")


def cache_bytes(config: NeoXConfig, dtype: str, tokens: int) -> int:
    """Of a cache of `dtype` with room for so many tokens, of all rows together."""
    a_head = config.head_dim * {"float32": 4, "float16": 2, "int8": 1}[dtype] + (4 if dtype == "int8" else 0)
    return 2 * config.num_layers * config.num_heads * tokens * a_head


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a checkpoint: its on-disk name, shape and role; `layer` is None outside the blocks."""

    name: str
    shape: tuple[int, ...]
    role: Role
    layer: int | None = None


@dataclass(frozen=True)
class NeoXConfig:
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int = 2048
    rotary_pct: float = 0.25
    rotary_base: float = 10000.0
    layer_norm_eps: float = 1e-5
    bos_token_id: int = 0
    eos_token_id: int = 0

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def rotary_dim(self) -> int:
        return int(self.head_dim * self.rotary_pct)

    @cached_property
    def parameters(self) -> int:
        total = 0
        for spec in tensors(self):
            n = 1
            for size in spec.shape:
                n *= size
            total += n
        return total

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "config.json") -> NeoXConfig:
        """Read a Hugging Face `config.json`, in the spelling of transformers 4 or 5.

        Raises:
            SourceError: a field is missing or holds what Pythia never has; the message names it.
        """

        def get(name: str, default: Any = None) -> Any:
            value = raw.get(name, default)
            if value is None:
                raise SourceError(
                    f"{where}: no `{name}`, which a GPT-NeoX configuration must have",
                    hint="Is this the directory of a Pythia checkpoint?",
                )
            return value

        def require(name: str, expected: Any, default: Any) -> None:
            found = raw.get(name, default)
            if found != expected:
                raise SourceError(f"{where}: {name} is {found!r}; every Pythia model has {expected!r}")

        require("model_type", "gpt_neox", None)
        require("hidden_act", "gelu", "gelu")
        require("use_parallel_residual", True, True)
        require("tie_word_embeddings", False, False)
        require("attention_bias", True, True)
        rope = raw.get("rope_parameters") or {}

        def rotary(old: str, new: str, default: float) -> float:
            """In the spelling of transformers 4 or 5; with both, they must agree."""
            spelt = {old: raw.get(old), new: raw.get(new), f"rope_parameters.{new}": rope.get(new)}
            given = {name: float(value) for name, value in spelt.items() if value is not None}
            if len(set(given.values())) > 1:
                said = ", ".join(f"{name} is {value:g}" for name, value in given.items())
                raise SourceError(f"{where}: {said}: two spellings of one thing that disagree")
            return next(iter(given.values()), float(default))

        rope_type = rope.get("rope_type", "default")
        if rope_type != "default" or raw.get("rope_scaling"):
            raise SourceError(f"{where}: scaled rotary embedding ({rope_type}); Pythia's is plain")
        try:
            config = cls(
                vocab_size=int(get("vocab_size")),
                hidden_size=int(get("hidden_size")),
                num_layers=int(get("num_hidden_layers")),
                num_heads=int(get("num_attention_heads")),
                intermediate_size=int(get("intermediate_size")),
                max_positions=int(get("max_position_embeddings", 2048)),
                rotary_pct=rotary("rotary_pct", "partial_rotary_factor", 0.25),
                rotary_base=rotary("rotary_emb_base", "rope_theta", 10000),
                layer_norm_eps=float(get("layer_norm_eps", 1e-5)),
                bos_token_id=int(raw.get("bos_token_id") or 0),
                eos_token_id=int(raw.get("eos_token_id") or 0),
            )
        except (TypeError, ValueError) as e:
            raise SourceError(f"{where}: a number was expected: {e}") from e
        sizes = (config.vocab_size, config.hidden_size, config.num_layers, config.num_heads, config.intermediate_size)
        if min(sizes) < 1 or config.max_positions < 1:
            raise SourceError(f"{where}: sizes must be positive: {config}")
        if config.hidden_size % config.num_heads:
            raise SourceError(
                f"{where}: hidden_size {config.hidden_size} is not a multiple of num_attention_heads {config.num_heads}"
            )
        if config.rotary_dim % 2 or not 2 <= config.rotary_dim <= config.head_dim:
            raise SourceError(
                f"{where}: rotary_pct {config.rotary_pct} of head_dim {config.head_dim} turns "
                f"{config.rotary_dim} dimensions; an even number of 2 or more is needed"
            )
        return config

    def to_dict(self, dtype: str = "float32") -> dict[str, Any]:
        """`config.json` with the rotary fields in both spellings, so that any consumer finds its own."""
        return {
            "architectures": ["GPTNeoXForCausalLM"],
            "attention_bias": True,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "hidden_act": "gelu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "layer_norm_eps": self.layer_norm_eps,
            "max_position_embeddings": self.max_positions,
            "model_type": "gpt_neox",
            "num_attention_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "rope_parameters": {
                "partial_rotary_factor": self.rotary_pct,
                "rope_theta": self.rotary_base,
                "rope_type": "default",
            },
            "rotary_emb_base": self.rotary_base,
            "rotary_pct": self.rotary_pct,
            "tie_word_embeddings": False,
            "torch_dtype": dtype,
            "use_cache": True,
            "use_parallel_residual": True,
            "vocab_size": self.vocab_size,
        }


def linear_shape(config: NeoXConfig, linear: str) -> tuple[int, int]:
    """``[out, in]`` of one of `LINEARS`, or of the head."""
    d, ff = config.hidden_size, config.intermediate_size
    return {
        "attention.query_key_value": (3 * d, d),
        "attention.dense": (d, d),
        "mlp.dense_h_to_4h": (ff, d),
        "mlp.dense_4h_to_h": (d, ff),
        HEAD: (config.vocab_size, d),
    }[linear]


def layer_tensors(config: NeoXConfig, layer: int) -> Iterator[TensorSpec]:
    prefix, d = layer_prefix(layer), config.hidden_size
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield TensorSpec(f"{prefix}.{norm}.weight", (d,), "norm", layer)
        yield TensorSpec(f"{prefix}.{norm}.bias", (d,), "norm", layer)
    for linear in LINEARS:
        shape = linear_shape(config, linear)
        yield TensorSpec(f"{prefix}.{linear}.weight", shape, "linear", layer)
        yield TensorSpec(f"{prefix}.{linear}.bias", shape[:1], "bias", layer)


def tensors(config: NeoXConfig) -> Iterator[TensorSpec]:
    """Every tensor of a checkpoint, in the order in which they are streamed, by on-disk name."""
    yield TensorSpec(f"{EMBEDDING}.weight", (config.vocab_size, config.hidden_size), "embedding")
    for layer in range(config.num_layers):
        yield from layer_tensors(config, layer)
    yield TensorSpec(f"{FINAL_NORM}.weight", (config.hidden_size,), "norm")
    yield TensorSpec(f"{FINAL_NORM}.bias", (config.hidden_size,), "norm")
    yield TensorSpec(f"{HEAD}.weight", (config.vocab_size, config.hidden_size), "head")
