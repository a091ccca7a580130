"""The job from Python: a recipe or a name in, an opened artifact out, progress by calls, errors by their classes."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

import pythia_export
from pythia_export import OutputError, PythiaExportError, Recipe, RecipeError, SourceError, quantize

SMALL = {
    "quantize.method": "rtn", "quantize.group_size": 32, "verify.source": "python-stdlib", "verify.tokens": 256,
    "verify.sequence_length": 64, "verify.gates": None,
}  # fmt: skip


def test_a_recipe_becomes_an_artifact_with_its_proof_and_progress_is_called(tmp_path):
    steps, notes = [], []
    out = tmp_path / "artifact"
    recipe = Recipe.load("demo", SMALL)
    artifact = quantize(recipe, str(out), progress=lambda *step: steps.append(step), note=notes.append)
    assert artifact.folder == out and artifact.parity.passed and artifact.recipe.quantize.method == "rtn"
    assert artifact.generate("def main(", 4)
    stages = {title: (done, total) for title, done, total in steps}
    assert stages["Quantising"] == (7, 7) or all(done == total for done, total in stages.values())
    assert {type(x) for step in steps for x in step} == {str, int} and len(stages) > 2
    with pytest.raises(OutputError) as caught:
        quantize(recipe, out)
    assert caught.value.hint and caught.value.exit_code == 8


def test_a_name_or_a_path_is_a_recipe_and_notes_go_to_the_logger(tmp_path, caplog):
    file = tmp_path / "my.toml"
    file.write_text(Recipe.load("demo", SMALL).toml())
    assert Recipe.load(file) == Recipe.load("demo", SMALL)
    with caplog.at_level(logging.INFO, "pythia_export"), pytest.raises(SourceError):
        file.write_text(file.read_text().replace('id = "demo"', 'path = "nowhere"'))
        quantize(file, tmp_path / "out")
    with pytest.raises(RecipeError, match="no recipe, model or folder called '410mm'") as caught:
        quantize("410mm", tmp_path / "out")
    assert "pythia-410m-int4" in caught.value.hint and isinstance(caught.value, PythiaExportError)
    with pytest.raises(RecipeError, match="unknown key `quantize.beem`"):
        Recipe.load("demo", {"quantize.beem": 1})


def test_every_public_name_is_there_and_no_room_is_called_like_one():
    """An imported room becomes an attribute of the package, and would hide a function of its name."""
    for name in pythia_export.__all__:
        assert getattr(pythia_export, name) is not None and name in dir(pythia_export)
    rooms = {path.stem for path in Path(pythia_export.__file__).parent.iterdir()}
    assert not rooms & set(pythia_export.__all__)


def test_names_are_imported_when_they_are_asked_for():
    code = (
        "import sys, pythia_export; from pythia_export import PythiaExportError\n"
        "light = {'numpy', 'pydantic', 'torch'} & set(sys.modules); from pythia_export import Recipe\n"
        "Recipe.load('410m'); print(sorted(light), sorted({'numpy', 'torch', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "[] []", done.stderr
