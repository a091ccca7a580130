"""The real hub client against a hub on loopback. A pull is a process: the client reads its environment once."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub import commit_of, serve
from models import hugging_face, save_checkpoint, small_config

from pythia_export.checkpoint import demo_folder

PULL = """
import json, sys
from pythia_export.checkpoint import open_checkpoint, pull
from pythia_export.errors import PythiaExportError
from pythia_export.recipe import Model
try:
    pulled = pull(Model(id=sys.argv[1], revision=sys.argv[2]))
    opened = open_checkpoint(pulled)
    total = float(opened.tensor("embed_out.weight").float().sum())
    print(json.dumps({"commit": pulled.commit, "files": sorted(p.name for p in pulled.folder.iterdir()), "sum": total}))
except PythiaExportError as e:
    print(json.dumps({"error": str(e), "hint": e.hint, "code": e.exit_code}))
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


def run(code: str, *args: str, endpoint: str, home: Path, offline: bool = False) -> dict:
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def small_hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    config, tokenizer = small_config(layers=1), demo_folder() / "main" / "tokenizer.json"
    main = save_checkpoint(hugging_face(config, 0), config, root / "main", tokenizer)
    step = save_checkpoint(hugging_face(config, 1), config, root / "step3000", tokenizer)
    (main / "pytorch_model.bin").write_bytes(b"never fetched")
    pickled = root / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((main / "config.json").read_bytes())
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    texts = root / "texts"
    texts.mkdir()
    with gzip.open(texts / "val.jsonl.gz", "wt") as f:
        f.writelines(json.dumps({"text": f"document {i} " * 20, "meta": {}}) + "\n" for i in range(9))
    revisions = {"main": main, "step3000": step, "step4000": pickled}
    with serve({"EleutherAI/pythia-14m": revisions, "datasets/pile/small": {"main": texts}}) as (endpoint, requests):
        yield endpoint, requests


def test_a_revision_is_pinned_and_only_needed_files_are_fetched(small_hub, tmp_path):
    endpoint, requests = small_hub
    requests.clear()
    main = run(PULL, "EleutherAI/pythia-14m", "main", endpoint=endpoint, home=tmp_path)
    assert main["commit"] == commit_of("EleutherAI/pythia-14m", "main")
    assert main["files"] == ["config.json", "model.safetensors", "tokenizer.json"]
    assert not any("pytorch_model" in line for line in requests)
    assert sum(line.startswith("GET /api/") for line in requests) == 1
    step = run(PULL, "EleutherAI/pythia-14m", "step3000", endpoint=endpoint, home=tmp_path)
    assert step["commit"] == commit_of("EleutherAI/pythia-14m", "step3000") and step["sum"] != main["sum"]
    by_commit = run(PULL, "EleutherAI/pythia-14m", step["commit"], endpoint=endpoint, home=tmp_path)
    assert by_commit == step


def test_offline_uses_the_cache_and_says_when_it_cannot(small_hub, tmp_path):
    endpoint, requests = small_hub
    online = run(PULL, "EleutherAI/pythia-14m", "main", endpoint=endpoint, home=tmp_path)
    requests.clear()
    assert run(PULL, "EleutherAI/pythia-14m", "main", endpoint=endpoint, home=tmp_path, offline=True) == online
    failed = run(PULL, "EleutherAI/pythia-14m", "step3000", endpoint=endpoint, home=tmp_path, offline=True)
    assert failed["code"] == 3 and "not in the cache" in failed["error"] and "HF_HUB_OFFLINE" in failed["hint"]
    assert requests == []


@pytest.mark.parametrize(
    ("repo", "revision", "said"),
    [
        ("EleutherAI/pythia-14m", "step3001", "no such revision"),
        ("EleutherAI/pythia-15m", "main", "no such repository"),
        ("EleutherAI/pythia-14m", "step4000", "only pytorch_model.bin"),
        ("EleutherAI/pythia-2.8b", "step3000", "issue 205"),
    ],
)
def test_what_the_hub_lacks_is_named(repo, revision, said, small_hub, tmp_path):
    failed = run(PULL, repo, revision, endpoint=small_hub[0], home=tmp_path)
    assert failed["code"] == 3 and said in failed["error"] and failed["hint"]


def test_an_unreachable_hub_is_a_source_error(tmp_path):
    failed = run(PULL, "EleutherAI/pythia-14m", "main", endpoint="http://127.0.0.1:9", home=tmp_path)
    assert failed["code"] == 3 and "EleutherAI/pythia-14m" in failed["error"]


def test_text_comes_from_a_hub_data_set(small_hub, tmp_path):
    got = run(TEXT, endpoint=small_hub[0], home=tmp_path)
    assert got == {"shape": [3, 32], "source": "pile/small/val.jsonl.gz"}
