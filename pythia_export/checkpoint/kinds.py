"""What a folder or a repository is that is no checkpoint, by the names of its files: said, with what to do about it.

People give the folder that they have: an adapter, a Trainer's output, a training framework's own shards, another
runtime's format. All of them lack the same two files, and each has another way to a checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, cast

from ..base.errors import SourceError

ADAPTER_CONFIG = "adapter_config.json"
_SAVE = "`save_pretrained`"


@dataclass(frozen=True)
class Kind:
    """`what` completes "this is ..."; `hint` says how to come to a checkpoint."""

    what: str
    hint: str


# The first that matches any name, of which `*` matches slashes too: a folder's own marks before what may lie in any.
_BY_NAME: tuple[tuple[str, Kind], ...] = (
    (
        "*layer_[0-9]*-model_[0-9]*-model_states.pt",
        Kind(
            "a checkpoint of the GPT-NeoX library, in layers and ranks",
            "Convert it with that library's tools/ckpts/convert_neox_to_hf.py.",
        ),
    ),
    (
        "*.distcp",
        Kind(
            "a distributed checkpoint of PyTorch (FSDP), in shards by rank",
            "`accelerate merge-weights DIR OUT` writes model.safetensors; put config.json and tokenizer beside it.",
        ),
    ),
    (
        "*_model_states.pt",
        Kind(
            "a DeepSpeed checkpoint, in partitions by rank",
            "`python zero_to_fp32.py . OUT`, the script beside it, writes the weights; give the folder OUT, with "
            "config.json and tokenizer in it.",
        ),
    ),
    (
        "*.gguf",
        Kind("a GGUF model of llama.cpp", "Give the checkpoint that it was converted from."),
    ),
    (
        "*ggml*.bin",
        Kind("a GGML model of llama.cpp", "Give the checkpoint that it was converted from."),
    ),
    ("*.onnx", Kind("an ONNX export", "Give the checkpoint that it was exported from.")),
    ("*.engine", Kind("a TensorRT engine", "Give the checkpoint that it was built from.")),
    (
        "*tf_model*.h5",
        Kind(
            "a TensorFlow checkpoint",
            f"transformers 4 converts it: `from_pretrained(DIR, from_tf=True)`, then {_SAVE}.",
        ),
    ),
    (
        "*flax_model*.msgpack",
        Kind("a Flax checkpoint", f"transformers 4 converts it: `from_pretrained(DIR, from_flax=True)`, then {_SAVE}."),
    ),
    (
        "*.ckpt.index",
        Kind("a TensorFlow checkpoint", f"transformers 4 converts it: `from_pretrained(DIR, from_tf=True)`, {_SAVE}."),
    ),
    ("*.npz", Kind("weights of MLX or NumPy", "Give the checkpoint that they were converted from.")),
)
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt")
_NO_WEIGHTS = ("training_args.bin", "optimizer.*", "scheduler.*", "scaler.*", "rng_state*", "*adapter_model.*")


def recognised(names: Collection[str], read_json: Callable[[str], Any]) -> Kind | None:
    """What files of these names are together; None where they are nothing that is known.

    `names` are relative, with slashes, one folder deep at least. `read_json` gives the content of one of them.
    """
    top = {name for name in names if "/" not in name}
    if "manifest.json" in top and ("quantization.json" in top or "parity.json" in top):
        return Kind(
            "an artifact of pythia-export, not a checkpoint",
            "`pythia-export verify` and `generate` take it; `pythia-export dequantize` makes a checkpoint of it.",
        )
    if ADAPTER_CONFIG in top:
        return adapter_kind(read_json(ADAPTER_CONFIG))
    steps = sorted({m[1] for name in names if (m := re.match(r"(checkpoint-\d+)/config\.json$", name))}, key=_number)
    if steps:
        return Kind(
            f"a Trainer's output with {len(steps)} checkpoint{'s' * (len(steps) > 1)} in it, {steps[-1]} the last",
            f"Give one of them: DIR/{steps[-1]}.",
        )
    snapshots = sorted({name.split("/")[1] for name in names if name.startswith("snapshots/")})
    if snapshots:
        return Kind("a repository's folder in the hub's cache", f"Give a snapshot in it: DIR/snapshots/{snapshots[0]}.")
    adapters = sorted({name.split("/")[0] for name in names if name.endswith(f"/{ADAPTER_CONFIG}")})
    if adapters:
        return Kind(
            "a folder of adapters", f"Give the base as `path`, and as `adapter` one of them: DIR/{adapters[0]}."
        )
    for name in ("quantize_config.json", "quant_config.json"):
        if name in top:
            method = "AWQ" if name.startswith("quant_") else "GPTQ"
            return _quantised(method, name, top)
    for pattern, kind in _BY_NAME:
        if any(fnmatch(name, pattern) for name in names):
            return kind
    return _other_weights(top, names)


def _quantised(method: str, settings: str, top: Collection[str]) -> Kind:
    """A quantiser's own file of settings; its weights have a name of their own, or are not there."""
    found = f"a checkpoint quantised already, by {method} ({settings})"
    weights = sorted(name for name in top if name.endswith(".safetensors"))
    if len(weights) != 1:
        return Kind(found, _ORIGINAL)
    return Kind(
        f"{found}, whose weights are called {weights[0]}",
        f"Rename {weights[0]} to model.safetensors, and `pythia-export import` takes it. Or: {_ORIGINAL}",
    )


def _other_weights(top: Collection[str], names: Collection[str]) -> Kind | None:
    weights = sorted(
        name for name in top
        if any(fnmatch(name, p) for p in _WEIGHTS) and not any(fnmatch(name, p) for p in _NO_WEIGHTS)
    )  # fmt: skip
    shards = [name for name in weights if re.search(r"-\d+-of-\d+\.", name)]
    if shards:
        index = "model.safetensors.index.json" if shards[0].endswith("safetensors") else "pytorch_model.bin.index.json"
        return Kind(f"a set of shards without its index ({shards[0]})", f"Copy {index} beside them.")
    if weights and not {"model.safetensors", "pytorch_model.bin"} & set(weights):
        to = "model.safetensors" if weights[0].endswith("safetensors") else "pytorch_model.bin"
        return Kind(
            f"a folder with weights of another name ({', '.join(weights[:3])})",
            f"Is it the whole model's state dict? Rename it to {to}.",
        )
    nested = sorted({name.rpartition("/")[0] for name in names if name.endswith("/config.json")})
    if nested:
        return Kind("a folder with checkpoints in folders of their own", f"Give one of them: DIR/{nested[0]}.")
    return None


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])


# Adapters


def adapter_kind(raw: Any) -> Kind:
    """By the content of adapter_config.json."""
    raw = raw if isinstance(raw, dict) else {}
    base, method = raw.get("base_model_name_or_path"), raw.get("peft_type")
    of = f" of {base}" if isinstance(base, str) and base else ""
    named = f"an adapter ({method})" if isinstance(method, str) else "an adapter"
    given = base if of else "BASE"
    return Kind(
        f"{named}{of}, not a whole model",
        f"Give its base as the model ({given}) and this folder as `adapter` in [model], or by --adapter DIR; it is "
        "merged while it is read. Or merge it first: `PeftModel.from_pretrained(base, DIR).merge_and_unload()`, "
        f"{_SAVE}.",
    )


# Quantised already

_ORIGINAL = (
    f"Give the original checkpoint. If there is none: load it with its own tool, `model.dequantize()`, {_SAVE}, and "
    "give that folder."
)
_TENSORS = (  # (what a name ends with, by what)
    (("qweight", "qzeros", "g_idx"), "GPTQ or AWQ"),
    (("SCB", "weight_format"), "bitsandbytes, 8 bits"),
    (("absmax", "quant_map", "nested_absmax", "bitsandbytes__nf4", "bitsandbytes__fp4"), "bitsandbytes, 4 bits"),
    (("weight_packed", "weight_shape", "weight_zero_point"), "compressed-tensors"),
    (("weight_scale", "weight_scale_inv", "input_scale"), "8-bit floats"),
    (("W_q",), "HQQ"),
    (("_data", "_scale"), "Quanto"),
    (("codebooks", "codes"), "AQLM"),
    (("scales", "biases"), "MLX"),
)
IMPORTED = ("gptq", "awq", "auto-round", "compressed-tensors")  # whose codes `import` takes as they are
_IMPORT = "`pythia-export import` takes it as it is. Or: "
_IMPORTED_TENSORS = ("GPTQ or AWQ", "compressed-tensors")
_OF_METHOD = {
    "bitsandbytes": lambda q: " in 4 bits" if q.get("load_in_4bit") else " in 8 bits" if q.get("load_in_8bit") else "",
}


def require_plain_config(raw: Mapping[str, Any], where: str) -> None:
    """SourceError where config.json says that the weights are quantised already."""
    quantised = raw.get("quantization_config") or raw.get("compression_config") or raw.get("quantization")
    if not quantised:
        return
    q: dict[str, Any] = cast("dict[str, Any]", quantised) if isinstance(quantised, dict) else {}
    mlx = "MLX" if "quantization" in raw and not q.get("quant_method") else None
    loads = "bitsandbytes" if q.get("load_in_4bit") or q.get("load_in_8bit") else None
    method = q.get("quant_method") or q.get("quant_type") or loads or mlx or "a method that it does not name"
    bits = q.get("bits") or q.get("w_bit")
    more = f" in {bits} bits" if bits else _OF_METHOD.get(str(method), lambda _: "")(q)
    imports = _IMPORT if method in IMPORTED else ""
    raise SourceError(
        f"{where}: this checkpoint is quantised already, by {method}{more}",
        hint=f"{imports}{_ORIGINAL} If its weights are plain floats, take `quantization_config` out of config.json.",
    )


def require_plain_tensors(names: Collection[str], where: str) -> None:
    """SourceError where names of tensors are those of a quantised model."""
    for endings, method in _TENSORS:
        found = next((name for name in sorted(names) if name.rpartition(".")[2] in endings), None)
        if found is not None:
            raise SourceError(
                f"{where}: this checkpoint is quantised already, by {method}: it has {found}",
                hint=f"{_IMPORT if method in _IMPORTED_TENSORS else ''}{_ORIGINAL}",
            )
