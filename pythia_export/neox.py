"""GPT-NeoX as Pythia uses it: its configuration, and THE table of its tensors. No torch here.

Pythia's block is ``x + attn(ln1(x)) + mlp(ln2(x))`` (parallel residual). The fused QKV product is laid out
``[heads, 3, head_dim]``; rotary embedding turns the first ``rotary_dim`` dimensions of each head, half-split.
Everything else (sequential residual, tied embeddings, other activations) is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, Literal, NoReturn, overload

from .errors import SourceError
from .strict_json import shown

Role = Literal["embedding", "linear", "bias", "norm", "head"]

MOST = 2**31 - 1  # of any size: beyond it no index of ONNX Runtime and no checkpoint goes
MOST_LAYERS = 10_000  # what loops over layers ends; the deepest transformers have a thousand

# Stored by some revisions, derived from the configuration: never read.
IGNORED_BUFFERS = ("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq")

LINEARS = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
EMBEDDING = "gpt_neox.embed_in"
FINAL_NORM = "gpt_neox.final_layer_norm"
HEAD = "embed_out"


DEFAULT_EOS = 2  # of transformers, for a config.json that has no eos_token_id; a null is none


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
    bos_token_id: int | None = 0
    eos_token_ids: tuple[int, ...] = (0,)  # any of them ends a text

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def eos_token_id(self) -> int | None:
        """The first end token, which also stands between documents; None where there is none."""
        return next(iter(self.eos_token_ids), None)

    @property
    def rotary_dim(self) -> int:
        return int(self.head_dim * self.rotary_pct)

    @cached_property
    def parameters(self) -> int:
        """Counted without going through the layers, of which an untrue configuration may have very many."""
        a_layer = sum(prod(spec.shape) for spec in layer_tensors(self, 0))
        around = sum(prod(spec.shape) for spec in tensors(replace(self, num_layers=0)))
        return around + self.num_layers * a_layer

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "config.json") -> NeoXConfig:
        """Read a Hugging Face `config.json`, in the spelling of transformers 4 or 5.

        Raises:
            SourceError: a field is missing or holds what Pythia never has; the message names it.
        """

        if not isinstance(raw, Mapping):
            raise SourceError(f"{where}: {shown(raw)}; an object was expected")
        fields = _Fields(raw, where)

        def require(name: str, expected: Any, default: Any) -> None:
            found = raw.get(name, default)
            if found != expected:
                raise SourceError(f"{where}: {name} is {shown(found)}; every Pythia model has {expected!r}")

        require("model_type", "gpt_neox", None)
        require("hidden_act", "gelu", "gelu")
        require("use_parallel_residual", True, True)
        require("tie_word_embeddings", False, False)
        require("attention_bias", True, True)
        rope = _Fields(fields.object("rope_parameters"), where, "rope_parameters.")

        def rotary(old: str, new: str, default: float, most: float) -> float:
            """In the spelling of transformers 4 or 5; with both, they must agree."""
            spelt = {name: fields.number(name, most=most) for name in (old, new)}
            spelt[f"rope_parameters.{new}"] = rope.number(new, most=most)
            given = {name: value for name, value in spelt.items() if value is not None}
            if len(set(given.values())) > 1:
                said = ", ".join(f"{name} is {value:g}" for name, value in given.items())
                raise SourceError(f"{where}: {said}: two spellings of one thing that disagree")
            return next(iter(given.values()), float(default))

        rope_type = rope.raw.get("rope_type", "default")
        if rope_type != "default" or raw.get("rope_scaling"):
            raise SourceError(f"{where}: scaled rotary embedding ({shown(rope_type)}); Pythia's is plain")
        config = cls(
            vocab_size=fields.size("vocab_size"),
            hidden_size=fields.size("hidden_size"),
            num_layers=fields.size("num_hidden_layers", most=MOST_LAYERS),
            num_heads=fields.size("num_attention_heads"),
            intermediate_size=fields.size("intermediate_size"),
            max_positions=fields.size("max_position_embeddings", 2048),
            rotary_pct=rotary("rotary_pct", "partial_rotary_factor", 0.25, 1.0),
            rotary_base=rotary("rotary_emb_base", "rope_theta", 10000, 1e30),
            layer_norm_eps=fields.number("layer_norm_eps", 1e-5, most=1.0),
        )
        if config.hidden_size % config.num_heads:
            raise SourceError(
                f"{where}: hidden_size {config.hidden_size} is not a multiple of num_attention_heads {config.num_heads}"
            )
        if config.rotary_dim % 2 or not 2 <= config.rotary_dim <= config.head_dim:
            raise SourceError(
                f"{where}: rotary_pct {config.rotary_pct} of head_dim {config.head_dim} turns "
                f"{config.rotary_dim} dimensions; an even number of 2 or more is needed"
            )
        # Where they are absent, the defaults of transformers' GPTNeoXConfig hold.
        bos = raw.get("bos_token_id", 0)
        return replace(
            config,
            bos_token_id=bos if type(bos) is int and 0 <= bos < config.vocab_size else None,
            eos_token_ids=token_ids(raw, "eos_token_id", DEFAULT_EOS, config.vocab_size, where),
        )

    def to_dict(self, dtype: str = "float32") -> dict[str, Any]:
        """`config.json` with the rotary fields in both spellings, so that any consumer finds its own."""
        return {
            "architectures": ["GPTNeoXForCausalLM"],
            "attention_bias": True,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": spelt(self.eos_token_ids),
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


@dataclass(frozen=True)
class _Fields:
    """The fields of one object of a configuration, each held to a kind and to bounds; null counts as absent."""

    raw: Mapping[str, Any]
    where: str
    prefix: str = ""

    def size(self, name: str, default: int | None = None, most: int = MOST) -> int:
        """A whole number of 1 or more, which must be there where it has no default."""
        if self.raw.get(name) is None and default is None:
            raise SourceError(
                f"{self.where}: no `{self.prefix}{name}`, which a GPT-NeoX configuration must have",
                hint="Is this the directory of a Pythia checkpoint?",
            )
        return self.whole(name, default, least=1, most=most)

    def whole(self, name: str, default: int | None = None, least: int = -MOST, most: int = MOST) -> int:
        found = self.raw.get(name)
        found = default if found is None else found
        if type(found) is not int or not least <= found <= most:  # True is an int to Python
            self._refuse(name, found, f"a whole number from {least:,} to {most:,}")
        return found

    @overload
    def number(self, name: str, default: None = None, *, most: float) -> float | None: ...
    @overload
    def number(self, name: str, default: float, *, most: float) -> float: ...
    def number(self, name: str, default: float | None = None, *, most: float) -> float | None:
        """A number above 0."""
        found = self.raw.get(name)
        if found is None:
            return default
        if type(found) not in (int, float) or not 0 < found <= most:  # a NaN is neither
            self._refuse(name, found, f"a number above 0, at most {most:g},")
        return float(found)

    def object(self, name: str) -> Mapping[str, Any]:
        found = self.raw.get(name)
        if found is not None and not isinstance(found, Mapping):
            self._refuse(name, found, "an object")
        return found or {}

    def _refuse(self, name: str, found: Any, expected: str) -> NoReturn:
        raise SourceError(f"{self.where}: `{self.prefix}{name}` is {shown(found)}; {expected} was expected")


def token_ids(raw: Mapping[str, Any], name: str, default: int | None, vocab_size: int, where: str) -> tuple[int, ...]:
    """Return a field that is a token, several, or null: none.

    Raises:
        SourceError: one is no token of the model.
    """
    found = raw.get(name, default)
    listed = found if isinstance(found, list) else [] if found is None else [found]
    for token in listed:
        if type(token) is not int or not 0 <= token < vocab_size:
            raise SourceError(
                f"{where}: {name} is {shown(token)}; a token of this model, from 0 to {vocab_size - 1:,}, was expected",
                hint=f"Set it to the token that ends a text (every Pythia has 0), or to null for none, in {where}.",
            )
    return tuple(dict.fromkeys(listed))


def spelt(tokens: tuple[int, ...]) -> int | list[int] | None:
    """Return end tokens as the files of transformers spell them."""
    return list(tokens) if len(tokens) > 1 else next(iter(tokens), None)


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
