"""What the third question computes in torch at accuracy level 4 and over a rounded cache, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from models import hugging_face, save_checkpoint
from places import ROOT
from sessions import needs_fixed_scales

from pythia_export import Artifact
from pythia_export.commands.export import export
from pythia_export.commands.quantize import quantize
from pythia_export.model.block import DENSE, DOWN, UP, Rotary
from pythia_export.model.hooks import hooks_of, tap_of
from pythia_export.model.neox import EMBEDDING, HEAD, QKV, NeoXConfig, layer_tensors
from pythia_export.proof.activations import IN_FLOAT, Activations, Watched, int8
from pythia_export.proof.features import value_at
from pythia_export.recipe import parse_recipe
from pythia_export.runtime import TapSession

CONFIG = NeoXConfig(4096, 128, 2, 2, 256, max_positions=48)
IDS = np.random.default_rng(0).integers(1, 4096, (2, 24))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of weights in 4 bits, the MLP's second product in blocks of another size."""
    folder = tmp_path_factory.mktemp("made")
    save_checkpoint(hugging_face(CONFIG), CONFIG, folder / "model", ROOT / "demo" / "main" / "tokenizer.json")
    rule = {"pattern": "*dense_4h_to_h", "group_size": 64, "bits": 8}
    recipe = {
        "model": {"path": str(folder / "model")},
        "quantize": {"method": "rtn", "bits": 4, "group_size": 32, "override": [rule]},
        "calibration": {"source": "python-stdlib", "samples": 2, "sequence_length": 32},
        "verify": {"source": "python-stdlib", "tokens": 256, "sequence_length": 32},
    }
    quantize(parse_recipe(recipe), folder / "weights")
    return folder / "weights"


def in_torch(artifact: Artifact, activations: Activations) -> dict[str, np.ndarray]:
    reader, found = artifact.weights(), {}
    x = reader.tensor(f"{EMBEDDING}.weight")[torch.from_numpy(IDS)]
    rotary = Rotary.of(CONFIG, IDS.shape[1], torch.float32)
    rows = torch.arange(IDS.shape[1]).expand(len(IDS), -1)
    every = frozenset((QKV, DENSE, UP, DOWN))
    for layer in range(CONFIG.num_layers):
        tensors = {spec.name: reader.tensor(spec.name) for spec in layer_tensors(CONFIG, layer)}
        block = Watched(CONFIG, layer, tensors.__getitem__, activations, every)
        with torch.no_grad():
            y = block(x, rotary)
        for hook in hooks_of(["all"], CONFIG):
            if tap_of(hook)[1] not in (layer, None) or (hook == "embed.hook_out" and layer):
                continue
            pattern = hook.endswith("pattern")
            value = block.pattern(rotary, rows) if pattern else value_at(hook, None, block, x, y)
            found[hook] = value.numpy()
        x = y
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accuracy_level": 4},
        {"kv_cache": "int8"},
        {"accuracy_level": 4, "kv_cache": "float16"},
        pytest.param({"kv_cache": "int8", "rotary": "gqa"}, marks=needs_fixed_scales),
    ],
)
def test_every_place_is_what_the_graph_computes(weights, tmp_path, options):
    export(weights, tmp_path / "out", taps=["all"], **options)
    artifact = Artifact.open(tmp_path / "out")
    hooks = hooks_of(["all"], CONFIG)
    expected = TapSession(artifact, ["all"], threads=1).read(IDS)
    graph = onnx.load(artifact.file("model.onnx"), load_external_data=False)
    rounds = Activations.of(graph, CONFIG, artifact.recipe.export)
    assert bool(rounds.scales) == ("rotary" in options)
    if "accuracy_level" in options:
        sizes = [rounds.blocks[f"gpt_neox.layers.1.{name}"] for name in (QKV, DENSE, UP, DOWN)]
        assert sizes == [32, 32, 32, 64] and rounds.blocks[HEAD] == 128 and len(rounds.blocks) == 9
    else:
        assert not rounds.blocks
    found, in_float = in_torch(artifact, rounds), in_torch(artifact, IN_FLOAT)

    def apart(values, hook):
        return (
            np.abs(values[hook].reshape(expected[hook].shape) - expected[hook]).mean() / np.abs(expected[hook]).mean()
        )

    # A code that a last digit rounds the other way is rare; a float16 is coarser than that digit.
    near = 2e-3 if options.get("kv_cache") == "float16" else 2e-4
    for hook in hooks:
        assert apart(found, hook) < near, hook
    if options:
        last = f"blocks.{CONFIG.num_layers - 1}.hook_out"
        assert apart(in_float, last) > 20 * apart(found, last), "what is rounded shows"


def test_what_is_rounded_is_a_whole_number_of_scales():
    x = torch.tensor([[1.27, 0.5, -1.27, 0.004, 0.0, 0.0, 0.0, 0.0, 3.0, 0.02]])
    expected = torch.tensor([[1.27, 0.5, -1.27, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0, 1 * 3 / 127]])
    assert torch.allclose(int8(x, 4), expected, atol=1e-6)
    assert (int8(torch.full((2, 8), 1e-40), 8) == 0).all()
