"""What a recipe without quantisation stores: every value of the checkpoint, in a type that holds it."""

from __future__ import annotations

import pytest
import torch
from models import hugging_face, on_disk, save_checkpoint, small_config
from safetensors.torch import save_file

from pythia_export.artifact import Artifact
from pythia_export.checkpoint import demo_folder
from pythia_export.commands.plan import plan
from pythia_export.commands.quantize import quantize as quantize_recipe
from pythia_export.model.neox import tensors
from pythia_export.recipe import Quantize, parse_recipe

CONFIG = small_config(layers=1, vocab=4096)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_without_quantisation_every_value_is_kept(stored, tmp_path):
    """Whatever the checkpoint's type: float16, which holds a Pythia's weights, is not for all."""
    torch.manual_seed(0)
    whole = {name: x.to(stored) for name, x in on_disk(hugging_face(CONFIG)).items()}
    noise = {name: (x.float() + torch.rand(x.shape) * 1e-4).to(stored) for name, x in whole.items()}
    model = save_checkpoint(hugging_face(CONFIG), CONFIG, tmp_path / "model", demo_folder() / "main" / "tokenizer.json")
    save_file(noise, model / "model.safetensors")
    recipe = {
        "model": {"path": str(model)}, "quantize": {"method": "none"},
        "verify": {"source": "python-stdlib", "tokens": 64, "sequence_length": 16},
    }  # fmt: skip
    quantize_recipe(parse_recipe(recipe), tmp_path / "out")
    opened = Artifact.open(tmp_path / "out")
    quantize = opened.recipe.quantize
    assert (quantize.embedding, quantize.head.dtype) == (("float16",) if stored == torch.float16 else ("float32",)) * 2
    read = opened.weights()
    for spec in tensors(CONFIG):
        assert torch.equal(read.tensor(spec.name), noise[spec.name].float()), spec.name


def test_a_type_that_the_recipe_names_is_kept_to():
    asked = Quantize(method="none", embedding="float16", head={"dtype": "float16"})
    rounded = Quantize(method="rtn")
    assert asked.settled("float32", True, "float32") == (asked, [])
    assert rounded.settled("float32", True, "float32") == (rounded, [])
    assert Quantize(method="none").settled("float32", True, "float16")[1] == []
    assert "dtype" not in Quantize().model_dump()["head"], "what was recorded before compares equal"


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_a_plan_counts_what_is_stored(stored, tmp_path):
    """Embedding and head in float32 are most of a small model."""
    model = save_checkpoint(hugging_face(CONFIG), CONFIG, tmp_path / "model", demo_folder() / "main" / "tokenizer.json")
    save_file({name: x.to(stored) for name, x in on_disk(hugging_face(CONFIG)).items()}, model / "model.safetensors")
    recipe = parse_recipe(
        {
            "model": {"path": str(model)}, "quantize": {"method": "none"},
            "verify": {"source": "python-stdlib", "tokens": 64, "sequence_length": 16},
        }
    )  # fmt: skip
    planned = plan(recipe)
    quantize_recipe(recipe, tmp_path / "out")
    assert planned.files["model.onnx_data"] == (tmp_path / "out" / "model.onnx_data").stat().st_size
    assert any("stored as float32" in warning for warning in planned.warnings) == (stored == torch.float32)
