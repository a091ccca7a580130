"""Where to look first if the export lost the numbers: the first operator of a graph that is not what it should be.

A copy of the graph gives out what every operator of interest computes. Each is held to torch, in float64, **on the
inputs that the graph itself gave it**. So an error does not travel: behind a fault all other operators still agree to
the last digits of float32, and a fault of 1e-5 in one layer is not drowned by the rounding of the layers before. One
pass is looked at, then a token over the cache; then both by the native kernels.

A value that is given out cannot be fused away: a fault of one of ONNX Runtime's fusions alone is not seen here. Then no
operator diverges, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from ..base.native_library import kernels_path
from ..base.progress import SILENT, Progress
from ..graph.decoder import kv_cache
from ..graph.ops import DOMAIN
from ..graph.trunk import without_trunk
from ..model.block import DENSE, DOWN, UP, Block, Rotary, activate, attention, final_norm, head
from ..model.neox import EMBEDDING, LINEARS, NORMS, QKV, NeoXConfig, cache_parts
from ..records.parity import FirstDivergence
from ..runtime.onnxruntime import onnxruntime
from ..runtime.snapshot import as_blobs
from ..weights.layout import FUSED_IN, FUSED_OUT, packed_qkv_rows
from .metrics import relative_error
from .subject import Subject

TOKENS = 64
# Relative to the operator's output, root of squares. Single operators of float32 stay below 1e-6.
TOLERANCE = {"float32": 5e-6, "float16": 1e-2}
CACHE_TOLERANCE = {"float32": 5e-6, "float16": 1e-2, "int8": 5e-2}


def first_divergence(subject: Subject, window: np.ndarray, progress: Progress = SILENT) -> FirstDivergence:
    """`layer`, None outside the blocks; `op`; `node`; `error`, None where the graph lacks the value; `tolerance`; `way`
    ("one pass" or "over the cache"); `speed`; `checked` and `diverging`, numbers of operators.

    Where none diverges `op` is None. `window` [S] int64; its first tokens are used, at accuracy level 0.
    """
    export, ids, checked = subject.export, window[:TOKENS], 0
    ours = any(node.domain == DOMAIN for node in subject.model.graph.node)
    library = kernels_path("cuda" if export.target == "cuda" else "cpu") if ours else None
    libraries = [None, *([library] if library else [])]
    tolerance = TOLERANCE[export.dtype], max(TOLERANCE[export.dtype], CACHE_TOLERANCE[export.cache_dtype])
    with progress.track("Looking for the first operator that differs", len(libraries), "speeds") as advance:
        for library in libraries:
            taps = _Taps(subject, library)
            one_pass = taps.run(ids[:-1])
            over_cache = taps.run(ids[-1:])
            for way, values, part, before in (
                ("one pass", one_pass, ids[:-1], None),
                ("over the cache", over_cache, ids[-1:], one_pass),
            ):
                found = list(_compared(subject, taps.places, part, values, before))
                checked += len(found)
                wrong = [x for x in found if not relative_error(x[3], x[4]) <= tolerance[x[1] == "RotaryAttention"]]
                if wrong:
                    layer, op, value, got, expected = wrong[0]
                    return FirstDivergence(
                        layer=layer,
                        op=op,
                        node=value.removesuffix("/out0"),
                        error=None if got is None else relative_error(got, expected),
                        tolerance=tolerance[op == "RotaryAttention"],
                        way=way,
                        speed="function" if library is None else "native",
                        checked=checked,
                        diverging=len(wrong),
                    )
            advance(1)
    rounded = export.cache_dtype if export.cache_dtype != export.dtype else None
    return FirstDivergence(layer=None, op=None, checked=checked, diverging=0, rounded_cache=rounded)


Compared = tuple[int | None, str, str, Tensor | None, Tensor]  # layer, operator, value, what the graph gave, expected


def _compared(
    subject: Subject,
    places: dict[str, str],
    ids: np.ndarray,
    values: dict[str, Tensor],
    before: dict[str, Tensor] | None,
) -> Iterator[Compared]:
    """In the order of the graph. A value that is missing counts as zero for what reads it."""
    config = subject.config

    def weights(name: str) -> Tensor:
        return subject.stored.tensor(name).double()

    def given(place: str, like: Tensor) -> Tensor:
        return values.get(places[place], torch.zeros_like(like))

    def compared(layer: int | None, op: str, place: str, expected: Tensor) -> Compared:
        value = places[place]
        return layer, op, value, values.get(value), expected

    rows = torch.from_numpy(packed_qkv_rows(config))
    T = len(ids) + (0 if before is None else len(next(iter(before.values()))[0]))
    rotary = Rotary.of(config, T, torch.float64)
    x = weights(f"{EMBEDDING}.weight")[torch.from_numpy(ids.copy())][None]
    yield compared(None, "embed_in", "embedding", x)
    x = given("embedding", x)
    for layer in range(config.num_layers):
        block, path = Block(config, layer, weights), f"{layer}."
        for_attention = block.normed(x, NORMS[0])
        fused = f"{path}both" in places
        if fused:
            yield compared(layer, "LayerNormalization", f"{path}both", for_attention)
            for_attention = for_mlp = given(f"{path}both", for_attention)
        else:
            yield compared(layer, "input_layernorm", f"{path}ln1", for_attention)
            for_attention = given(f"{path}ln1", for_attention)
        qkv = block.linear(for_attention, QKV)[..., rows]
        yield compared(layer, "query_key_value", f"{path}qkv", qkv)
        qkv = given(f"{path}qkv", qkv)
        whole = qkv if before is None else torch.cat([before.get(places[f"{path}qkv"], qkv), qkv], 1)
        mixed = attention(whole[..., rows.argsort()].contiguous(), config, rotary)[:, -len(ids) :]
        yield compared(layer, "RotaryAttention", f"{path}attention", mixed)
        mixed = given(f"{path}attention", mixed)
        dense = block.linear(mixed, DENSE)
        middle = x
        if not config.parallel_residual:
            yield compared(layer, "dense", f"{path}dense", dense)
            middle = x + given(f"{path}dense", dense)
            yield compared(layer, "attention residual", f"{path}middle", middle)
            middle = given(f"{path}middle", middle)
        if not fused:
            for_mlp = block.normed(middle, NORMS[1])
            yield compared(layer, "post_attention_layernorm", f"{path}ln2", for_mlp)
            for_mlp = given(f"{path}ln2", for_mlp)
        up = block.linear(for_mlp, UP)
        yield compared(layer, "dense_h_to_4h", f"{path}up", up)
        active = activate(given(f"{path}up", up), config.activation)
        op = places[f"{path}active"].split("/")[-2]
        yield compared(layer, op, f"{path}active", active)
        active = given(f"{path}active", active)
        down = block.linear(active, DOWN)
        if fused:
            yield compared(layer, FUSED_OUT, f"{path}out", dense + down)
            out = x + given(f"{path}out", dense)
        else:
            if config.parallel_residual:
                yield compared(layer, "dense", f"{path}dense", dense)
                middle = x + given(f"{path}dense", dense)
            yield compared(layer, "dense_4h_to_h", f"{path}down", down)
            out = middle + given(f"{path}down", down)
        yield compared(layer, "residual", f"{path}residual", out)
        x = given(f"{path}residual", out)
    last = final_norm(x, config, weights)
    yield compared(None, "final_layer_norm", "norm", last)
    yield compared(None, "embed_out", "logits", head(given("norm", last), weights))


class _Taps:
    """A copy of the graph whose inner values are outputs; its cache lies outside and is handed from call to call."""

    def __init__(self, subject: Subject, library: Path | None) -> None:
        config, export = subject.config, subject.export
        copy = without_trunk(subject.graph(0))
        made = {output for node in copy.graph.node for output in node.output}
        self.places = _places(config, made)
        self._wanted = [value for value in dict.fromkeys(self.places.values()) if value in made]
        already = {output.name for output in copy.graph.output}
        copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._wanted if name not in already)
        ort = onnxruntime()
        options = ort.SessionOptions()
        if library is not None:
            options.register_custom_ops_library(str(library))
        options.log_severity_level = 3
        graph_bytes, folder = as_blobs(copy.SerializeToString(), subject.folder)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        providers = ["CUDAExecutionProvider"] if export.target == "cuda" else []
        self._session = ort.InferenceSession(graph_bytes, options, providers=[*providers, "CPUExecutionProvider"])
        room = TOKENS if kv_cache(export) == "shared" else 0
        shape, kept = (1, config.num_heads, room, config.head_dim), export.cache_dtype
        self._past = {
            f"{layer}.{part}": np.zeros(shape[:3], np.float32) if part.endswith("scale") else np.zeros(shape, kept)
            for layer in range(config.num_layers)
            for part in cache_parts(kept, export.static_scales)
        }
        self._length = 0

    def run(self, ids: np.ndarray) -> dict[str, Tensor]:
        """The values [1, T, width] of these tokens [T], behind those of the calls before; float64."""
        total = self._length + len(ids)
        feeds = {
            "input_ids": ids[None],
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(self._length, total)[None],
        } | {f"past_key_values.{name}": value for name, value in self._past.items()}
        names = [*self._wanted, *(f"present.{name}" for name in self._past)]
        found = dict(zip(names, self._session.run(names, feeds), strict=True))
        self._past = {name: found[f"present.{name}"] for name in self._past}
        self._length = total
        return {name: torch.from_numpy(found[name]).double() for name in self._wanted}


def _is_activation(value: str, path: str) -> bool:
    """Say whether `value` is the activation: alone below `path`, its name has no part for a linear or a step."""
    return value.startswith(path) and value.count("/") == path.count("/") + 1


def _places(config: NeoXConfig, made: set[str]) -> dict[str, str]:
    """Which value of the graph stands for what; `made` are the values that it has."""

    def linear(path: str) -> str:
        return f"{path}/Add/out0" if f"{path}/Add/out0" in made else f"{path}/MatMul/out0"

    places = {"embedding": "/embed_in/Gather/out0"}
    for name in ("/embed_in/GatherBlockQuantized/out0", "/embed_in/Cast/out0"):
        if name in made:
            places["embedding"] = name
    for layer in range(config.num_layers):
        path, key = f"/layers.{layer}", f"{layer}."
        if f"{path}/{FUSED_IN}/qkv" in made:
            places[f"{key}both"] = f"{path}/LayerNormalization/out0"
            places[f"{key}qkv"], places[f"{key}up"] = f"{path}/{FUSED_IN}/qkv", f"{path}/{FUSED_IN}/up"
            places[f"{key}out"] = linear(f"{path}/{FUSED_OUT}")
        else:
            places[f"{key}ln1"] = f"{path}/input_layernorm/LayerNormalization/out0"
            places[f"{key}ln2"] = f"{path}/post_attention_layernorm/LayerNormalization/out0"
            for short, name in zip(("qkv", "dense", "up", "down"), LINEARS, strict=True):
                places[f"{key}{short}"] = linear(f"{path}/{name.replace('.', '/')}")
        places[f"{key}attention"] = f"{path}/attention/RotaryAttention/out0"
        found = (value for value in sorted(made) if _is_activation(value, f"{path}/mlp/"))
        places[f"{key}active"] = next(found, f"{path}/mlp/Gelu/out0")
        places[f"{key}middle"] = f"{path}/attention/residual/Add/out0"
        places[f"{key}residual"] = f"{path}/residual/Add/out0"
    return places | {"norm": "/final_layer_norm/LayerNormalization/out0", "logits": "logits"}
