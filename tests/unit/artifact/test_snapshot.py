"""An artifact in the hub's cache: links into blobs, read like any other, never written; and fetched by its name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import onnxruntime
import pytest
from hub import commit_of, environment, serve
from places import ROOT
from processes import pythia_export
from typer.testing import CliRunner

from pythia_export import Artifact, cli
from pythia_export.artifact.download import repository_named
from pythia_export.base.errors import IntegrityError, OutputError
from pythia_export.commands.run import run
from pythia_export.recipe import parse_recipe
from pythia_export.serve.prepare import ready

DEMO = ROOT / "demo" / "main"
REPO, PROMPT = "me/demo-int4", "def main("
RECIPE = {
    "model": {"id": "demo"},
    "quantize": {"method": "rtn", "bits": 4, "group_size": 32},
    "export": {"layout": "transformers.js"},
    "verify": {"source": "python-stdlib", "tokens": 256, "sequence_length": 64},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "artifact"
    run(parse_recipe(RECIPE), out)
    return out


@pytest.fixture
def snapshot(folder, tmp_path) -> Path:
    """As `snapshot_download` lays it out."""
    blobs, made = tmp_path / "models--me--demo" / "blobs", tmp_path / "models--me--demo" / "snapshots" / "main"
    blobs.mkdir(parents=True)
    for i, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        shutil.copyfile(path, blobs / f"b{i}")
        link = made / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / f"b{i}", link.parent))
    return made


def contents(of: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder."""
    paths = sorted(path for path in of.rglob("*") if path.is_symlink() or path.is_file())
    return {str(p.relative_to(of)): os.readlink(p) if p.is_symlink() else p.read_bytes() for p in paths}


def test_a_snapshot_is_an_artifact(folder, snapshot, tmp_path):
    onnxruntime.InferenceSession(str(snapshot / "model.onnx"), providers=["CPUExecutionProvider"])
    opened = Artifact.open(snapshot)
    opened.check()
    assert opened.is_snapshot and not Artifact.open(folder).is_snapshot
    text = Artifact.open(folder).generate(PROMPT, 8)
    assert opened.generate(PROMPT, 8) == text
    (tmp_path / "by-another-name").symlink_to(snapshot)
    assert Artifact.open(tmp_path / "by-another-name").generate(PROMPT, 8) == text
    before = contents(snapshot.parents[1])
    for line, said in (
        (["inspect", str(snapshot)], "held-out"),
        (["verify", str(snapshot), "--tokens", "128"], "held-out"),
        (["export", str(snapshot), "--out", str(tmp_path / "copy"), "--layout", "flat"], ""),
        (["dequantize", str(snapshot), str(tmp_path / "plain")], ""),
    ):
        done = CliRunner().invoke(cli.app, line)
        assert done.exit_code in ((0, 10) if line[0] == "verify" else (0,)) and said in done.output, done.output
        assert (line[0] == "verify") is ("hub's cache: the proof is printed" in done.output)
    assert contents(snapshot.parents[1]) == before, "the cache is the client's"
    Artifact.open(tmp_path / "copy").check()
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))
    with pytest.raises(OutputError, match="hub's cache"):
        opened.replace_files({"parity.json": b"{}"})


def test_serve_takes_a_snapshot(snapshot):
    assert ready(snapshot).about.layers == 6


def test_what_a_link_of_a_snapshot_leads_to_is_hashed_and_has_to_be_its_own(snapshot, tmp_path):
    name = "tokenizer.json"
    blob = (snapshot / name).resolve()
    kept = blob.read_bytes()
    blob.write_bytes(kept[:-2] + b" }")
    with pytest.raises(IntegrityError, match="tokenizer.json: sha256"):
        Artifact.open(snapshot).check()
    blob.write_bytes(kept)
    Artifact.open(snapshot).check()

    def leads_to(target: Path | str) -> None:
        (snapshot / name).unlink()
        (snapshot / name).symlink_to(target)

    outside, deeper = tmp_path / "outside.json", blob.parent / "deeper" / "b"
    deeper.parent.mkdir()
    for path in (outside, deeper, snapshot.parent / "b"):
        path.write_bytes(kept)
    (blob.parent / "link").symlink_to(outside)
    for target in (outside, deeper, snapshot.parent / "b", "../../blobs/link", "../../blobs/none", snapshot):
        leads_to(target)
        with pytest.raises(IntegrityError, match="tokenizer.json: (a symbolic link|missing)"):
            Artifact.open(snapshot)
    leads_to(blob)
    Artifact.open(snapshot).check()
    shutil.copytree(snapshot, tmp_path / "elsewhere")
    shutil.move(tmp_path / "elsewhere" / name, tmp_path / "b")
    (tmp_path / "elsewhere" / name).symlink_to(tmp_path / "b")  # in no cache
    with pytest.raises(IntegrityError, match="symbolic link|missing"):
        Artifact.open(tmp_path / "elsewhere")


def test_names_of_the_hub_and_paths_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert repository_named("me/demo-int4") == ("me/demo-int4", "main")
    assert repository_named("me/demo@refs/pr/1") == ("me/demo", "refs/pr/1")
    for path in ("demo", "./demo", "a/b/c", "/a/b", "../b", "me/demo/", "me/.demo", "me/demo@"):
        assert repository_named(path) is None, path
    (tmp_path / "build").mkdir()
    assert repository_named("build/demo") is None, "a name mistyped below a folder that is there"


def test_generate_fetches_an_artifact_by_its_name_and_keeps_it(folder, tmp_path):
    line = ["generate", REPO, "-p", PROMPT, "--max-new-tokens", "8"]
    text = Artifact.open(folder).generate(PROMPT, 8)
    with serve({REPO: {"main": folder}, "me/plain": {"main": DEMO}}) as hub:
        env = environment(hub, tmp_path / "home")
        assert pythia_export(*line, env=env).stdout == f"{text}\n"
        sent = hub.sent
        where = json.loads(pythia_export("inspect", f"{REPO}@{commit_of(REPO, 'main')}", "--json", env=env).stdout)
        assert where["manifest"]["source"]["name"] == "demo" and hub.sent == sent, "what is there is not fetched again"
        plain = pythia_export("generate", "me/plain", "-p", PROMPT, env=env, check=3).stderr
        assert "me/plain at main is no artifact" in plain and "pythia-export run" in plain
        assert "me/none" in pythia_export("inspect", "me/none", env=env, check=3).stderr
        hub.requests.clear()
        assert pythia_export("--offline", *line, env=env).stdout == f"{text}\n" and hub.requests == []
        assert "not in the cache" in pythia_export("--offline", "inspect", "me/other", env=env, check=3).stderr
