"""A sweep over names of the hub, against a hub on loopback that serves a small suite."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import hub as loopback
import pytest
from hub import Fault, commit_of, run, serve
from models import hugging_face, save_checkpoint
from sweeps import RTN, TOKENIZER, content, sweep, toml

from pythia_export.model.neox import NeoXConfig
from pythia_export.sweep.folder import Folder
from pythia_export.sweep.status import keys

# The catalogue's sizes, in width alone: what is served under a name is held to it.
SMALL = """
from pythia_export.model import suite
from pythia_export.model.neox import NeoXConfig
suite._config = lambda size: NeoXConfig(4096, size["hidden"], 1, size["heads"], 4 * size["hidden"], max_positions=128)
suite.suite.cache_clear()
"""

SWEEP = """
import json, sys
from pathlib import Path
from pythia_export.base.errors import PythiaExportError
from pythia_export.sweep.folder import Folder
from pythia_export.sweep.run import run
from pythia_export.sweep.schema import load
from pythia_export.sweep.status import status

folder = Folder(Path(sys.argv[2]))
try:
    outcome = run(load(Path(sys.argv[1])), folder).to_json()
    failures = [(f.title, f.exit_code, f.message) for f in status(folder).failures]
    print(json.dumps(outcome | {"failures": failures}))
except PythiaExportError as e:
    print(json.dumps({"error": str(e), "hint": e.hint, "code": e.exit_code}))
"""

A, B = "EleutherAI/pythia-14m", "EleutherAI/pythia-31m"
REVISIONS = ("step0", "step1000", "step2000", "main")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("suite")
    configs = {
        A: NeoXConfig(4096, 128, 1, 4, 512, max_positions=128),
        B: NeoXConfig(4096, 256, 1, 8, 1024, max_positions=128),
    }
    return {
        repo: {
            r: save_checkpoint(hugging_face(config, i), config, root / repo / r, TOKENIZER if r == "main" else None)
            for i, r in enumerate(REVISIONS)
        }
        for repo, config in configs.items()
    }  # fmt: skip


@pytest.fixture(scope="module")
def running(made):
    with serve({repo: dict(of) for repo, of in made.items()}) as hub:
        yield hub


@pytest.fixture
def hub(running, made):
    running.clear()
    running.repositories.clear()
    running.repositories |= {repo: dict(of) for repo, of in made.items()}
    return running


def file(folder: Path, **changed) -> Path:
    settings = {"models": ["14m", "31m"], "quantize": RTN | {"bits": [8, 2]}, "revisions": "0:2000:1000,main"} | changed
    return toml(folder / "sweep.toml", sweep(**settings))


def swept(path: Path, out: Path, hub, home: Path, offline: bool = False) -> dict:
    (found,) = run(SWEEP, str(path), str(out), hub=hub, home=home, offline=offline, before=SMALL)
    return found


@pytest.fixture(scope="module")
def whole(running, made, tmp_path_factory):
    """The sweep done once: its file, its directory and the cache that it left; and what the hub was asked for."""
    root = tmp_path_factory.mktemp("whole")
    running.clear()
    outcome = swept(file(root), root / "out", running, root / "home")
    return root, outcome, list(running.requests)


def records(folder: Folder) -> dict[str, dict]:
    return {key: folder.result(key).to_json() for key in keys(folder)}


def test_a_sweep_over_names_of_the_hub_goes_from_end_to_end(whole):
    root, outcome, _ = whole
    assert (outcome["jobs"], outcome["done"], outcome["failures"]) == (16, 16, [])
    found = list(records(Folder(root / "out")).values())
    facts = [r["job"]["snapshot"] for r in found]
    assert [f["name"] for f in facts] == ["pythia-14m"] * 8 + ["pythia-31m"] * 8
    assert [f["step"] for f in facts[::2]] == [0, 1000, 2000, 143000] * 2
    assert facts[2]["training_tokens"] == 2_097_152_000 and facts[2]["learning_rate"] == pytest.approx(1e-3 / 1.43)
    assert [r["job"]["commit"] for r in found[::2]] == [commit_of(repo, r) for repo in (A, B) for r in REVISIONS]
    assert len({r["cost"]["nll_original"] for r in found}) == 8, "eight models, each scored on one text"
    assert len(list((root / "out" / "texts").iterdir())) == 1


def test_pinning_is_one_call_of_the_api_a_model_and_one_more_for_its_tokenizer(whole, hub):
    root, _, first = whole
    again = swept(root / "sweep.toml", root / "out", hub, root / "home")
    assert (again["done"], again["did"]) == (16, 0)
    asked = [f"GET /api/models/{repo}{what}" for repo in (A, B) for what in ("/refs", "/revision/main")]
    assert sorted(hub.api_calls()) == sorted(asked) and not any("/lfs/" in line for line in hub.requests)
    whole_files = [line for line in first if " bytes=" not in line]  # headers are compared by ranges
    fetched = [line for line in whole_files if line.startswith("GET /lfs/") and ".safetensors" in line]
    assert len(fetched) == 8, "each checkpoint once, for all of its quantisations"


def test_offline_it_is_done_again_from_the_cache(whole, hub, tmp_path):
    root, *_ = whole
    again = swept(root / "sweep.toml", tmp_path / "out", hub, root / "home", offline=True)
    assert (again["done"], again["did"], hub.requests) == (16, 16, [])
    first, second = records(Folder(root / "out")), records(Folder(tmp_path / "out"))
    assert {k: content(r) for k, r in first.items()} == {k: content(r) for k, r in second.items()}
    never = swept(root / "sweep.toml", tmp_path / "never", hub, tmp_path / "empty", offline=True)
    assert never["code"] == 3 and "not in the cache" in never["error"]


def test_an_error_of_the_hub_in_one_revision_fails_that_task_alone(hub, tmp_path):
    hub.faults.append(Fault(f"/api/models/{A}/revision/step1000", times=99, status=403))
    (hub.repositories[B]["step2000"]) = shutil.copytree(hub.repositories[B]["step2000"], tmp_path / "no-weights")
    (tmp_path / "no-weights" / "model.safetensors").unlink()
    path, home = file(tmp_path), tmp_path / "home"
    outcome = swept(path, tmp_path / "out", hub, home)
    assert outcome["done"] == 12 and {code for _, code, _ in outcome["failures"]} == {3}
    assert [title.split(",")[0] for title, *_ in outcome["failures"][::2]] == [
        "pythia-14m at step1000", "pythia-31m at step2000",
    ]  # fmt: skip
    assert "403" in outcome["failures"][0][2] and "no weights" in outcome["failures"][2][2]
    hub.clear()
    after = swept(path, tmp_path / "out", hub, home)
    assert (after["did"], after["done"]) == (2, 14), "what the hub would not give is asked for again"


def test_a_repository_that_moves_between_pinning_and_pulling_is_noticed(hub, tmp_path, monkeypatch):
    def moved(repo: str, revision: str) -> str:
        begun = any(line.startswith("GET /lfs/") for line in hub.requests)  # the first checkpoint is being pulled
        now = "@new" if begun and (repo, revision) == (B, "step1000") else ""
        return hashlib.sha1(f"{repo}@{revision}{now}".encode()).hexdigest()

    path = file(tmp_path, revisions="0,1000")
    hub.repositories[A]["main"] = hub.repositories[A]["main"]
    with monkeypatch.context() as patch:
        patch.setattr(loopback, "commit_of", moved)
        outcome = swept(path, tmp_path / "out", hub, tmp_path / "home")
        new = moved(B, "step1000")
        assert outcome["done"] == 6 and len(outcome["failures"]) == 2
        for title, code, message in outcome["failures"]:
            assert title.startswith("pythia-31m at step1000") and code == 3
            assert f"is {new}; the sweep was pinned to {commit_of(B, 'step1000')}" in message
        after = swept(path, tmp_path / "out", hub, tmp_path / "home")
    assert (after["done"], after["did"], after["failures"]) == (8, 2, [])


def test_checkpoints_are_taken_out_of_the_cache_once_their_jobs_are_done(hub, tmp_path):
    outcome = swept(file(tmp_path, revisions="0,1000", evict=True), tmp_path / "out", hub, tmp_path / "home")
    assert outcome["done"] == 8 and outcome["failures"] == []
    assert list((tmp_path / "home").rglob("model.safetensors")) == []
    assert not [p for p in (tmp_path / "home" / "hub").rglob("*") if p.is_file() and p.stat().st_size > 1_000_000]


def test_a_step_that_the_hub_has_not_is_told_before_anything_is_done(hub, tmp_path):
    failed = swept(file(tmp_path, revisions="0,3000"), tmp_path / "out", hub, tmp_path / "home")
    assert failed["code"] == 3 and f"{A}: the hub has no branch step3000" in failed["error"]
    assert "Leave it out of `sweep.revisions`" in failed["hint"]
    assert hub.api_calls() == [f"GET /api/models/{A}/refs"] and hub.downloads() == []
    del hub.repositories[A]
    failed = swept(file(tmp_path), tmp_path / "out", hub, tmp_path / "home")
    assert failed["code"] == 3 and "no such repository" in failed["error"]


def test_weights_of_another_step_are_refused_and_the_rest_goes_on(hub, tmp_path):
    hub.repositories[A]["step1000"] = hub.repositories[A]["step2000"]
    outcome = swept(file(tmp_path, models=["14m"]), tmp_path / "out", hub, tmp_path / "home")
    assert outcome["done"] == 4 and len(outcome["failures"]) == 4
    assert "step1000 has the weights of step2000" in json.dumps(outcome["failures"])
