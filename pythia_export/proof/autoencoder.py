"""Sparse autoencoders in SAELens's form, `cfg.json` and `sae_weights.safetensors`, read without SAELens.

With ``h = x W_enc + b_enc``, x the activation less `b_dec` where the configuration says so:

    standard   relu(h)
    jumprelu   relu(h) where h is above the feature's threshold, else 0; BatchTopK is stored so
    topk       relu(h) of the k largest h, else 0
    gated      relu(exp(r_mag) x W_enc + b_mag) where x W_enc + b_gate is above 0, else 0

and ``a W_dec + b_dec`` gives the activation back. What SAELens does besides, this does too: it may normalise x, and
a topk may weigh its h by the length of what a feature writes. Computed in float32, whatever the weights are stored in.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ..base.errors import IntegrityError, RecipeError, SourceError
from ..base.strict_json import read_object, shown
from ..checkpoint.header import read_header
from ..checkpoint.read import StoredTensor
from ..graph.targets import SUMMED
from ..model.hooks import hooks_of, tap_of
from ..model.neox import NeoXConfig

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
DEEPEST = 3  # folders below the one that is given
_HINT = "--sae takes a folder of SAELens: cfg.json and sae_weights.safetensors, or folders that hold them."
_UNTRAINED = "Save it with SAELens's `save_inference_model`, which folds what training needed into the weights."

Architecture = Literal["standard", "jumprelu", "topk", "gated"]
Normalisation = Literal["none", "constant_norm_rescale", "layer_norm"]
_OF_TRAINING = ("batchtopk", "matryoshka_batchtopk")  # SAELens stores them as jumprelu once they are trained
_ENCODER = {
    "standard": ("b_enc",), "jumprelu": ("b_enc", "threshold"), "topk": ("b_enc",),
    "gated": ("b_gate", "b_mag", "r_mag"),
}  # fmt: skip
_LN_EPS = 1e-5  # SAELens's own, added to the standard deviation


class _Config(BaseModel):
    """What is read of cfg.json; SAELens writes more. `strict`: a number in quotes is none."""

    model_config = ConfigDict(extra="ignore", strict=True)

    architecture: str = "standard"
    d_in: int = Field(ge=1, le=1 << 30)
    d_sae: int = Field(ge=1, le=1 << 30)
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    reshape_activations: str = "none"
    rescale_acts_by_decoder_norm: bool = False
    k: int = Field(100, ge=1)
    activation_fn: str = "relu"
    hook_name: str
    hook_head_index: int | None = None
    model_from_pretrained_kwargs: dict[str, Any] = {}


@dataclass(frozen=True)
class Autoencoder:
    """One that fits a model: where it reads, and how it computes.

    name: its folder, relative to the one that was given.
    hook: where it reads, by this package's name. layer: the block in which that value comes up. head: of one head
    alone. k: of a topk.
    """

    name: str
    folder: Path
    architecture: Architecture
    normalisation: Normalisation
    hook: str
    layer: int
    head: int | None
    d_in: int
    d_sae: int
    k: int
    centred: bool
    by_length: bool

    @cached_property
    def sha256(self) -> str:
        """Hash of its weights."""
        return _sha256(self.folder / WEIGHTS)

    def loaded(self, device: torch.device) -> Loaded:
        """Read its weights, as float32."""
        tensors = {name: tensor.read().to(device).float() for name, tensor in _stored(self.folder).items()}
        return Loaded(self, tensors)


@dataclass(frozen=True)
class Loaded:
    """An autoencoder with its weights in memory: W_enc [d_in, d_sae], W_dec [d_sae, d_in]."""

    of: Autoencoder
    weights: dict[str, Tensor]

    def encode(self, x: Tensor) -> Tensor:
        """Return the features [N, d_sae] of activations x [N, d_in], both float32."""
        w, of = self.weights, self.of
        x = self._normalised(x)
        x = x - w["b_dec"] if of.centred else x
        h = x @ w["W_enc"]
        if of.architecture == "gated":
            return torch.relu(h * w["r_mag"].exp() + w["b_mag"]) * (h + w["b_gate"] > 0)
        h = h + w["b_enc"]
        if of.architecture == "jumprelu":
            return torch.relu(h) * (h > w["threshold"])
        if of.architecture == "topk":
            h = h * self._lengths() if of.by_length else h
            most = torch.topk(h, of.k, dim=-1, sorted=False)
            return torch.zeros_like(h).scatter_(-1, most.indices, most.values.relu())
        return torch.relu(h)

    def decode(self, features: Tensor, x: Tensor) -> Tensor:
        """Return what the features [N, d_sae] of x [N, d_in] give back, [N, d_in]."""
        w = self.weights
        features = features / self._lengths() if self.of.by_length else features
        return self._as_it_was(features @ w["W_dec"] + w["b_dec"], x)

    def _lengths(self) -> Tensor:
        lengths: Tensor = self.weights["W_dec"].norm(dim=-1)
        return lengths

    def _normalised(self, x: Tensor) -> Tensor:
        match self.of.normalisation:
            case "constant_norm_rescale":
                scale: Tensor = math.sqrt(self.of.d_in) / x.norm(dim=-1, keepdim=True)
                return x * scale
            case "layer_norm":
                centred = x - x.mean(-1, keepdim=True)
                return centred / (centred.std(-1, keepdim=True) + _LN_EPS)
            case _:
                return x

    def _as_it_was(self, y: Tensor, x: Tensor) -> Tensor:
        """Undo what `_normalised` did to x."""
        match self.of.normalisation:
            case "constant_norm_rescale":
                scale: Tensor = x.norm(dim=-1, keepdim=True) / math.sqrt(self.of.d_in)
                return y * scale
            case "layer_norm":
                return y * x.std(-1, keepdim=True) + x.mean(-1, keepdim=True)
            case _:
                return y


def autoencoders(root: Path, config: NeoXConfig, products: int = 4, *, weights: bool = True) -> tuple[Autoencoder, ...]:
    """Return the autoencoders of a folder, itself one or up to `DEEPEST` folders above them, each fit for a model whose
    layers are quantised as so many products. Every weight is read once, unless `weights` is false.

    Raises:
        SourceError: there is none, a file is missing, or it is of a kind or a width that cannot be computed here.
        RecipeError: it reads at a place that this model does not have, or that so few products do not compute.
        IntegrityError: its files are damaged, or its tensors are not those of its configuration.
        NumericsError: a weight is NaN or infinite.
    """
    if (root / CONFIG).exists():
        folders = [root]
    else:
        folders = sorted(path.parent for deep in range(1, DEEPEST + 1) for path in root.glob("*/" * deep + CONFIG))
    if not folders:
        there = "holds none, nor do folders in it" if root.is_dir() else "no such folder"
        raise SourceError(f"{root}: no sparse autoencoder: {there}", hint=_HINT)
    found = []
    for folder in folders:
        one = _opened(
            folder, folder.resolve().name if folder == root else str(folder.relative_to(root)), config, weights
        )
        if products == 2 and tap_of(one.hook)[0].name in SUMMED:
            raise RecipeError(
                f"{folder}: reads {one.hook}, which an artifact of products = 2 does not compute by itself"
            )
        found.append(one)
    return tuple(found)


def fingerprint(found: tuple[Autoencoder, ...]) -> str:
    """Return a hash of all that their figures depend on."""
    parts = [(one.name, _sha256(one.folder / CONFIG), one.sha256) for one in found]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _opened(folder: Path, name: str, model: NeoXConfig, weights: bool) -> Autoencoder:
    path = folder / CONFIG
    given = read_object(path, error=SourceError, hint=_HINT)
    try:
        config = _Config.model_validate(_flat(given))
    except ValidationError as e:
        wrong = e.errors()[0]
        raise SourceError(f"{path}: `{'.'.join(map(str, wrong['loc']))}`: {wrong['msg']}", hint=_HINT) from None
    architecture = _architecture(config, path)
    hook, layer, width = _place(config, path, model)
    if config.d_in != width:
        raise SourceError(
            f"{path}: reads {config.d_in:,} numbers at {config.hook_name}; this model has {width:,} there",
            hint="It is of another model, or of another size of this one.",
        )
    if architecture == "topk" and config.k > config.d_sae:
        raise SourceError(f"{path}: k = {config.k:,} of {config.d_sae:,} features")
    stored = _stored(folder)
    _require_shapes(folder / WEIGHTS, stored, architecture, config)
    for tensor in stored.values() if weights else ():
        tensor.read()  # says where it is not finite, before hours have gone into the proof
    if config.normalize_activations not in get_args(Normalisation):
        known = ", ".join(get_args(Normalisation))
        raise SourceError(
            f"{path}: normalize_activations = {shown(config.normalize_activations)}; {known} are computed here. What "
            "else it needs is not in its files",
            hint=_UNTRAINED,
        )
    return Autoencoder(
        name=name, folder=folder,
        architecture=architecture, normalisation=config.normalize_activations,  # type: ignore[arg-type]
        hook=hook, layer=layer, head=config.hook_head_index, d_in=config.d_in, d_sae=config.d_sae, k=config.k,
        centred=config.apply_b_dec_to_input,
        by_length=architecture == "topk" and config.rescale_acts_by_decoder_norm,
    )  # fmt: skip


def _flat(given: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a configuration of any version: 6 has a part of them in `metadata`, before they had other
    names and defaults (SAELens's own `handle_pre_6_0_config`)."""
    metadata = given.get("metadata")
    found = (metadata if isinstance(metadata, dict) else {}) | {k: v for k, v in given.items() if k != "metadata"}
    for old, new in (("hook_point", "hook_name"), ("hook_point_head_index", "hook_head_index"),
                     ("activation_fn_str", "activation_fn")):  # fmt: skip
        if old in found:
            found.setdefault(new, found.pop(old))
    kwargs = found.get("activation_fn_kwargs")
    if found.get("activation_fn") == "topk" and isinstance(kwargs, dict) and "k" in kwargs:
        found |= {"architecture": "topk", "k": kwargs["k"]}
    normalised = found.get("normalize_activations")
    if normalised is None or isinstance(normalised, bool):
        found["normalize_activations"] = "expected_average_only_in" if normalised else "none"
    return {name: value for name, value in found.items() if value is not None}


def _architecture(config: _Config, path: Path) -> Architecture:
    known = get_args(Architecture)
    if config.architecture not in known:
        raise SourceError(
            f"{path}: architecture {shown(config.architecture)}; {', '.join(known)} are computed here",
            hint=_UNTRAINED if config.architecture in _OF_TRAINING else
            "A transcoder gives back another value than it reads." if "transcoder" in config.architecture else "",
        )  # fmt: skip
    if config.activation_fn not in ("relu", "topk"):
        raise SourceError(f"{path}: activation_fn = {shown(config.activation_fn)}; relu or topk was expected")
    for key, value in config.model_from_pretrained_kwargs.items():
        if key.startswith(("center_", "fold_", "refactor_")) and value:
            raise SourceError(
                f"{path}: trained on a model that was changed before it ran ({key}); an artifact has the values of the "
                "model as published",
                hint="Only autoencoders of TransformerLens's `from_pretrained_no_processing` can be compared.",
            )
    return config.architecture  # type: ignore[return-value]


def _place(config: _Config, path: Path, model: NeoXConfig) -> tuple[str, int, int]:
    """Return the hook, the layer in which it comes up, and the numbers that it has there."""
    try:
        hooks = hooks_of([config.hook_name], model)
    except RecipeError as e:
        raise RecipeError(f"{path}: {e}", hint=e.hint) from None
    tap, layer = tap_of(hooks[0])
    head, widths = config.hook_head_index, {"hidden": model.hidden_size, "mlp": model.intermediate_size}
    if len(hooks) > 1 or tap.shape not in (*widths, "heads"):
        raise RecipeError(f"{path}: hook_name {config.hook_name!r} is no single place that has one vector per token")
    if head is not None and (tap.shape != "heads" or not 0 <= head < model.num_heads):
        raise RecipeError(f"{path}: hook_head_index {head} at {config.hook_name}: no such head there")
    at = layer if layer is not None else 0 if tap.name == "embed" else model.num_layers - 1
    return hooks[0], at, widths.get(tap.shape, model.hidden_size if head is None else model.head_dim)


def _stored(folder: Path) -> dict[str, StoredTensor]:
    path = folder / WEIGHTS
    try:
        found = {name: StoredTensor(path, name, entry) for name, entry in read_header(path).items()}
    except OSError as e:
        raise SourceError(f"{path}: {e.strerror}", hint=_HINT) from e
    scaling = found.pop("scaling_factor", None)
    if scaling is not None and not bool((scaling.read() == 1).all()):
        raise SourceError(f"{path}: has a scaling_factor of its own, which SAELens 6 no longer computes either")
    for tensor in found.values():
        tensor.require_float()
    return found


def _require_shapes(path: Path, stored: dict[str, StoredTensor], kind: Architecture, config: _Config) -> None:
    d_in, d_sae = config.d_in, config.d_sae
    expected = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)} | dict.fromkeys(
        _ENCODER[kind], (d_sae,)
    )
    for name, shape in expected.items():
        found = stored[name].shape if name in stored else None
        if found != shape:
            said = "is missing" if found is None else f"is {list(found)}"
            raise IntegrityError(f"{path}: {name} {said}; {kind} of this {CONFIG} has it as {list(shape)}")
    if more := sorted(set(stored) - set(expected)):
        raise IntegrityError(f"{path}: {more[0]} is no tensor of {kind}; {', '.join(expected)} were expected")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
