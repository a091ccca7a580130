"""Names that are there and stand for no plain file: pipes, devices, links that lead nowhere. Told, not waited for, and
not taken for a file that is absent."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pythia_export import cli
from pythia_export.base.errors import IntegrityError, PythiaExportError, RecipeError, SourceError
from pythia_export.base.git_lfs import is_pointer
from pythia_export.calibrate.sensitivity import Sensitivity
from pythia_export.checkpoint import demo_folder
from pythia_export.checkpoint.pull import pull
from pythia_export.corpus.find import find_files
from pythia_export.recipe import Model, Verify, load_recipe
from pythia_export.sweep.schema import load

SECONDS = 20  # a pipe that is waited for would end the test by this


def pipe(path: Path) -> Path:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


@pytest.fixture(autouse=True)
def in_time():
    """A test that waits for a pipe ends as a failure, not never."""
    import signal

    def late(*args):
        raise TimeoutError("it waits for a pipe")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("read", [lambda path: load_recipe(str(path)), load], ids=["recipe", "sweep"])
@pytest.mark.parametrize("special", ["pipe", "/dev/zero"])
def test_a_recipe_is_a_plain_file(read, special, tmp_path):
    path = pipe(tmp_path / "r.toml") if special == "pipe" else Path(special)
    with pytest.raises(RecipeError, match="a plain file was expected"):
        read(path)


def test_a_recipe_out_of_a_shell_is_read():
    """`plan <(sed ... recipe.toml)` and `... | plan /dev/stdin`."""
    recipe = '[model]\nid = "demo"\n[quantize]\nmethod = "rtn"\n[verify]\nsource = "python-stdlib"\n'
    line = [
        sys.executable,
        "-P",
        "-c",
        "from pythia_export.recipe import load_recipe as r; print(r('/dev/stdin').model.id)",
    ]
    done = subprocess.run(line, input=recipe, capture_output=True, text=True, timeout=SECONDS)
    assert done.stdout == "demo\n", done.stderr


@pytest.mark.parametrize("name", ["generation_config.json", "chat_template.jinja", "config.json", "model.safetensors"])
def test_a_checkpoint_with_a_pipe_for_a_file_is_refused(name, tmp_path):
    shutil.copytree(demo_folder() / "main", tmp_path / "m")
    pipe(tmp_path / "m" / name)
    with pytest.raises(SourceError, match=f"{name}: neither a plain file nor a folder"):
        pull(Model(path=tmp_path / "m"))


def test_an_adapter_with_a_pipe_for_its_settings_is_refused(tmp_path):
    (tmp_path / "lora").mkdir()
    pipe(tmp_path / "lora" / "adapter_config.json")
    assert not is_pointer(tmp_path / "lora" / "adapter_config.json")
    with pytest.raises(PythiaExportError, match="adapter_config.json"):
        pull(Model(path=demo_folder() / "main", adapter=tmp_path / "lora"))


@pytest.mark.parametrize("kind", ["pipe", "link"])
@pytest.mark.parametrize("asked", ["a.jsonl", ".", "*.jsonl"])
def test_a_text_that_is_not_there_is_told_though_others_are(kind, asked, tmp_path):
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n')
    pipe(tmp_path / "a.jsonl") if kind == "pipe" else (tmp_path / "a.jsonl").symlink_to("nowhere")
    said = "no plain file" if kind == "pipe" else "leads nowhere"
    with pytest.raises(SourceError, match=rf"a\.jsonl: .*{said}"):
        find_files(Verify(source="file", path=tmp_path / asked))


def test_a_sensitivity_that_became_a_pipe_is_not_waited_for(tmp_path):
    kept = Sensitivity(tmp_path)
    kept.put(0, "residual", torch.ones(2))
    pipe(next(tmp_path.glob("0.residual*")))
    with pytest.raises(IntegrityError, match="layer 0"):
        kept.get(0, "residual")


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("special_tokens_map.json", "[]", 4),
        ("tokenizer.json", "{}", 4),
        ("added_tokens.json", '{"a": "b"}', 4),
        ("tokenizer_config.json", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 44\n", 3),
    ],
)
def test_pull_refuses_the_tokenizer_that_run_would_refuse(name, content, code, tmp_path):
    shutil.copytree(demo_folder() / "main", tmp_path / "m")
    (tmp_path / "m" / name).write_text(content)
    done = CliRunner().invoke(cli.app, ["pull", f"{tmp_path}/m"])
    assert done.exit_code == code, done.stderr
    assert "token" in done.stderr


def test_a_checkpoint_without_a_tokenizer_is_pulled_for_its_weights(tmp_path):
    shutil.copytree(demo_folder() / "main", tmp_path / "m", ignore=shutil.ignore_patterns("*token*"))
    done = CliRunner().invoke(cli.app, ["pull", f"{tmp_path}/m"])
    assert done.exit_code == 0 and "no tokenizer" in done.stderr
