"""Autoencoders of SAELens that cannot be computed, or are not of this model, are refused by name. What is computed is
held to SAELens itself in tests/lens/test_saelens.py."""

from __future__ import annotations

import json

import pytest
import torch
from autoencoders import KINDS, save_autoencoder
from models import small_config
from safetensors.torch import save_file

from pythia_export.base.errors import IntegrityError, NumericsError, RecipeError, SourceError
from pythia_export.proof.autoencoder import autoencoders, fingerprint

CONFIG = small_config(layers=3, vocab=96, positions=64)  # 128 wide, 4 heads, 256 neurons
HOOK = "blocks.1.hook_resid_post"


@pytest.mark.parametrize(
    ("hook", "width", "options", "found"),
    [
        ("blocks.1.hook_resid_post", 128, {}, ("blocks.1.hook_out", 1)),
        ("blocks.2.hook_resid_pre", 128, {}, ("blocks.2.hook_in", 2)),
        ("hook_embed", 128, {}, ("embed.hook_out", 0)),
        ("blocks.0.hook_mlp_out", 128, {}, ("blocks.0.mlp.hook_out", 0)),
        ("blocks.0.attn.hook_z", 128, {"reshape_activations": "hook_z"}, ("blocks.0.attn.hook_z", 0)),
        ("blocks.0.attn.hook_z", 32, {"hook_head_index": 3}, ("blocks.0.attn.hook_z", 0)),
        ("blocks.2.mlp.hook_post", 256, {}, ("blocks.2.mlp.hook_post", 2)),
        ("ln_final.hook_normalized", 128, {}, ("ln_final.hook_normalized", 2)),
    ],
)
def test_where_it_reads(tmp_path, hook, width, options, found):
    save_autoencoder(tmp_path / "sae", hook, width, 64, **options)
    (one,) = autoencoders(tmp_path / "sae", CONFIG)
    assert (one.hook, one.layer, one.name, one.d_sae) == (*found, "sae", 64)


def test_a_configuration_of_before_version_6(tmp_path):
    """Flat, with older names; a topk is a standard one with another activation function there."""
    save_autoencoder(tmp_path, HOOK, 128, 64)
    old = {
        "hook_point": HOOK, "hook_point_head_index": None, "d_in": 128, "d_sae": 64, "normalize_activations": False,
        "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}, "dtype": "torch.float32",
    }  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    (one,) = autoencoders(tmp_path, CONFIG)
    assert (one.architecture, one.k, one.hook, one.normalisation) == ("topk", 5, "blocks.1.hook_out", "none")
    x = torch.randn(3, 128)
    assert ((one.loaded(torch.device("cpu")).encode(x) > 0).sum(-1) <= 5).all()


def test_a_folder_of_folders_and_what_its_figures_depend_on(tmp_path):
    for seed, kind in enumerate(KINDS):
        save_autoencoder(tmp_path / "layer" / kind, HOOK, 128, 32, kind, seed)
    found = autoencoders(tmp_path, CONFIG)
    assert [one.name for one in found] == [f"layer/{kind}" for kind in sorted(KINDS)]
    before = fingerprint(found)
    assert fingerprint(autoencoders(tmp_path, CONFIG)) == before
    save_autoencoder(tmp_path / "layer" / "topk", HOOK, 128, 32, "topk", 2, apply_b_dec_to_input=False)
    assert fingerprint(autoencoders(tmp_path, CONFIG)) != before


def without(name):
    return lambda tensors, config: tensors.pop(name)


def given(**changes):
    return lambda tensors, config: config.update(changes)


def in_metadata(**changes):
    return lambda tensors, config: config["metadata"].update(changes)


def held(name, value):
    return lambda tensors, config: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "error", "message", "hint"),
    [
        (given(architecture="transcoder"), SourceError, "'transcoder'; standard, jumprelu, topk, gated are",
         "A transcoder gives back another value"),
        (given(architecture="batchtopk"), SourceError, "architecture 'batchtopk'", "save_inference_model"),
        (given(architecture="abstopk"), SourceError, "architecture 'abstopk'", ""),
        (given(normalize_activations="expected_average_only_in"), SourceError, "none, constant_norm_rescale,",
         "save_inference_model"),
        (given(activation_fn="tanh-relu"), SourceError, "activation_fn = 'tanh-relu'; relu or topk", ""),
        (given(d_in=512), SourceError, f"reads 512 numbers at {HOOK}; this model has 128 there", "of another size"),
        (given(d_in="128"), SourceError, "`d_in`: Input should be a valid integer", "--sae takes a folder"),
        (in_metadata(hook_name=None), SourceError, "`hook_name`: Field required", "--sae takes a folder"),
        (in_metadata(hook_name="blocks.7.hook_resid_post"), RecipeError, "no place in this model: its layers are", ""),
        (in_metadata(hook_name="blocks.1.hook_resid_pots"), RecipeError, "is no place in this model; the nearest", ""),
        (in_metadata(hook_name="resid"), RecipeError, "no single place that has one vector per token", ""),
        (in_metadata(hook_name="blocks.1.attn.hook_pattern"), RecipeError, "no single place", ""),
        (in_metadata(hook_head_index=1), RecipeError, "hook_head_index 1 at .*: no such head", ""),
        (in_metadata(model_from_pretrained_kwargs={"center_writing_weights": True}), SourceError,
         "changed before it ran .center_writing_weights", "from_pretrained_no_processing"),
        (without("b_enc"), IntegrityError, r"b_enc is missing; standard of this cfg\.json has it as \[32\]", ""),
        (held("W_dec", torch.zeros(128, 32)), IntegrityError, r"W_dec is \[128, 32\]", ""),
        (held("threshold", torch.zeros(32)), IntegrityError, "threshold is no tensor of standard", ""),
        (held("b_enc", torch.full((32,), torch.nan)), NumericsError, r"b_enc holds nan at \[0\]", ""),
        (held("b_enc", torch.zeros(32, dtype=torch.int32)), IntegrityError, "b_enc is I32", ""),
        (held("scaling_factor", torch.full((32,), 2.0)), SourceError, "a scaling_factor of its own", ""),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(tmp_path, change, error, message, hint):
    tensors = save_autoencoder(tmp_path, HOOK, 128, 32)
    config = json.loads((tmp_path / "cfg.json").read_text())
    change(tensors, config)
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(error, match=message) as e:
        autoencoders(tmp_path, CONFIG)
    assert str(tmp_path) in str(e.value) and hint in e.value.hint


def test_files_that_are_not_there_or_not_whole(tmp_path):
    with pytest.raises(SourceError, match="no sparse autoencoder: no such folder"):
        autoencoders(tmp_path / "nowhere", CONFIG)
    with pytest.raises(SourceError, match="no sparse autoencoder: holds none"):
        autoencoders(tmp_path, CONFIG)
    save_autoencoder(tmp_path, HOOK, 128, 32)
    weights = tmp_path / "sae_weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-5])
    with pytest.raises(IntegrityError, match="truncated"):
        autoencoders(tmp_path, CONFIG)
    weights.unlink()
    with pytest.raises(SourceError, match=r"sae_weights\.safetensors: No such file") as e:
        autoencoders(tmp_path, CONFIG)
    assert e.value.hint.startswith("--sae takes a folder")
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(SourceError, match=r"cfg\.json: not JSON"):
        autoencoders(tmp_path, CONFIG)
    weights.write_bytes(whole)


def test_two_products_do_not_give_each_branch(tmp_path):
    save_autoencoder(tmp_path, "blocks.0.hook_mlp_out", 128, 32)
    with pytest.raises(RecipeError, match="products = 2 does not compute"):
        autoencoders(tmp_path, CONFIG, products=2)
