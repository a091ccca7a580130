"""GPT-NeoX: its configuration, and THE table of its tensors. No torch here.

Pythia's block is ``x + attn(ln1(x)) + mlp(ln2(x))`` (parallel residual). RedPajama-INCITE and rinna have a sequential
one: ``m = x + attn(ln1(x))``, then ``m + mlp(ln2(m))``. The fused QKV product is laid out ``[heads, 3, head_dim]``;
rotary embedding turns the first ``rotary_dim`` dimensions of each head, half-split. What is supported of the family is
the table in docs/reference/sources.md; the rest is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, Literal, NoReturn, overload

from ..base.errors import SourceError
from ..base.strict_json import shown
from .rope import PLAIN, Rope

Role = Literal["embedding", "linear", "bias", "norm", "head"]

MOST = 2**31 - 1  # of any size: beyond it no index of ONNX Runtime and no checkpoint goes
MOST_LAYERS = 10_000  # what loops over layers ends; the deepest transformers have a thousand

# Stored by some revisions, derived from the configuration: never read.
IGNORED_BUFFERS = ("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq")

QKV = "attention.query_key_value"
LINEARS = (QKV, "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
NORMS = ("input_layernorm", "post_attention_layernorm")
EMBEDDING = "gpt_neox.embed_in"
FINAL_NORM = "gpt_neox.final_layer_norm"
HEAD = "embed_out"

Activation = Literal["gelu", "gelu_tanh", "gelu_10", "quick_gelu", "relu", "relu2", "silu", "mish"]
# What `hidden_act` may be, by transformers' names (activations.py), and the function that each of them computes.
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_10": "gelu_10", "quick_gelu": "quick_gelu",
    "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_accurate": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu", "relu2": "relu2", "silu": "silu", "swish": "silu", "mish": "mish",
}  # fmt: skip


DEFAULT_EOS = 2  # of transformers, for a config.json that has no eos_token_id; a null is none


def layer_prefix(layer: int) -> str:
    return f"gpt_neox.layers.{layer}"


def cache_parts(dtype: str, static_scales: bool = False) -> tuple[str, ...]:
    """What a layer caches, by the names that the graph gives it: codes of int8 have scales, of each head and token,
    unless their scales are constants of the graph."""
    by_token = dtype == "int8" and not static_scales
    return ("key", "value", "key_scale", "value_scale") if by_token else ("key", "value")


def cache_bytes(config: NeoXConfig, dtype: str, tokens: int, static_scales: bool = False) -> int:
    """Return the bytes of a cache of `dtype` with room for so many tokens, over all layers and heads."""
    a_scale = 4 if dtype == "int8" and not static_scales else 0
    a_head = config.head_dim * {"float32": 4, "float16": 2, "int8": 1}[dtype] + a_scale
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
    """One model's architecture.

    hidden_act: one of `ACTIVATIONS`. attention_bias: QKV and dense have biases; h_to_4h and 4h_to_h always do.
    tied_head: the head is the embedding's matrix; an artifact stores each in a form of its own.
    """

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
    parallel_residual: bool = True
    hidden_act: str = "gelu"
    attention_bias: bool = True
    tied_head: bool = False
    rope: Rope = PLAIN

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def eos_token_id(self) -> int | None:
        """The first end token, which also stands between documents; None where there is none."""
        return next(iter(self.eos_token_ids), None)

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that turn: an even number."""
        return self.rotary_spread + self.rotary_spread % 2

    @property
    def rotary_spread(self) -> int:
        """Dimensions that the frequencies are spread over; odd ones are legal, and then one more dimension turns."""
        return int(self.head_dim * self.rotary_pct)

    @property
    def activation(self) -> Activation:
        return ACTIVATIONS[self.hidden_act]

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

        if raw.get("model_type") != "gpt_neox":
            raise SourceError(f"{where}: model_type is {shown(raw.get('model_type'))}; 'gpt_neox' was expected")
        hidden_act = raw.get("hidden_act", "gelu")
        if not isinstance(hidden_act, str) or hidden_act not in ACTIVATIONS:
            raise SourceError(
                f"{where}: hidden_act is {shown(hidden_act)}, which is not supported",
                hint=f"These are: {', '.join(ACTIVATIONS)}.",
            )
        rope = _Fields(fields.object("rope_parameters"), where, "rope_parameters.")

        def rotary(old: str, new: str, default: float, most: float) -> float:
            """In the spelling of transformers 4 or 5; with both, they must agree.

            Outside `rope_parameters` transformers writes the new name and reads the old one, whose default it takes.
            """
            spelt = {old: fields.number(old, most=most), f"rope_parameters.{new}": rope.number(new, most=most)}
            given = {name: value for name, value in spelt.items() if value is not None}
            repeated = fields.number(new, most=most)
            if repeated is not None:
                given = (given or {f"{old} (left out)": float(default)}) | {new: repeated}
            if len(set(given.values())) > 1:
                said = ", ".join(f"{name} is {value:g}" for name, value in given.items())
                raise SourceError(f"{where}: {said}: two spellings of one thing that disagree")
            return next(iter(given.values()), float(default))

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
            parallel_residual=fields.flag("use_parallel_residual", True),
            hidden_act=hidden_act,
            attention_bias=fields.flag("attention_bias", True),
            tied_head=fields.flag("tie_word_embeddings", False),
            rope=_scaling({name: fields.object(name) for name in ("rope_scaling", "rope_parameters")}, where),
        )
        if config.hidden_size % config.num_heads:
            raise SourceError(
                f"{where}: hidden_size {config.hidden_size} is not a multiple of num_attention_heads {config.num_heads}"
            )
        if not 2 <= config.rotary_dim <= config.head_dim:
            raise SourceError(
                f"{where}: rotary_pct {config.rotary_pct} of head_dim {config.head_dim} turns "
                f"{config.rotary_dim} dimensions; 2 to {config.head_dim} were expected"
            )
        if config.rotary_base < 1 or config.rotary_base == 1 and config.rope.type == "yarn":
            raise SourceError(f"{where}: rotary_emb_base is {config.rotary_base:g}; more than 1 was expected")
        if raw.get("head_dim") not in (None, config.head_dim):
            raise SourceError(
                f"{where}: head_dim is {shown(raw['head_dim'])}; hidden_size / num_attention_heads is {config.head_dim}"
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
            "attention_bias": self.attention_bias,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": spelt(self.eos_token_ids),
            "hidden_act": self.hidden_act,
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
                **self.rope.to_dict(),
            },
            **({} if self.rope == PLAIN else {"rope_scaling": self.rope.to_dict()}),
            "rotary_emb_base": self.rotary_base,
            "rotary_pct": self.rotary_pct,
            "tie_word_embeddings": self.tied_head,
            "torch_dtype": dtype,
            "use_cache": True,
            "use_parallel_residual": self.parallel_residual,
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

    def flag(self, name: str, default: bool) -> bool:
        """True or false; null is none of these, and transformers 4 would take it for false."""
        found = self.raw.get(name, default)
        if not isinstance(found, bool):
            self._refuse(name, found, "true or false")
        return found

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


def _scaling(spelt: Mapping[str, Mapping[str, Any]], where: str) -> Rope:
    """How rotary frequencies are scaled, by `rope_scaling` of transformers 4 or `rope_parameters` of 5."""
    found = {name: Rope.from_dict(raw, f"{where}: {name}") for name, raw in spelt.items() if raw}
    if len(set(found.values())) > 1:
        said = " and ".join(f"{name} is {rope.to_dict()}" for name, rope in found.items())
        raise SourceError(f"{where}: {said}: two spellings of one thing that disagree")
    return next(iter(found.values()), PLAIN)


def has_bias(config: NeoXConfig, linear: str) -> bool:
    """Whether one of `LINEARS`, or the head, has a bias."""
    return linear != HEAD and (config.attention_bias or not linear.startswith("attention."))


def linear_shape(config: NeoXConfig, linear: str) -> tuple[int, int]:
    """``[out, in]`` of one of `LINEARS`, or of the head."""
    d, ff = config.hidden_size, config.intermediate_size
    return {
        QKV: (3 * d, d),
        "attention.dense": (d, d),
        "mlp.dense_h_to_4h": (ff, d),
        "mlp.dense_4h_to_h": (d, ff),
        HEAD: (config.vocab_size, d),
    }[linear]


def layer_tensors(config: NeoXConfig, layer: int) -> Iterator[TensorSpec]:
    prefix, d = layer_prefix(layer), config.hidden_size
    for norm in NORMS:
        yield TensorSpec(f"{prefix}.{norm}.weight", (d,), "norm", layer)
        yield TensorSpec(f"{prefix}.{norm}.bias", (d,), "norm", layer)
    for linear in LINEARS:
        shape = linear_shape(config, linear)
        yield TensorSpec(f"{prefix}.{linear}.weight", shape, "linear", layer)
        if has_bias(config, linear):
            yield TensorSpec(f"{prefix}.{linear}.bias", shape[:1], "bias", layer)


def tensors(config: NeoXConfig) -> Iterator[TensorSpec]:
    """Every tensor of a checkpoint, in the order in which they are streamed, by on-disk name.

    A tied head is the embedding, and none of its own.
    """
    yield TensorSpec(f"{EMBEDDING}.weight", (config.vocab_size, config.hidden_size), "embedding")
    for layer in range(config.num_layers):
        yield from layer_tensors(config, layer)
    yield TensorSpec(f"{FINAL_NORM}.weight", (config.hidden_size,), "norm")
    yield TensorSpec(f"{FINAL_NORM}.bias", (config.hidden_size,), "norm")
    if not config.tied_head:
        yield TensorSpec(f"{HEAD}.weight", (config.vocab_size, config.hidden_size), "head")
