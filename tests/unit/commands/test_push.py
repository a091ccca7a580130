"""An artifact pushed by the real hub client to a hub on loopback, and pulled again."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from hub import Fault, environment, serve
from processes import pythia_export

from pythia_export.commands.quantize import quantize
from pythia_export.commands.run import run
from pythia_export.recipe import parse_recipe

REPO = "me/demo-int4"
RECIPE = {
    "model": {"id": "demo"},
    "quantize": {"method": "rtn", "bits": 4, "group_size": 32},
    "export": {"layout": "transformers.js"},
    "verify": {"source": "python-stdlib", "tokens": 256, "sequence_length": 64},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "artifact"
    run(parse_recipe(RECIPE), out)
    return out


@pytest.fixture
def hub(tmp_path):
    with serve({}) as running:
        running.scratch = str(tmp_path)
        yield running


def push(hub, tmp_path, *args: str, code: int = 0):
    return pythia_export(
        "push", *args, env=environment(hub, tmp_path / "home") | {"HF_TOKEN": "hf_of_a_test"}, check=code
    )


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_shows_what_would_go_and_asks_no_hub(hub, folder, tmp_path):
    found = json.loads(push(hub, tmp_path, str(folder), REPO, "--dry-run", "--json").stdout)
    assert set(found["files"]) == names(folder) and found["url"] is None and hub.requests == []
    shown = push(hub, tmp_path, str(folder), REPO, "--dry-run").stdout
    assert "not yet sent" in shown and "onnx/model_q4.onnx_data" in shown and "README.md" in shown


def test_what_was_pushed_is_the_artifact(hub, folder, tmp_path):
    done = push(hub, tmp_path, str(folder), REPO, "--private")
    assert f"{hub.endpoint}/{REPO}/commit/" in done.stdout
    there = hub.repositories[REPO]["main"]
    assert names(there) == names(folder)
    for name in names(folder):
        assert (there / name).read_bytes() == (folder / name).read_bytes(), name
    assert sum(" /api/models/me/demo-int4/commit/" in line for line in hub.requests) == 1, "in one commit"
    sent = sum(line.startswith("PUT ") for line in hub.requests)
    push(hub, tmp_path, str(folder), REPO)
    assert sum(line.startswith("PUT ") for line in hub.requests) == sent > 0, "what is there is not sent again"


def test_a_hub_that_refuses_or_garbles_is_told(hub, folder, tmp_path):
    hub.faults.append(Fault("POST /api/repos/create", status=401))
    refused = push(hub, tmp_path, str(folder), REPO, code=3).stderr
    assert "401" in refused and "refuses to be written" in refused and "HF_TOKEN" in refused
    assert "cannot be read" not in refused
    hub.faults[:] = [Fault("POST /api/models/", status=503, headers={"Retry-After": "0"})]
    said = push(hub, tmp_path, str(folder), REPO).stderr
    assert "trying again in 0 s" in said or "503" in said, "we say so, or the client (1.33), which tries again itself"
    hub.sizes["config.json"] = 7
    garbled = push(hub, tmp_path, str(folder), REPO, code=4).stderr
    assert "config.json is not on the hub as it was sent" in garbled
    assert f"{hub.endpoint}/{REPO}/commit/" in garbled and "was made, but its check failed" in garbled


def test_a_record_that_inspect_refuses_is_not_pushed(hub, folder, tmp_path):
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    record = json.loads((changed / "quantization.json").read_text())
    record["linears"][0]["bits"] = "4"
    data = json.dumps(record).encode()
    (changed / "quantization.json").write_bytes(data)
    manifest = json.loads((changed / "manifest.json").read_text())
    manifest["files"]["quantization.json"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (changed / "manifest.json").write_text(json.dumps(manifest))
    done = push(hub, tmp_path, str(changed), REPO, "--dry-run", code=4)
    assert (
        "`linears.0.bits` is '4'" in done.stderr
        and "`linears.0.bits`" in pythia_export("inspect", changed, check=4).stderr
    )


def test_only_a_whole_artifact_with_a_graph_is_pushed(hub, folder, tmp_path):
    weights = tmp_path / "weights"
    quantize(parse_recipe(RECIPE), weights)
    assert "has no graph" in push(hub, tmp_path, str(weights), REPO, code=3).stderr
    extras = {"generate": ("--prompt", "x"), "eval": ("--tasks", "x"), "bench": ("--no-peers",)}
    for command in ("verify", "generate", "bench", "eval"):
        if command == "eval" and find_spec("lm_eval") is None:
            continue
        done = pythia_export(command, weights, *extras.get(command, ()), check=3)
        assert f"Error: {weights} has no graph: `quantize` made it" in done.stderr and "export" in done.stderr
    done = pythia_export("export", weights, "--out", tmp_path / "x", "--accuracy-level", 3, check=2)
    assert "--accuracy-level 3: Input should be 0 or 4" in done.stderr
    shown = pythia_export("inspect", weights).stdout
    assert f"`pythia-export export {weights} --out DIR` builds one" in shown and "verify" not in shown
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    config = changed / "config.json"
    config.write_text(config.read_text().replace("gelu", "relu"))  # as long as before
    assert "config.json" in push(hub, tmp_path, str(changed), REPO, code=4).stderr
    assert "no repository of the hub" in push(hub, tmp_path, str(folder), "me/-a", "--dry-run", code=2).stderr
    assert "--offline" in push(hub, tmp_path, str(folder), REPO, "--offline", code=8).stderr
    assert hub.requests == []
