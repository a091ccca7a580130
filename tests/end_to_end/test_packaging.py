"""The wheel carries what the program reads at run time, and is found there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from places import ROOT

# An editable installation finds the checkout before anything on the path.
UNPACKED = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in type(f).__module__];"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    return built(out)


def built(out: Path, source: Path = ROOT, **environment: str) -> Path:
    """What is asked of the kernels is that they are there: to optimise them would take three times as long."""
    line = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", str(out)]
    line += ["--config-settings=cmake.build-type=Debug", str(source)]
    scripts = os.pathsep.join(
        (str(Path(sys.executable).parent), os.environ["PATH"])
    )  # CMake and Ninja come from wheels
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"PATH": scripts} | environment)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_holds_recipes_demo_and_template_and_no_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "pythia_export/recipes/demo.toml",
        "pythia_export/demo/main/model.safetensors",
        "pythia_export/demo/main/tokenizer.json",
        "pythia_export/report/report.html.j2",
        "pythia_export/serve/page/index.html",
        "pythia_export/serve/page/worker.js",
        "pythia_export/evaluate/zero_shot.csv.gz",
        "pythia_export/py.typed",
    } <= names
    assert not any(name.startswith(("tests/", "benchmarks/", "build/")) for name in names)


@pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")
def test_the_wheel_brings_the_kernels_for_every_python_of_one_platform(wheel, tmp_path):
    assert "-py3-none-" in wheel.name and "-any" not in wheel.name
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = UNPACKED + "import pythia_export; print(pythia_export.kernels_path())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert Path(done.stdout.strip()).parent == tmp_path / "pythia_export" / "_kernels", done.stderr


def test_without_a_compiler_the_wheel_is_plain_python(tmp_path):
    wheel = built(tmp_path, CXX="/nowhere/c++")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not any("_kernels" in name for name in zipfile.ZipFile(wheel).namelist())


def test_a_platforms_wheel_leaves_the_demo_to_another(tmp_path):
    """`make wheels` puts a library into the plain one; the demo's checkpoints are four times as large as the rest."""
    plain = built(tmp_path, PYTHIA_EXPORT_PLAIN="1")
    assert plain.name.endswith("-py3-none-any.whl") and plain.stat().st_size < 1.5e6
    zipfile.ZipFile(plain).extractall(tmp_path / "site")
    line = [sys.executable, "-c", UNPACKED + "from pythia_export.checkpoint import demo_folder; print(demo_folder())"]
    done = subprocess.run(line, cwd=tmp_path / "site", capture_output=True, text=True)
    assert "SourceError: the demo's checkpoints are not installed" in done.stderr
    zipfile.ZipFile(built(tmp_path / "demo", ROOT / "packaging" / "demo")).extractall(tmp_path / "site")
    done = subprocess.run(line, cwd=tmp_path / "site", capture_output=True, text=True)
    folder = Path(done.stdout.strip()) / "main"
    assert folder == tmp_path / "site" / "pythia_export_demo" / "demo" / "main"
    assert (folder / "model.safetensors").is_file()


def test_an_unpacked_wheel_finds_its_own_recipes_and_demo(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = UNPACKED + (
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


def test_a_source_distribution_holds_sources_and_nothing_built(tmp_path):
    (ROOT / "build" / "kernels").mkdir(parents=True, exist_ok=True)
    built_here = ROOT / "build" / "kernels" / "no-source"
    built_here.touch()
    try:
        code = f"from scikit_build_core.build import build_sdist; build_sdist({str(tmp_path)!r})"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    finally:
        built_here.unlink()
    assert done.returncode == 0, done.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = [name.split("/", 1)[1] for name in archive.getnames()]
    assert {"kernels/CMakeLists.txt", "recipes/demo.toml", "demo/main/model.safetensors"} <= set(names)
    assert not [name for name in names if name.startswith(("build/", "dist/"))]
