"""The real hub client against a hub on loopback. A pull is a process: the client reads its environment once."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub import commit_of, serve
from models import hugging_face, save_checkpoint, small_config
from safetensors.torch import load_file, save_file

from pythia_export.checkpoint import demo_folder

REPO = "EleutherAI/pythia-14m"

PULL = """
import json, sys
from pythia_export.checkpoint import open_checkpoint, pull
from pythia_export.errors import PythiaExportError
from pythia_export.progress import SILENT
from pythia_export.recipe import Model

class Notes(type(SILENT)):
    def note(self, message):
        said.append(message)

for asked in sys.argv[1:]:
    repo, revision = asked.split("@")
    said = []
    try:
        pulled = pull(Model(id=repo, revision=revision), progress=Notes())
        opened = open_checkpoint(pulled)
        total = float(opened.tensor("embed_out.weight").float().sum())
        files = sorted(p.name for p in pulled.folder.iterdir())
        tokenizer = [p.name for p in opened.tokenizer_files()]
        opened.tokenizer()
        got = {"commit": pulled.commit, "files": files, "sum": total, "tokenizer": tokenizer, "notes": said}
    except PythiaExportError as e:
        got = {"error": str(e), "hint": e.hint, "code": e.exit_code}
    print(json.dumps(got))
"""

TEXT = """
import json, sys
from pythia_export.checkpoint import demo_folder
from pythia_export.corpus import calibration_windows
from pythia_export.neox import NeoXConfig
from pythia_export.recipe import Calibration
from tokenizers import Tokenizer
section = Calibration(source="hub", dataset="pile/small", file="val.jsonl.gz", samples=3, sequence_length=32)
tokenizer = Tokenizer.from_file(str(demo_folder() / "main" / "tokenizer.json"))
windows = calibration_windows(section, tokenizer, NeoXConfig(4096, 128, 6, 4, 512))
print(json.dumps({"shape": windows.ids.shape, "source": windows.source}))
"""


def run(code: str, *args: str, endpoint: str, home: Path, offline: bool = False) -> list[dict]:
    """The objects that a process of its own prints, one for each revision that it pulls."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def shards(folder: Path, to: Path) -> Path:
    """The same checkpoint in two shards, without a tokenizer."""
    whole = load_file(folder / "model.safetensors")
    to.mkdir()
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(whole))}
    for shard in set(places.values()):
        save_file({n: whole[n] for n in places if places[n] == shard}, to / shard)
    (to / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (to / "config.json").write_bytes((folder / "config.json").read_bytes())
    return to


@pytest.fixture(scope="module")
def small_hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    config, tokenizer = small_config(layers=1), demo_folder() / "main" / "tokenizer.json"
    main = save_checkpoint(hugging_face(config, 0), config, root / "main", tokenizer)
    step = save_checkpoint(hugging_face(config, 1), config, root / "step3000", tokenizer)
    bare = shards(step, root / "step1000")
    wrong = shards(step, root / "step2000")
    (wrong / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../a"}}')
    (main / "pytorch_model.bin").write_bytes(b"never fetched")
    (main / "special_tokens_map.json").write_text("{}")
    pickled = root / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((main / "config.json").read_bytes())
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    texts = root / "texts"
    texts.mkdir()
    with gzip.open(texts / "val.jsonl.gz", "wt") as f:
        f.writelines(json.dumps({"text": f"document {i} " * 20, "meta": {}}) + "\n" for i in range(9))
    revisions = {"main": main, "step1000": bare, "step2000": wrong, "step3000": step, "step4000": pickled}
    with serve({"EleutherAI/pythia-14m": revisions, "datasets/pile/small": {"main": texts}}) as (endpoint, requests):
        yield endpoint, requests


def test_a_revision_is_pinned_and_only_needed_files_are_fetched(small_hub, tmp_path):
    endpoint, requests = small_hub
    requests.clear()
    step_commit = commit_of(REPO, "step3000")
    main, step, by_commit = run(
        PULL, f"{REPO}@main", f"{REPO}@step3000", f"{REPO}@{step_commit}", endpoint=endpoint, home=tmp_path
    )
    assert main["commit"] == commit_of(REPO, "main") and step["commit"] == step_commit
    assert main["files"] == ["config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json"]
    assert main["tokenizer"] == ["tokenizer.json", "special_tokens_map.json"] and main["notes"] == []
    assert not any("pytorch_model" in line for line in requests)
    assert step["sum"] != main["sum"] and by_commit == step
    downloads = [line for line in requests if line.startswith("GET ") and line.endswith(".safetensors")]
    assert len(downloads) == 2, "a pinned commit is fetched once"


def test_a_sharded_revision_without_a_tokenizer_is_given_mains_and_it_is_said(small_hub, tmp_path):
    endpoint, requests = small_hub
    single, sharded = run(PULL, f"{REPO}@step3000", f"{REPO}@step1000", endpoint=endpoint, home=tmp_path)
    assert sharded["sum"] == single["sum"] and sharded["commit"] == commit_of(REPO, "step1000")
    assert sharded["files"] == [
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]  # fmt: skip
    assert sharded["tokenizer"] == ["tokenizer.json", "special_tokens_map.json"]
    assert len(sharded["notes"]) == 1 and "that of main" in sharded["notes"][0]
    requests.clear()
    assert run(PULL, f"{REPO}@step1000", endpoint=endpoint, home=tmp_path, offline=True) == [sharded]
    assert requests == []


def test_offline_uses_the_cache_and_says_when_it_cannot(small_hub, tmp_path):
    endpoint, requests = small_hub
    online = run(PULL, f"{REPO}@main", endpoint=endpoint, home=tmp_path)
    requests.clear()
    again, failed = run(PULL, f"{REPO}@main", f"{REPO}@step3000", endpoint=endpoint, home=tmp_path, offline=True)
    assert [again] == online
    assert failed["code"] == 3 and "not in the cache" in failed["error"] and "HF_HUB_OFFLINE" in failed["hint"]
    assert requests == []


FAILURES = {
    f"{REPO}@not-a-branch": (3, "no such revision"),
    "EleutherAI/pythia-15m@main": (3, "no such repository"),
    f"{REPO}@step4000": (3, "only pytorch_model.bin"),
    f"{REPO}@step2000": (4, "not a file beside it"),
    "EleutherAI/pythia-2.8b@step3000": (3, "issue 205"),
    "not//an id@main": (3, "not//an id"),
}


def test_what_the_hub_lacks_is_named(small_hub, tmp_path):
    endpoint, requests = small_hub
    requests.clear()
    answers = run(PULL, *FAILURES, endpoint=endpoint, home=tmp_path)
    for failed, (asked, (code, said)) in zip(answers, FAILURES.items(), strict=True):
        assert failed["code"] == code and said in failed["error"], asked
        assert failed["hint"] or code == 4, asked
    assert not any("2.8b" in line for line in requests), "a revision known to be wrong is not even asked for"


def test_an_unreachable_hub_is_a_source_error_at_once_that_names_the_cache(tmp_path):
    began = time.monotonic()
    (failed,) = run(PULL, f"{REPO}@main", endpoint="http://127.0.0.1:9", home=tmp_path)
    assert failed["code"] == 3 and REPO in failed["error"] and "HF_HUB_OFFLINE=1" in failed["hint"]
    assert time.monotonic() - began < 20, "it was asked again and again"


def test_text_comes_from_a_hub_data_set_pinned_to_its_commit(small_hub, tmp_path):
    (got,) = run(TEXT, endpoint=small_hub[0], home=tmp_path)
    commit = commit_of("datasets/pile/small", "main")
    assert got == {"shape": [3, 32], "source": f"pile/small/val.jsonl.gz at {commit[:12]}"}
