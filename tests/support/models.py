"""Small GPT-NeoX models with random weights, in Hugging Face's form and in ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from safetensors.torch import save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from pythia_export.base.progress import SILENT
from pythia_export.calibrate import quantize_stream
from pythia_export.commands.cache_scales import measured_scales
from pythia_export.corpus import Windows
from pythia_export.graph.decoder import build_decoder
from pythia_export.model.neox import NeoXConfig, cache_parts
from pythia_export.recipe import Export, Quantize
from pythia_export.weights.layout import Layout, layout
from pythia_export.weights.names import DATA_FILE
from pythia_export.weights.reader import WeightsReader
from pythia_export.weights.writer import WeightsWriter

# Of the demo checkpoint, as a directory beside it: seconds.
SMALL_RECIPE = """
[model]
path = "model"
[calibration]
source = "python-stdlib"
samples = 8
sequence_length = 128
[quantize]
bits = 4
group_size = 32
[verify]
source = "python-stdlib"
tokens = 1024
sequence_length = 128
"""

# hidden, heads of the ten sizes
GEOMETRIES = {
    "14m": (128, 4), "31m": (256, 8), "70m": (512, 8), "160m": (768, 12), "410m": (1024, 16),
    "1b": (2048, 8), "1.4b": (2048, 16), "2.8b": (2560, 32), "6.9b": (4096, 32), "12b": (5120, 40),
}  # fmt: skip


def small_config(layers: int = 2, vocab: int = 96, positions: int = 64, size: str = "14m", ff: int = 256) -> NeoXConfig:
    hidden, heads = GEOMETRIES[size]
    return NeoXConfig(vocab, hidden, layers, heads, ff, max_positions=positions)


def hugging_face(config: NeoXConfig, seed: int = 0) -> GPTNeoXForCausalLM:
    """The oracle: random weights with biases and norms away from their defaults, all representable in float16."""
    # What transformers 4 reads; of a scaled rotary embedding `rope_scaling`, since it does not know `rope_parameters`.
    ours = {"architectures", "model_type", "torch_dtype", "rope_parameters"}
    settings = {k: v for k, v in config.to_dict().items() if k not in ours}
    torch.manual_seed(seed)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**settings, attn_implementation="eager")).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_((p + torch.randn_like(p) * (0.1 if p.ndim == 1 else 0.5 / p.shape[1] ** 0.5)).half().float())
            assert torch.isfinite(p).all(), name
    return model


def on_disk(model: GPTNeoXForCausalLM) -> dict[str, torch.Tensor]:
    """Tensors by the names of the files: transformers 5 calls the head `lm_head` in memory."""
    return {k.replace("lm_head", "embed_out"): v.contiguous() for k, v in model.state_dict().items()}


@dataclass
class InMemory:
    """The least that the stream reads from."""

    config: NeoXConfig
    tensors: dict[str, torch.Tensor]

    def tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name]


@dataclass
class Exported:
    config: NeoXConfig
    folder: Path
    places: Layout
    model: onnx.ModelProto
    export: Export
    record: dict

    def session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return onnxruntime.InferenceSession(
            str(self.folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def reader(self) -> WeightsReader:
        return WeightsReader(self.folder / DATA_FILE, self.places)

    def feeds(self, ids: np.ndarray, mask: np.ndarray, past: list[np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Inputs of one call: ids [B, T] are the last T of the mask's [B, total] tokens."""
        positions = np.clip(mask.cumsum(1) - 1, 0, None)[:, -ids.shape[1] :]
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        kept, parts = self.export.cache_dtype, cache_parts(self.export.cache_dtype, self.export.static_scales)
        names = [f"{layer}.{part}" for layer in range(self.config.num_layers) for part in parts]
        empty = np.zeros((len(ids), self.config.num_heads, 0, self.config.head_dim), kept)
        for i, name in enumerate(names):
            nothing = empty[..., 0].astype("f") if name.endswith("scale") else empty
            feeds[f"past_key_values.{name}"] = nothing if past is None else past[i]
        return feeds


def export_model(
    source: InMemory, folder: Path, quantize: Quantize, export: Export, windows: np.ndarray | None = None
) -> Exported:
    """Stream, build and save, as a run does."""
    places = layout(source.config, quantize, export.dtype)
    with WeightsWriter(folder / DATA_FILE, places) as writer:
        record = quantize_stream(source, writer, windows).to_json()
    scales = None
    if export.static_scales:
        drawn = np.random.default_rng(0).integers(
            0, source.config.vocab_size, (16, min(256, source.config.max_positions))
        )
        text = Windows.of(drawn, np.zeros_like(drawn), "drawn", drawn.size, {})
        scales = measured_scales(source.config, places, export, folder, text, SILENT).scales
    model = build_decoder(source.config, places, export, scales=scales)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return Exported(source.config, folder, places, model, export, record)


def save_checkpoint(model: GPTNeoXForCausalLM, config: NeoXConfig, folder: Path, tokenizer: Path | None = None) -> Path:
    """A directory in the hub's form."""
    import json
    import shutil

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict("float16")))
    save_file({k: v.half() for k, v in on_disk(model).items()}, folder / "model.safetensors")
    if tokenizer is not None:
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
    return folder
