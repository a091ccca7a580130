"""A dequantised artifact in TransformerLens 3, and an autoencoder of SAELens on what the artifact computes.

`make test-lens` runs this in an environment of its own; elsewhere it is skipped.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("sae_lens", reason="SAELens: `make test-lens`")

import sae_lens
from conftest import CONFIG
from safetensors.torch import load_file
from transformer_lens.model_bridge import TransformerBridge

from pythia_export import Artifact
from pythia_export.commands.verify import verify
from pythia_export.commands.whereabouts import Elsewhere
from pythia_export.corpus import verify_windows
from pythia_export.proof import inside
from pythia_export.proof.autoencoder import autoencoders

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


def trained(kind, folder, hook="blocks.1.hook_resid_post", d_in=128, normalise="none", dtype="float32", **options):
    """Save an autoencoder as SAELens's own training leaves it for use: random, its biases and thresholds no zeros."""
    metadata = sae_lens.saes.sae.SAEMetadata(hook_name=hook, hook_head_index=options.pop("head", None))
    settings = {"d_in": d_in, "d_sae": 256, "normalize_activations": normalise, "dtype": dtype} | options
    if kind == "batchtopk":
        of = sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(k=12, **settings, metadata=metadata))
        of.topk_threshold += 0.3
    else:
        made, config = {
            "standard": (sae_lens.StandardSAE, sae_lens.StandardSAEConfig),
            "jumprelu": (sae_lens.JumpReLUSAE, sae_lens.JumpReLUSAEConfig),
            "topk": (sae_lens.TopKSAE, sae_lens.TopKSAEConfig),
            "gated": (sae_lens.GatedSAE, sae_lens.GatedSAEConfig),
        }[kind]
        of = made(config(**settings, metadata=metadata))
    with torch.no_grad():
        for name, weight in of.named_parameters():
            if name in ("W_dec", "W_enc"):
                weight += torch.randn_like(weight) * 0.05
            else:
                weight.copy_(0.2 * torch.randn_like(weight))
            if name == "threshold":
                weight.abs_()
    (of.save_inference_model if kind == "batchtopk" else of.save_model)(str(folder))


KINDS = {
    "standard": ("standard", {}),
    "input as it is": ("standard", {"apply_b_dec_to_input": False}),
    "jumprelu": ("jumprelu", {}),
    "batchtopk": ("batchtopk", {}),
    "topk": ("topk", {"k": 9}),
    "topk by length": ("topk", {"k": 9, "rescale_acts_by_decoder_norm": True}),
    "gated": ("gated", {}),
    "constant norm": ("standard", {"normalise": "constant_norm_rescale"}),
    "layer norm": ("topk", {"k": 9, "normalise": "layer_norm"}),
    "bfloat16": ("jumprelu", {"dtype": "bfloat16"}),
}


@pytest.mark.parametrize("name", KINDS)
def test_features_and_what_they_give_back_are_those_of_saelens(tmp_path, name):
    torch.manual_seed(1)
    kind, options = KINDS[name]
    trained(kind, tmp_path, **options)
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path), dtype="float32")
    (opened,) = autoencoders(tmp_path, CONFIG)
    ours = opened.loaded(torch.device("cpu"))
    x = 3 * torch.randn(50, 128) + 1
    with torch.no_grad():
        expected = theirs.encode(x)
        back = theirs.decode(expected)
        features = ours.encode(x)
    assert 0 < (expected > 0).float().mean() < 0.9
    assert ((features > 0) == (expected > 0)).all()
    assert (features - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (ours.decode(features, x) - back).abs().max() < 1e-5 * back.abs().max()


def test_a_proof_counts_the_features_that_saelens_counts(folders, tmp_path):
    """The whole command, against SAELens over TransformerLens's values of both models."""
    torch.manual_seed(2)
    hooks = {
        "stream": ("blocks.1.hook_resid_post", "blocks.1.hook_out", {}),
        "mlp": ("blocks.0.hook_mlp_out", "blocks.0.mlp.hook_out", {}),
        "attention": ("blocks.2.hook_attn_out", "blocks.2.attn.hook_out", {}),
        "heads": ("blocks.1.attn.hook_z", "blocks.1.attn.hook_z", {"reshape_activations": "hook_z"}),
        "one head": ("blocks.1.attn.hook_z", "blocks.1.attn.hook_z", {"head": 1, "d_in": 64}),
        "neurons": ("blocks.2.mlp.hook_post", "blocks.2.mlp.hook_post", {"d_in": 256}),
    }
    for name, (older, _, options) in hooks.items():
        trained("jumprelu", tmp_path / name, older, **options)
    shutil.copytree(folders[0], tmp_path / "artifact")
    parity = verify(tmp_path / "artifact", elsewhere=Elsewhere(folders[1].parent / "model", sae=tmp_path))
    artifact = Artifact.open(folders[0])
    windows = verify_windows(artifact.recipe.verify, artifact.tokenizer(), CONFIG)
    rows = torch.from_numpy(inside._sampled(*windows.ids.shape))
    bridges = [
        TransformerBridge.boot_transformers(str(at), dtype=torch.float32, device="cpu")
        for at in (folders[1].parent / "model", folders[1])
    ]
    caches = [bridge.run_with_cache(torch.tensor(windows.ids))[1] for bridge in bridges]
    found = {one.name: one for one in parity.inside.artifact.features}
    assert set(found) == set(hooks)
    for name, (_, hook, options) in hooks.items():
        sae, active = sae_lens.SAE.load_from_disk(str(tmp_path / name)), []
        for cache in caches:
            value = cache[hook][:, :, options["head"]] if "head" in options else cache[hook]
            picked = value.flatten(2).take_along_dim(rows[..., None], 1).flatten(0, 1)
            picked = picked.unflatten(-1, (2, 64)) if name == "heads" else picked
            with torch.no_grad():
                features = sae.encode(picked)
                error = (sae.decode(features) - picked).flatten(1).square().sum()
            picked = picked.flatten(1)
            active.append((features > 0, float(error / (picked - picked.mean(0)).square().sum())))
        (before, unexplained), (after, of_artifact) = active
        both = (before & after).sum()
        one = found[name]
        assert one.survived.value == pytest.approx(float(both / before.sum()), abs=1e-3), name
        assert one.inherited.value == pytest.approx(float(both / after.sum()), abs=1e-3), name
        assert one.unexplained_original.mean == pytest.approx(unexplained, rel=1e-3), name
        assert one.unexplained.mean == pytest.approx(of_artifact, rel=1e-3), name
        assert 0.2 < one.survived.value < 0.999, name
