"""Use an artifact and another library in one process: LIBRARY ARTIFACT FOLDER, where LIBRARY is transformers,
transformer-lens or llm-compressor, and FOLDER is for what is made."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pythia_export import Artifact
from pythia_export.commands.dequantize import dequantize
from pythia_export.commands.export import export
from pythia_export.commands.import_checkpoint import Wanted, import_checkpoint
from pythia_export.recipe import Model

PROMPT = "def main(argv):\n    "


def beside_transformers(artifact: Path, folder: Path) -> None:
    """The dequantised weights in transformers say what the artifact says."""
    dequantize(artifact, folder / "plain")
    tokenizer = AutoTokenizer.from_pretrained(artifact)
    model = AutoModelForCausalLM.from_pretrained(folder / "plain", dtype=torch.float32)
    ids = tokenizer(PROMPT, return_tensors="pt")
    theirs = model.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids["input_ids"].shape[1] :]
    export(artifact, folder / "level0", accuracy_level=0)  # activations of int8 may take another token at a near tie
    ours = Artifact.open(folder / "level0").generate(PROMPT, max_new_tokens=24)
    assert ours == tokenizer.decode(theirs), (ours, tokenizer.decode(theirs))


def beside_transformer_lens(artifact: Path, folder: Path) -> None:
    """A bridge over our driver has the logits that the artifact gives, and a cache with every place."""
    from transformer_lens.model_bridge import RemoteBridge

    from pythia_export.lens import driver

    beside_transformers(artifact, folder)
    level0 = folder / "level0"  # rounded activations fall another way where a graph ends its nodes elsewhere
    export(level0, folder / "taps", taps=["all"])
    lens = driver(folder / "taps")
    bridge = RemoteBridge(lens.adapter, AutoTokenizer.from_pretrained(artifact), driver=lens)
    logits, cache = bridge.run_with_cache(PROMPT)
    assert "blocks.0.hook_out" in cache
    ours = Artifact.open(level0).logits(bridge.to_tokens(PROMPT).numpy())
    assert np.abs(logits.numpy() - ours).max() < 1e-3


def beside_llm_compressor(artifact: Path, folder: Path) -> None:
    """What llm-compressor quantises becomes an artifact, whose proof compares it with llm-compressor's own weights."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    beside_transformers(artifact, folder)
    model = AutoModelForCausalLM.from_pretrained(folder / "plain", dtype=torch.float16)
    oneshot(model=model, recipe=QuantizationModifier(scheme="W4A16", targets="Linear", ignore=["lm_head"]))
    model.save_pretrained(folder / "w4a16", save_compressed=True)
    AutoTokenizer.from_pretrained(artifact).save_pretrained(folder / "w4a16")
    text = {"verify.source": "python-stdlib", "verify.tokens": 512, "verify.sequence_length": 64}
    made = import_checkpoint(Wanted(Model(path=folder / "w4a16")), folder / "imported", text)
    assert made.parity is not None and made.parity.passed
    assert Artifact.open(folder / "imported").generate(PROMPT, max_new_tokens=8)


if __name__ == "__main__":
    what, out = sys.argv[1], Path(sys.argv[3])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    globals()[f"beside_{what.replace('-', '_')}"](Path(sys.argv[2]), out)
    print(f"yes: {what}")
