"""A dequantised artifact in TransformerLens 3, and an autoencoder of SAELens on what the artifact computes.

`make test-lens` runs this in an environment of its own; elsewhere it is skipped.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("sae_lens", reason="SAELens: `make test-lens`")

import sae_lens
from safetensors.torch import load_file
from transformer_lens.model_bridge import TransformerBridge

from pythia_export import Artifact

TEXT = "def main(argv):\n    return 0"


def test_a_dequantised_artifact_computes_the_same_in_transformer_lens_3(folders):
    bridge = TransformerBridge.boot_transformers(str(folders[1]), dtype=torch.float32, device="cpu")
    seen = Artifact.open(folders[0]).trace(TEXT, ["all", "logits"])
    tokens = torch.tensor(seen.tokens)[None]
    logits, cache = bridge.run_with_cache(tokens)
    assert np.abs(logits[0].detach().numpy() - seen["logits"]).max() < 1e-4
    for hook, value in seen.values.items():
        if hook != "logits":
            assert np.abs(cache[hook][0].detach().numpy() - value).max() < 1e-4, hook


def test_a_sparse_autoencoder_reads_the_shards_of_trace(folders, tmp_path):
    torch.manual_seed(0)
    sae_lens.StandardSAE(sae_lens.StandardSAEConfig(d_in=128, d_sae=256)).save_model(str(tmp_path / "sae"))
    sae = sae_lens.SAE.load_from_disk(str(tmp_path / "sae"))
    traces = Artifact.open(folders[0]).trace_to(tmp_path / "seen", [TEXT, "import os"], ["blocks.1.hook_out"])
    stream = load_file(traces.shards()[0])["blocks.1.hook_out"]
    bridge = TransformerBridge.boot_transformers(str(folders[1]), dtype=torch.float32, device="cpu")
    theirs = [bridge.run_with_cache(torch.tensor(t.tokens)[None])[1]["blocks.1.hook_out"][0] for t in traces]
    ours, expected = sae.encode(stream), sae.encode(torch.cat(theirs))
    assert ours.shape == (len(stream), 256) and (expected > 0).any()
    assert (ours - expected).abs().max() < 1e-3
