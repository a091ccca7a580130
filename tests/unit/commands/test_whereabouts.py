"""Local checkpoints, adapters and texts: published by name and hashes, found again by whoever has them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from adapters import adapter, lora
from autoencoders import save_autoencoder
from models import hugging_face, save_checkpoint, small_config
from safetensors.torch import load_file, save_file

from pythia_export.artifact import Artifact
from pythia_export.base.errors import OutputError, RecipeError, SourceError
from pythia_export.checkpoint import demo_folder
from pythia_export.commands.export import export
from pythia_export.commands.push import push
from pythia_export.commands.run import run
from pythia_export.commands.verify import verify
from pythia_export.commands.whereabouts import Elsewhere, located, remember, without_paths
from pythia_export.recipe import load_recipe

RECIPE = """
[model]
path = "checkpoints/my-model"
adapter = "my-adapter"
[quantize]
method = "rtn"
group_size = 32
[export]
accuracy_level = 4
[verify]
source = "file"
path = "held-out.txt"
sae = "autoencoders"
tokens = 64
sequence_length = 16
"""
CONFIG = small_config(layers=1, vocab=4096)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """HF_HOME of the whole module."""
    with pytest.MonkeyPatch.context() as patched:
        home = tmp_path_factory.mktemp("home")
        patched.setattr("huggingface_hub.constants.HF_HOME", str(home))
        yield home


@pytest.fixture(scope="module")
def made(home, tmp_path_factory):
    """What somebody made at home: the folder, with the artifact in it."""
    folder = tmp_path_factory.mktemp("ada-lovelace")
    model = folder / "checkpoints" / "my-model"
    save_checkpoint(hugging_face(CONFIG), CONFIG, model, demo_folder() / "main" / "tokenizer.json")
    settings = {"name_or_path": str(model), "tokenizer_file": str(model / "tokenizer.json")}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    adapter(folder / "my-adapter", lora(layers=(0,)))
    (folder / "held-out.txt").write_text("def main():\n    return 1\n\n\n" * 100)
    save_autoencoder(folder / "autoencoders" / "stream", "blocks.0.hook_resid_post", CONFIG.hidden_size, 16)
    (folder / "recipe.toml").write_text(RECIPE)
    run(load_recipe(str(folder / "recipe.toml")), folder / "artifact")
    return folder


@pytest.fixture
def moved(made, home, tmp_path):
    """The same at somebody else's, who knows nothing of the first place."""
    kept = home / "pythia-export" / "places"
    kept.rename(tmp_path / "kept")
    there = shutil.copytree(made, tmp_path / "there")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(there / "artifact", tmp_path / "elsewhere" / "artifact")
    yield there, tmp_path / "elsewhere" / "artifact"
    shutil.rmtree(kept, ignore_errors=True)
    (tmp_path / "kept").rename(kept)


def test_no_file_of_an_artifact_says_where_its_sources_lie(made):
    for path in (made / "artifact").rglob("*"):
        assert path.is_dir() or b"ada-lovelace" not in path.read_bytes(), path.name
    manifest = Artifact.open(made / "artifact").manifest
    assert manifest.recipe["model"] | {"revision": ""} == {
        "id": None, "path": "my-model", "adapter": "my-adapter", "revision": "",
    }  # fmt: skip
    assert manifest.recipe["verify"]["path"] == "held-out.txt"
    assert manifest.source.name == "my-model + my-adapter"
    assert manifest.source.adapter.files.keys() == {"adapter_config.json", "adapter_model.safetensors"}
    card = (made / "artifact" / "README.md").read_text()
    assert "# my-model + my-adapter, " in card and "merged with the adapter `my-adapter`" in card
    assert push(made / "artifact", "me/it", dry_run=True).url is None


def test_an_artifact_is_verified_where_its_sources_were_left(made, tmp_path, monkeypatch):
    shutil.copytree(made / "artifact", tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    parity = verify(tmp_path / "copy").to_json()
    assert parity["passed"] and parity["source"]["name"] == "my-model + my-adapter"
    assert parity["corpus"] == Artifact.open(made / "artifact").read_json("parity.json")["corpus"]


def test_what_moved_is_asked_for_and_accepted_by_its_hashes(moved):
    there, artifact = moved
    given: dict[str, Path] = {}
    for option, place, said in (
        ("checkpoint", "checkpoints/my-model", "local checkpoint `my-model`"),
        ("adapter", "my-adapter", "local adapter `my-adapter`"),
        ("text", "held-out.txt", "local text `held-out.txt`"),
        ("sae", "autoencoders", "local autoencoders `autoencoders`"),
    ):
        with pytest.raises(SourceError, match=f"{said}; where that lies is not known") as caught:
            verify(artifact, elsewhere=Elsewhere(**given))
        assert f"--{option} " in caught.value.hint
        given[option] = there / place
    before = Artifact.open(artifact).read_json("parity.json")
    parity = verify(artifact, elsewhere=Elsewhere(**given)).to_json()
    assert parity["passed"] and parity["corpus"] == before["corpus"]
    assert parity["source"] | before["source"] == parity["source"], "under the recorded name and commit"
    assert parity["inside"]["activations"] == "int8", "as it ships"
    (one,) = parity["inside"]["artifact"]["features"]
    assert one["name"] == "stream" and one["survived"]["value"] > 0.5
    assert before["inside"]["artifact"]["features"][0]["sha256"] == one["sha256"]
    assert all(str(there).encode() not in path.read_bytes() for path in artifact.rglob("*") if path.is_file())


def test_what_lies_beside_the_artifact_is_found(moved):
    there, artifact = moved
    for name in ("checkpoints/my-model", "my-adapter", "held-out.txt", "autoencoders"):
        shutil.move(there / name, artifact.parent)
    assert verify(artifact).passed


def changed(folder: Path) -> None:
    whole = load_file(folder / "model.safetensors")
    whole["gpt_neox.final_layer_norm.bias"] += 1
    save_file(whole, folder / "model.safetensors")


def sharded(folder: Path) -> None:
    save_file(load_file(folder / "model.safetensors"), folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(load_file(folder / "model.safetensors"), "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


OTHERS = {
    "weights": (changed, r"model.safetensors has sha256 [0-9a-f]{12}\.\.\.; [0-9a-f]{12}\.\.\. was recorded$"),
    "configuration": (
        lambda f: (f / "config.json").write_text((f / "config.json").read_text() + "\n"), "config.json has sha256",
    ),
    "files": (sharded, "model-00001-of-00001.safetensors was not recorded\n  model.safetensors is missing"),
}  # fmt: skip


@pytest.mark.parametrize("other", OTHERS)
def test_another_checkpoint_is_refused_with_the_file_that_differs(other, made, tmp_path):
    change, said = OTHERS[other]
    folder = shutil.copytree(made / "checkpoints" / "my-model", tmp_path / "mine")
    change(folder)
    with pytest.raises(SourceError, match=said) as caught:
        verify(made / "artifact", elsewhere=Elsewhere(checkpoint=folder))
    assert "is not the checkpoint that this artifact was made of, my-model + my-adapter" in str(caught.value)


def test_another_adapter_is_refused_with_the_file_that_differs(made, tmp_path):
    other = adapter(tmp_path / "other", {n: x + 1 for n, x in lora(layers=(0,)).items()})
    with pytest.raises(SourceError, match="adapter's adapter_model.safetensors has sha256"):
        verify(made / "artifact", elsewhere=Elsewhere(adapter=other))


def test_an_artifact_with_paths_is_not_pushed_and_export_makes_one_without(made, tmp_path):
    def as_written_before(manifest) -> None:
        model, verify = manifest["recipe"]["model"], manifest["recipe"]["verify"]
        manifest["source"]["name"] = model["path"] = str(made / "checkpoints" / "my-model")
        model["adapter"], verify["path"] = str(made / "my-adapter"), str(made / "held-out.txt")

    old = edited(shutil.copytree(made / "artifact", tmp_path / "old"), as_written_before)
    with pytest.raises(OutputError, match=r"manifest.json has a path of the machine .*: source.name is") as caught:
        push(old, "me/it", dry_run=True)
    assert f"export {old} --out NEW" in caught.value.hint
    export(old, tmp_path / "new")
    verify(tmp_path / "new")
    assert push(tmp_path / "new", "me/it", dry_run=True).passed
    assert Artifact.open(tmp_path / "new").manifest.source.name == "my-model"


def edited(artifact: Path, edit) -> Path:
    path = artifact / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))
    return artifact


def test_options_that_an_artifact_has_no_use_for_are_refused(made, tmp_path):
    def other(manifest) -> None:
        manifest["recipe"]["model"]["adapter"] = None
        manifest["recipe"]["verify"] |= {"source": "python-stdlib", "path": None}

    plain = edited(shutil.copytree(made / "artifact", tmp_path / "plain"), other)
    with pytest.raises(RecipeError, match="this one has none"):
        verify(plain, elsewhere=Elsewhere(adapter=tmp_path))
    with pytest.raises(RecipeError, match="for a local held-out text; this artifact's is Python's standard library"):
        verify(plain, elsewhere=Elsewhere(text=tmp_path))


def test_an_adapter_changes_what_is_quantised(made):
    """The whole way: what the artifact holds is the merged weight, not the base's."""
    stored = Artifact.open(made / "artifact").weights()
    name = "gpt_neox.layers.0.attention.dense.weight"
    base = load_file(made / "checkpoints" / "my-model" / "model.safetensors")[name].float()
    update = lora(layers=(0,))
    A, B = (update[f"base_model.model.{name.replace('weight', f'lora_{x}.weight')}"] for x in "AB")
    error = (stored.tensor(name) - (base + 2 * B @ A)).abs().mean()
    assert error < 0.2 * (2 * B @ A).abs().mean() < (stored.tensor(name) - base).abs().mean()
    assert isinstance(error, torch.Tensor)


@pytest.mark.parametrize(
    ("path", "source"),
    [("texts", "file"), ("texts/*.txt", "file"), ("texts/**/*.jsonl", "file"), ("order/document", "training-order")],
)
def test_texts_of_a_folder_a_pattern_or_a_prefix_are_found_again(path, source, home, tmp_path):
    for name in ("texts/a.txt", "texts/b.jsonl", "order/document.idx", "order/document.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a.toml").write_text(f"""
        model = {{ id = "demo" }}
        quantize = {{ method = "rtn" }}
        verify = {{ source = "{source}", path = "{path}" }}
    """)
    recipe = load_recipe(str(tmp_path / "a.toml"))
    remember(recipe, "0" * 40)
    published = without_paths(recipe)
    assert published.verify.path == Path(Path(path).name)
    assert located(published, "0" * 40, tmp_path / "elsewhere" / "artifact") == recipe
