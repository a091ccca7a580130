"""The wheel carries what the program reads at run time, and is found there."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    line = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_recipes_demo_and_template_and_no_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "pythia_export/recipes/demo.toml",
        "pythia_export/demo/main/model.safetensors",
        "pythia_export/demo/main/tokenizer.json",
        "pythia_export/report/report.html.j2",
        "pythia_export/py.typed",
    } <= names
    assert not any(name.startswith(("tests/", "benchmarks/", "build/")) for name in names)


def test_an_unpacked_wheel_finds_its_own_recipes_and_demo(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "from pythia_export.recipe import recipe_names, recipes_folder;"
        "from pythia_export.checkpoint import demo_folder, open_checkpoint, pull;"
        "from pythia_export.recipe import Model;"
        "assert 'demo' in recipe_names(); open_checkpoint(pull(Model(id='demo')));"
        "print(recipes_folder()); print(demo_folder())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [str(tmp_path / "pythia_export" / x) for x in ("recipes", "demo")], done.stderr


def test_the_demo_is_small_enough_for_a_repository():
    assert sum(p.stat().st_size for p in (ROOT / "demo").rglob("*") if p.is_file()) <= 16e6
