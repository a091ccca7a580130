"""An artifact as TransformerLens's model, against TransformerLens on the dequantised checkpoint in torch.

`make test-lens` runs this where TransformerLens 4 and transformers 5 are; elsewhere it is skipped.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("transformer_lens.model_bridge.driver_protocol", reason="TransformerLens 4: `make test-lens`")

from transformer_lens.model_bridge import RemoteBridge, TransformerBridge
from transformer_lens.model_bridge.driver_protocol import validate_driver
from transformers import AutoTokenizer

from pythia_export.base.errors import RecipeError, SourceError
from pythia_export.commands.export import export
from pythia_export.lens import driver

TEXT = "def main(argv):\n    return 0"


@pytest.fixture(scope="module", autouse=True)
def quiet():
    warnings.filterwarnings("ignore")


@pytest.fixture(scope="module")
def original(folders):
    """TransformerLens's own, in float32."""
    return TransformerBridge.boot_transformers(str(folders[1]), dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def bridge(folders):
    lens = driver(folders[0])
    return RemoteBridge(lens.adapter, AutoTokenizer.from_pretrained(folders[0]), driver=lens)


def test_transformer_lens_accepts_the_driver(folders, bridge, hooks):
    lens = driver(folders[0])
    validate_driver(lens, after_bridge_construction=True)
    assert lens.supported_hook_points == set(hooks) and not lens.non_fireable_hook_points
    assert not any(map(lens.supports, ("gradients", "parameters", "weight_access")))


def test_the_configuration_is_the_one_that_transformer_lens_makes(folders, original):
    theirs, ours = original.cfg, driver(folders[0]).adapter.cfg
    for name in ("d_model", "d_head", "n_heads", "n_layers", "d_mlp", "n_ctx", "d_vocab", "act_fn", "eps",
                 "positional_embedding_type", "normalization_type", "parallel_attn_mlp", "default_prepend_bos",
                 "rotary_base"):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name


def test_every_place_is_that_of_transformer_lens(original, bridge, hooks):
    tokens = original.to_tokens(TEXT)
    assert (bridge.to_tokens(TEXT) == tokens).all()
    expected, theirs = original.run_with_cache(tokens)
    logits, cache = bridge.run_with_cache(TEXT)
    assert (logits - expected).abs().max() < 1e-4
    for hook in hooks:
        assert cache[hook].shape == theirs[hook].shape, hook
        assert (cache[hook] - theirs[hook]).abs().max() < 1e-4, hook


def test_names_filters_rows_and_losses_are_those_of_a_bridge(original, bridge):
    tokens = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    _, cache = bridge.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
    assert set(cache) == {f"blocks.{i}.attn.hook_pattern" for i in range(3)}
    _, theirs = original.run_with_cache(tokens)
    assert (cache["blocks.2.attn.hook_pattern"] - theirs["blocks.2.attn.hook_pattern"]).abs().max() < 1e-4
    ours, expected = bridge.forward(tokens, return_type="loss"), original(tokens, return_type="loss")
    assert (ours - expected).abs() < 1e-4


RAMP = np.linspace(-1, 1, 128, dtype=np.float32)
CHANGES = {
    "embed.hook_out": [{"op": "scale", "factor": 2.0}],
    "blocks.1.hook_in": [{"op": "add", "value": RAMP, "pos": [1, 3]}],
    "blocks.0.hook_out": [{"op": "set", "value": RAMP, "pos": 2}],
    "blocks.1.attn.hook_q": [{"op": "suppress", "heads": [1]}],
    "blocks.1.attn.hook_k": [{"op": "scale", "factor": 0.5}],
    "blocks.2.attn.hook_v": [{"op": "add", "value": 0.5, "pos": 0}],
    "blocks.1.attn.hook_z": [{"op": "suppress", "heads": [0], "pos": [1, 2]}],
    "blocks.1.attn.hook_pattern": [{"op": "scale", "factor": 0.5, "heads": [1]}],
    "blocks.0.attn.hook_out": [{"op": "suppress"}],
    "blocks.0.mlp.hook_pre": [{"op": "add", "value": -1.0}],
    "blocks.1.mlp.hook_post": [{"op": "scale", "factor": -1.0}],
    "blocks.2.mlp.hook_out": [{"op": "set", "value": 0.25}],
    "ln_final.hook_normalized": [{"op": "scale", "factor": 0.5}],
}


def in_torch(spec):
    """The same change as a hook of TransformerLens."""

    def hook(value, hook=None):
        value = value.clone()
        pattern = hook is not None and hook.name.endswith("hook_pattern")
        heads = spec.get("heads", slice(None))
        pos = spec.get("pos", slice(None))
        pos = [pos] if isinstance(pos, int) else pos
        at = [slice(None)] * value.ndim
        at[2 if pattern else 1] = pos
        part = value[tuple(at)].clone()
        chosen = (slice(None), heads) if pattern else (slice(None), slice(None), heads) if value.ndim == 4 else ...
        given = torch.as_tensor(spec.get("value", spec.get("factor", 0.0)))
        match spec["op"]:
            case "add":
                part[chosen] += given
            case "scale":
                part[chosen] *= given
            case _:
                part[chosen] = given
        value[tuple(at)] = part
        return value

    return hook


@pytest.mark.parametrize("hook", CHANGES)
def test_a_change_is_what_it_is_in_transformer_lens(original, bridge, hooks, hook):
    tokens = original.to_tokens(TEXT)
    for spec in CHANGES[hook]:
        with original.hooks(fwd_hooks=[(hook, in_torch(spec))]):
            expected, theirs = original.run_with_cache(tokens)
        logits, cache = bridge.run_with_cache(tokens, intervene={hook: spec})
        assert (logits - expected).abs().max() < 1e-4
        for place in hooks:
            assert (cache[place] - theirs[place]).abs().max() < 1e-4, place
        assert (logits - original(tokens)).abs().max() > 1e-3


def test_padding_may_be_on_the_left(original, bridge):
    tokens, mask = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    spec = {"blocks.1.hook_in": {"op": "add", "value": RAMP, "pos": 3}}
    both = bridge.forward(tokens, attention_mask=mask, intervene=spec)
    for row, first in ((0, 2), (1, 0)):
        shifted = {"blocks.1.hook_in": {**spec["blocks.1.hook_in"], "pos": 3 - first}}
        alone = bridge.forward(tokens[row : row + 1, first:], intervene=shifted)
        assert (both[row, first:] - alone[0]).abs().max() < 1e-4
    with pytest.raises(RecipeError, match="pos 1 is padding"):
        bridge.forward(tokens, attention_mask=mask, intervene={"blocks.1.hook_in": {"op": "suppress", "pos": 1}})


def test_what_the_driver_does_not_do_it_refuses(folders, bridge, tmp_path):
    tokens = torch.tensor([[5, 6, 7]])
    with pytest.raises(NotImplementedError, match="a function"):
        bridge.forward(tokens, intervene={"blocks.0.hook_in": lambda value: value})
    with pytest.raises(NotImplementedError, match="max_new_tokens=3"):
        bridge.forward(tokens, max_new_tokens=3)
    with pytest.raises(RecipeError, match=r"'blocks\.7\.hook_in' is no place"):
        bridge.forward(tokens, intervene={"blocks.7.hook_in": {"op": "suppress"}})
    with pytest.raises(RecipeError, match="position 9 of a text of 3 tokens"):
        bridge.forward(tokens, intervene={"blocks.0.hook_in": {"op": "suppress", "pos": 9}})
    export(folders[0], tmp_path / "bare", taps=[])
    with pytest.raises(SourceError, match="has no taps"):
        driver(tmp_path / "bare")
