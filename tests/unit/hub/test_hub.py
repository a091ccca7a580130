"""The real hub client against a hub on loopback. A pull is a process: the client reads its environment once."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from hub import Fault, commit_of, environment, run, serve, sha256
from models import hugging_face, on_disk, save_checkpoint, small_config
from processes import pythia_export
from safetensors.torch import load_file, save_file

from pythia_export.checkpoint import demo_folder
from pythia_export.model.neox import tensors
from pythia_export.model.suite import geometry

REPO = "someone/small-neox"
CLIENT = tuple(int(part) for part in version("huggingface_hub").split(".")[:2])

PULL = """
import json, sys, time
from pythia_export.checkpoint import Accept, evict, open_checkpoint, pull
from pythia_export.base.errors import PythiaExportError
from pythia_export.base.progress import SILENT
from pythia_export.recipe import Model
from pythia_export.tokenizer import is_tokenizer_file
from contextlib import contextmanager

class Heard(type(SILENT)):
    def note(self, message):
        said.append(message)
    @contextmanager
    def track(self, title, total, unit=""):
        seen = bars.setdefault(title, {"total": total, "unit": unit, "steps": []})
        yield seen["steps"].append

def there(opened):
    folder = opened.tokenizer_folder.folder
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(filter(is_tokenizer_file, names))

settings = json.loads(sys.argv[1])
for asked in sys.argv[2:]:
    repo, revision = asked.split("@")
    said, bars, began = [], {}, time.monotonic()
    try:
        accept = Accept(**settings.get("accept", {}))
        pulled = pull(Model(id=repo, revision=revision), accept=accept, progress=Heard())
        opened = open_checkpoint(pulled)
        got = {
            "commit": pulled.commit, "files": sorted(p.name for p in pulled.folder.iterdir()), "notes": said,
            "sum": float(opened.tensor("embed_out.weight").float().sum()), "bars": bars,
            "record": pulled.record.to_json(),
            "tokenizer": there(opened), "weights": [str(p) for p in pulled.weights],
        }
        opened.tokenizer()
        if settings.get("evict"):
            got["freed"] = evict(pulled)
    except PythiaExportError as e:
        got = {"error": str(e), "hint": e.hint, "code": e.exit_code, "notes": said, "seconds": time.monotonic() - began}
    print(json.dumps(got))
"""


def pulls(*asked: str, hub, home: Path, offline: bool = False, before: str = "", **settings) -> list[dict]:
    return run(PULL, json.dumps(settings), *asked, hub=hub, home=home, offline=offline, before=before)


def in_shards(folder: Path, to: Path, form: str = "safetensors") -> Path:
    """The same checkpoint in two shards, without a tokenizer."""
    whole = load_file(folder / "model.safetensors")
    to.mkdir()
    stem, end = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    places = {name: f"{stem}-0000{1 + i % 2}-of-00002.{end}" for i, name in enumerate(sorted(whole))}
    for shard in sorted(set(places.values())):
        part = {n: whole[n] for n in places if places[n] == shard}
        if form == "safetensors":
            save_file(part, to / shard)
        else:
            torch.save(part, to / shard)
    (to / f"{stem}.{end}.index.json").write_text(json.dumps({"weight_map": places}))
    (to / "config.json").write_bytes((folder / "config.json").read_bytes())
    return to


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (os.system, (f"touch {self.marker}",))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Revision -> folder of a small model: single files, shards, pickles, and what is wrong."""
    root = tmp_path_factory.mktemp("hub")
    tokenizer = demo_folder() / "main" / "tokenizer.json"
    config = small_config(layers=1, vocab=4096)
    main = save_checkpoint(hugging_face(config, 0), config, root / "main", tokenizer)
    step = save_checkpoint(hugging_face(config, 1), config, root / "step3000", tokenizer)
    (main / "pytorch_model.bin").write_bytes(b"never fetched")
    (main / "special_tokens_map.json").write_text("{}")
    other = save_checkpoint(hugging_face(config, 2), config, root / "other", tokenizer)
    bare = in_shards(other, root / "step1000")
    wrong = in_shards(step, root / "broken-index")
    (wrong / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../a"}}')
    untold = in_shards(step, root / "missing-shard")
    (untold / "model-00002-of-00002.safetensors").unlink()
    pickled = save_checkpoint(hugging_face(config, 3), config, root / "step4000", tokenizer)
    whole = on_disk(hugging_face(config, 3))
    buffers = {"gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool)}
    torch.save({n: t.half() for n, t in whole.items()} | buffers, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    pickled_shards = in_shards(other, root / "pickled-shards", "pickle")
    empty = root / "empty"
    empty.mkdir()
    (empty / "config.json").write_bytes((main / "config.json").read_bytes())
    revisions = {"main": main, "step1000": bare, "step3000": step, "step4000": pickled}
    revisions |= {"broken-index": wrong, "missing-shard": untold, "pickled-shards": pickled_shards, "empty": empty}
    return revisions


@pytest.fixture(scope="module")
def running(made, tmp_path_factory):
    with serve({REPO: dict(made)}) as hub:
        yield hub


@pytest.fixture
def hub(running, made):
    running.clear()
    running.repositories[REPO] = dict(made)
    running.sizes.clear()
    return running


def test_a_revision_is_pinned_and_only_needed_files_are_fetched(hub, tmp_path):
    commit = commit_of(REPO, "step3000")
    main, step, by_commit = pulls(f"{REPO}@main", f"{REPO}@step3000", f"{REPO}@{commit}", hub=hub, home=tmp_path)
    assert main["commit"] == commit_of(REPO, "main") and step["commit"] == commit == by_commit["commit"]
    assert main["files"] == ["config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json"]
    assert main["tokenizer"] == ["special_tokens_map.json", "tokenizer.json"] and main["notes"] == []
    assert not any("pytorch_model" in line for line in hub.downloads())
    assert step["sum"] != main["sum"] and by_commit["sum"] == step["sum"]
    size = Path(step["weights"][0]).stat().st_size
    assert 2 <= hub.sent / size < 2.5, "a pinned commit is fetched once, and of the others' files their headers alone"
    held = step["record"]["files"]["model.safetensors"]["sha256"]
    assert held == sha256(Path(step["weights"][0])) and step["record"]["format"] == "safetensors"


def test_resolving_and_checking_takes_three_calls_of_the_api_at_most(hub, tmp_path):
    pulls(f"{REPO}@step3000", hub=hub, home=tmp_path)
    assert len(hub.api_calls()) == 2
    hub.clear()
    pulls(f"{REPO}@step1000", hub=hub, home=tmp_path)  # its tokenizer is main's
    assert len(hub.api_calls()) == 3


def test_a_sharded_revision_without_a_tokenizer_is_given_mains_and_it_is_said(hub, tmp_path, made):
    (sharded,) = pulls(f"{REPO}@step1000", hub=hub, home=tmp_path)
    assert sharded["sum"] == float(
        load_file(made["main"].parent / "other" / "model.safetensors")["embed_out.weight"].float().sum()
    )
    assert sharded["files"] == [
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]  # fmt: skip
    assert sharded["tokenizer"] == ["special_tokens_map.json", "tokenizer.json"]
    assert len(sharded["notes"]) == 1 and "that of main" in sharded["notes"][0]
    assert sharded["record"]["tokenizer"] == {"revision": "main", "commit": commit_of(REPO, "main")}
    hub.clear()
    (again,) = pulls(f"{REPO}@step1000", hub=hub, home=tmp_path, offline=True)
    assert again["sum"] == sharded["sum"] and again["tokenizer"] == sharded["tokenizer"] and hub.requests == []


@pytest.mark.parametrize("content", ["{", '{"model": {"type": "BPE"}}', None])
def test_an_unusable_tokenizer_gives_way_to_mains(hub, tmp_path, made, content):
    folder = shutil.copytree(made["step3000"], tmp_path / "made")
    if content is None:  # one of another model: more entries than this one has
        settings = json.loads((folder / "tokenizer.json").read_text())
        settings["added_tokens"] += [dict(settings["added_tokens"][0], id=5000 + i, content=f"<{i}>") for i in range(3)]
        content = json.dumps(settings)
    (folder / "tokenizer.json").write_text(content)
    hub.repositories[REPO]["step3000"] = folder
    (got,) = pulls(f"{REPO}@step3000", hub=hub, home=tmp_path / "home")
    assert "cannot be used" in got["notes"][0] and got["record"]["tokenizer"]["revision"] == "main"


def test_offline_uses_the_cache_and_says_when_it_cannot(hub, tmp_path):
    online = pulls(f"{REPO}@main", hub=hub, home=tmp_path)
    hub.clear()
    again, failed = pulls(f"{REPO}@main", f"{REPO}@step3000", hub=hub, home=tmp_path, offline=True)
    assert again["sum"] == online[0]["sum"] and again["commit"] == online[0]["commit"]
    assert again["record"]["files"] == online[0]["record"]["files"]
    assert failed["code"] == 3 and "not in the cache" in failed["error"] and "--offline" in failed["hint"]
    assert hub.requests == []


FAILURES = {
    f"{REPO}@not-a-branch": (3, "no such revision"),
    "EleutherAI/pythia-15m@main": (3, "no such repository"),
    f"{REPO}@empty": (3, "no weights"),
    f"{REPO}@broken-index": (4, "not a file beside it"),
    f"{REPO}@missing-shard": (3, "which is missing"),
    "EleutherAI/pythia-2.8b@step3000": (3, "issue 205"),
    "EleutherAI/pythia-410m-seed2@step111000": (3, "issue 202"),
    "not//an id@main": (3, "not//an id"),
}


def test_what_the_hub_lacks_is_named(hub, tmp_path):
    answers = pulls(*FAILURES, hub=hub, home=tmp_path)
    for failed, (asked, (code, said)) in zip(answers, FAILURES.items(), strict=True):
        assert failed["code"] == code and said in failed["error"], asked
        assert failed["hint"] or code == 4, asked
    assert "pythia-14m" in answers[1]["hint"], "the nearest names of the suite"
    assert not any("2.8b" in line for line in hub.requests), "a revision known to be wrong is not even asked for"


def test_an_unreachable_hub_is_a_source_error_at_once_that_names_the_cache(tmp_path):
    (failed,) = pulls(f"{REPO}@main", hub="http://127.0.0.1:9", home=tmp_path)
    assert failed["code"] == 3 and REPO in failed["error"] and "--offline" in failed["hint"]
    assert failed["seconds"] < 20, "it was asked again and again"


def test_a_step_with_the_weights_of_another_is_refused_before_it_is_fetched(hub, tmp_path, made):
    hub.repositories[REPO]["step5000"] = made["step3000"]
    (refused,) = pulls(f"{REPO}@step5000", hub=hub, home=tmp_path)
    assert (
        refused["code"] == 3 and "step5000 has the weights of step3000 (model.safetensors, sha256" in refused["error"]
    )
    assert "--allow-duplicate-revision" in refused["hint"] and hub.downloads() == []
    hub.clear()
    (taken,) = pulls(f"{REPO}@step5000", hub=hub, home=tmp_path, accept={"duplicates": "tell"})
    assert taken["record"]["same_weights_as"] == ["step3000"] and "taken all the same" in taken["notes"][0]
    asked = [line for line in hub.requests if line.startswith("HEAD ")]
    assert not any(commit_of(REPO, "step3000") in line for line in asked), "hashes of a commit are asked for once"
    offline = {"hub": "http://127.0.0.1:9", "home": tmp_path, "offline": True}
    (again,) = pulls(f"{REPO}@step5000", **offline, accept={"duplicates": "tell"})
    assert again["record"] == taken["record"], "what was found is recorded offline too"
    (refused,) = pulls(f"{REPO}@step5000", **offline)
    assert refused["code"] == 3 and "step5000 has the weights of step3000" in refused["error"]
    (other,) = pulls(f"{REPO}@step3000", **offline)
    assert "is not in the cache" in other["error"], "and what it shares with others is not known from names alone"


def test_the_tensors_of_another_step_are_found_in_other_files_too(hub, tmp_path, made):
    """Of what was pulled here, whatever files they lie in: the hub tells nothing but the hashes of files."""
    hub.repositories[REPO]["step6000"] = in_shards(made["step3000"], tmp_path / "shards")
    hub.repositories[REPO]["step7000"] = in_shards(made["step3000"], tmp_path / "pickles", "pickle")
    first, refused = pulls(f"{REPO}@step3000", f"{REPO}@step6000", hub=hub, home=tmp_path / "home")
    assert first["record"]["same_weights_as"] == []
    assert refused["code"] == 3 and "step6000 has the tensors of step3000, in files of another" in refused["error"]
    assert "--allow-duplicate-revision" in refused["hint"]
    (taken,) = pulls(f"{REPO}@step7000", hub=hub, home=tmp_path / "home", accept={"duplicates": "tell"})
    assert taken["record"]["same_weights_as"] == ["step3000", "step6000"] and "taken all the same" in taken["notes"][-1]


def test_the_tensors_of_another_step_in_another_order_are_found_before_anything_is_fetched(hub, tmp_path, made):
    """By headers and a few ranges, though the other step was never pulled here."""
    turned = tmp_path / "turned"
    shutil.copytree(made["step3000"], turned)
    (turned / "model.safetensors").write_bytes(reversed_file(made["step3000"] / "model.safetensors"))
    hub.repositories[REPO]["step6000"] = turned
    (refused,) = pulls(f"{REPO}@step6000", hub=hub, home=tmp_path / "home")
    assert refused["code"] == 3 and "step6000 has the tensors of step3000, in files of another" in refused["error"]
    assert hub.sent < (turned / "model.safetensors").stat().st_size / 2, "nothing but parts"
    (taken,) = pulls(f"{REPO}@step6000", hub=hub, home=tmp_path / "home", accept={"duplicates": "tell"})
    assert taken["record"]["same_weights_as"] == ["step3000"]
    offline = {"hub": "http://127.0.0.1:9", "home": tmp_path / "home", "offline": True}
    (again,) = pulls(f"{REPO}@step6000", **offline, accept={"duplicates": "tell"})
    assert again["record"] == taken["record"]
    hub.clear()
    (other,) = pulls(f"{REPO}@step1000", hub=hub, home=tmp_path / "home")
    assert other["record"]["same_weights_as"] == []


def reversed_file(path: Path) -> bytes:
    """The same tensors, the last first."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    meta, at, body, entries = header.pop("__metadata__", None), 0, b"", {}
    for name, entry in sorted(header.items(), key=lambda item: -item[1]["data_offsets"][0]):
        begin, end = entry["data_offsets"]
        body += data[8 + length + begin : 8 + length + end]
        entries[name] = entry | {"data_offsets": [at, at + end - begin]}
        at += end - begin
    raw = json.dumps(({"__metadata__": meta} if meta else {}) | entries).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + body


MOVED = """
import json, sys
from pythia_export.checkpoint import moved
from pythia_export.recipe import Model
from pythia_export.records.manifest import Source
said = []
for repo, revision, commit, *parts in json.loads(sys.argv[1]):
    averaged = [{"revision": r, "commit": c, "weight": 1 / len(parts)} for r, c in parts]
    origin = {"name": repo, "revision": revision, "commit": commit} | ({"averaged": averaged} if parts else {})
    said.append(moved(Model(id=repo, revision=revision), Source.model_validate(origin)))
print(json.dumps(said))
"""


def test_a_branch_that_moved_since_is_told(hub, tmp_path):
    here, before = commit_of(REPO, "main"), commit_of(REPO, "step1000")
    asked = [[REPO, "main", here], [REPO, "main", before], [REPO, "main", f"{before}+sha256:0"], [REPO, before, before]]
    (found,) = run(MOVED, json.dumps([*asked, ["demo", "main", "x"]]), hub=hub, home=tmp_path)
    said = f"{REPO}: main is {here[:12]} now; this artifact was made of {before[:12]}"
    assert found == [None, said, said, None, None]
    same, other = [["main", here], ["step1000", before]], [["step1000", before], ["main", before]]
    means = [[REPO, "mean(step1000,main)", "mean:0", *parts] for parts in (same, other)]
    (found,) = run(MOVED, json.dumps(means), hub=hub, home=tmp_path)
    assert found == [None, said], "each revision of a mean is asked for by itself"
    (found,) = run(MOVED, json.dumps(asked), hub="http://127.0.0.1:9", home=tmp_path, offline=True)
    assert found == [None] * 4, "offline nothing is asked"


def test_equal_by_design_is_no_duplicate(hub, tmp_path, made):
    revisions = {"main": made["main"], "step0": made["step3000"], "step1": made["step3000"], "step143000": made["main"]}
    hub.repositories[REPO] = revisions
    answers = pulls(*(f"{REPO}@{revision}" for revision in revisions), hub=hub, home=tmp_path)
    assert [a["record"].get("same_weights_as", []) for a in answers] == [[], [], [], []]
    revisions["step64"] = made["main"]
    (failed,) = pulls(f"{REPO}@step64", hub=hub, home=tmp_path)
    assert "has the weights of step143000, main" in failed["error"]


def test_a_mixture_of_two_steps_is_refused(hub, tmp_path, made):
    mixed = in_shards(made["step3000"], tmp_path / "mixed")
    first = "model-00001-of-00002.safetensors"
    shutil.copyfile(made["step1000"] / first, mixed / first)
    hub.repositories[REPO]["step9000"] = mixed
    (failed,) = pulls(f"{REPO}@step9000", hub=hub, home=tmp_path / "home")
    assert failed["code"] == 3 and f"shares {first} with step1000: a mixture" in failed["error"]


def test_revisions_that_cannot_be_compared_are_told(hub, tmp_path):
    hub.faults.append(Fault(f"HEAD /{REPO}/resolve/{commit_of(REPO, 'step4000')}", times=99, status=403))
    (got,) = pulls(f"{REPO}@step3000", hub=hub, home=tmp_path)
    assert (
        "hashes of 1 other revisions could not be had" in got["notes"][0] and got["record"]["compared_revisions"] == 2
    )


@pytest.mark.parametrize("where", ["/api/models/", "HEAD /someone", "GET /lfs/"])
def test_what_passes_by_itself_is_tried_again_after_the_wait_that_is_asked_for(hub, tmp_path, where):
    hub.faults += [Fault(where, status=429, headers={"Retry-After": "1"}), Fault(where, status=503)]
    (got,) = pulls(f"{REPO}@main", hub=hub, home=tmp_path)
    assert got["commit"] == commit_of(REPO, "main") and hub.faults[1].times == 0
    # Asked for a file, the client itself tries again after one of the two and says nothing: 0.34 and 1.33 after a 429,
    # 0.36 after a 503. What comes through to us is the other one; of a HEAD 1.33 lets neither through.
    heard = ("429",) if where == "/api/models/" else ("429", "503")
    told = [note for note in got["notes"] if "trying again in 1 s" in note]
    by_the_client = where.startswith("HEAD") and CLIENT >= (1, 0)
    assert by_the_client or any(status in note for note in told for status in heard), got["notes"]


def test_a_hub_that_only_fails_is_given_up(hub, tmp_path):
    hub.faults.append(Fault("/api/models/", times=99, status=500, headers={"Retry-After": "0"}))
    (failed,) = pulls(f"{REPO}@main", hub=hub, home=tmp_path)
    assert failed["code"] == 3 and "500" in failed["error"] and 2 < len(hub.requests) < 10
    hub.clear()
    hub.faults.append(Fault("/api/models/", times=99, status=403))
    (failed,) = pulls(f"{REPO}@main", hub=hub, home=tmp_path)
    assert failed["code"] == 3 and len(hub.requests) == 1, "403 does not pass by itself"


@pytest.fixture(scope="module")
def large(made, tmp_path_factory):
    """26 MB: the client writes pieces of 10 MiB, and what it has written is what it can resume."""
    folder = tmp_path_factory.mktemp("large") / "large"
    config = small_config(layers=1, vocab=50304)
    shutil.copytree(made["step3000"], folder)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    zeros = {spec.name: torch.zeros(spec.shape, dtype=torch.float16) for spec in tensors(config)}
    save_file(zeros, folder / "model.safetensors")
    return folder


PIECE = 10 << 20
CUT = PIECE + 5
KEPT = PIECE  # of what came: it is written in pieces of 1 MiB
XET = "import os; os.environ['HF_HUB_DISABLE_XET'] = '0'\n"  # the client has hf_xet, though this hub does not


def rests(hub) -> list[str]:
    return [line.rpartition("bytes=")[2] for line in hub.downloads() if "/lfs/" in line and "bytes=" in line]


def left_in(home: Path) -> list[str]:
    return [path.name for path in home.rglob("*.incomplete")]


def test_a_cut_download_goes_on_where_it_was_cut(hub, tmp_path, large):
    hub.repositories[REPO]["large"] = large
    size = (large / "model.safetensors").stat().st_size
    hub.faults += [Fault("GET /lfs/", cut=CUT), Fault("GET /lfs/", cut=CUT)]
    (got,) = pulls(f"{REPO}@large", hub=hub, home=tmp_path)
    assert rests(hub) == [f"{KEPT}-{size - 1}", f"{2 * KEPT}-{size - 1}"], (got, hub.downloads(), hub.faults)
    assert hub.sent < size + 1_000_000 and got["commit"] == commit_of(REPO, "large") and not left_in(tmp_path)


def test_an_interrupted_pull_is_taken_up_by_the_next(hub, tmp_path, large):
    hub.repositories[REPO]["large"] = large
    size = (large / "model.safetensors").stat().st_size
    hub.faults += [Fault("GET /lfs/", cut=CUT), Fault("GET /lfs/", times=99, status=403)]
    (failed,) = pulls(f"{REPO}@large", hub=hub, home=tmp_path)
    assert failed["code"] == 3 and "403" in failed["error"]
    assert failed["notes"][-1].endswith("0.01 of 0.03 GB have come and are kept; the next try goes on there")
    hub.clear()
    (got,) = pulls(f"{REPO}@large", hub=hub, home=tmp_path)
    assert rests(hub) == [f"{KEPT}-{size - 1}"]
    assert hub.sent < size - KEPT + 1_000_000 and got["commit"] == commit_of(REPO, "large")
    assert sum(got["bars"][f"Pulling {REPO}"]["steps"]) == got["bars"][f"Pulling {REPO}"]["total"]
    assert not left_in(tmp_path), "the part is the file now"


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_pull_that_was_killed_is_taken_up_by_the_next(hub, tmp_path, large, end):
    hub.repositories[REPO]["large"] = large
    size = (large / "model.safetensors").stat().st_size
    hub.faults.append(Fault("GET /lfs/", slow=0.5))
    command = [sys.executable, "-m", "pythia_export", "pull", f"{REPO}@large"]
    started = subprocess.Popen(command, env=environment(hub, tmp_path), text=True, stderr=subprocess.PIPE)
    while not any(path.stat().st_size > 4_000_000 for path in tmp_path.rglob("*.incomplete")):
        assert started.poll() is None
        time.sleep(0.05)
    started.send_signal(end)
    _, said = started.communicate(timeout=30)
    if end == signal.SIGINT:
        assert started.returncode == 130 and "GB have come and are kept; the next try goes on there" in said
    (part,) = tmp_path.rglob("*.incomplete")
    have = part.stat().st_size
    hub.clear()
    (got,) = pulls(f"{REPO}@large", hub=hub, home=tmp_path)
    assert rests(hub) == [f"{have}-{size - 1}"] and got["commit"] == commit_of(REPO, "large")


@pytest.mark.parametrize("more", [-1_000_000, 0, 1], ids=["begun", "whole", "too long"])
def test_a_damaged_part_never_becomes_the_file(hub, tmp_path, large, more):
    """What a part holds is not trusted: the file that comes of it is hashed, and fetched again if need be."""
    hub.repositories[REPO]["large"] = large
    file = large / "model.safetensors"
    digest = sha256(file)
    blobs = tmp_path / "hub" / f"models--{REPO.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{digest}.pythia-export.incomplete").write_bytes(b"?" * (file.stat().st_size + more))
    (got,) = pulls(f"{REPO}@large", hub=hub, home=tmp_path)
    assert got["commit"] == commit_of(REPO, "large") and sha256(blobs / digest) == digest
    assert not left_in(tmp_path)


def test_what_xet_did_not_finish_is_fetched_by_parts(hub, tmp_path, large):
    """Where the client has Xet it goes first. What it did not finish is begun once more; then nothing is lost."""
    hub.repositories[REPO]["large"] = large
    size = (large / "model.safetensors").stat().st_size
    hub.faults += [Fault("GET /lfs/", times=99, status=403)]
    (failed,) = pulls(f"{REPO}@large", hub=hub, home=tmp_path, before=XET)
    assert failed["code"] == 3 and "the next try fetches it by plain HTTP, which can go on" in failed["notes"][-1]
    hub.clear()
    hub.faults += [Fault("GET /lfs/", cut=CUT), Fault("GET /lfs/", times=99, status=403)]
    (failed,) = pulls(f"{REPO}@large", hub=hub, home=tmp_path, before=XET)
    assert failed["code"] == 3 and "have come and are kept" in failed["notes"][-1]
    hub.clear()
    (got,) = pulls(f"{REPO}@large", hub=hub, home=tmp_path, before=XET)
    assert rests(hub) == [f"{KEPT}-{size - 1}"] and got["commit"] == commit_of(REPO, "large")


def test_what_a_killed_client_left_goes_once_the_file_is_there(hub, tmp_path, large):
    hub.repositories[REPO]["large"] = large
    digest = sha256(large / "model.safetensors")
    blobs = tmp_path / "hub" / f"models--{REPO.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    left, writing = blobs / f"{digest}.0a1b2c3d.incomplete", blobs / f"{digest}.4e5f6a7b.incomplete"
    left.write_bytes(b"x")
    writing.write_bytes(b"x")
    os.utime(left, (1, 1))
    pulls(f"{REPO}@large", hub=hub, home=tmp_path)
    assert left_in(tmp_path) == [writing.name], "that of a client which may be at it stays"


def test_a_mirror_without_ranges_gives_the_file_whole(hub, tmp_path, large):
    hub.repositories[REPO]["large"] = large
    hub.faults += [Fault("GET /lfs/", cut=CUT), Fault("GET /lfs/", times=99, whole=True)]
    (got,) = pulls(f"{REPO}@large", hub=hub, home=tmp_path)
    assert got["commit"] == commit_of(REPO, "large") and not left_in(tmp_path)
    hub.clear()
    hub.sizes["model.safetensors"] = (large / "model.safetensors").stat().st_size + 7
    (failed,) = pulls(f"{REPO}@large", hub=hub, home=tmp_path / "lied")
    assert failed["code"] == 4 and "was expected" in failed["error"] or "were expected" in failed["error"]


def test_bytes_are_told_while_they_come(hub, tmp_path, large):
    hub.repositories[REPO]["large"] = large
    hub.faults.append(Fault("GET /lfs/", slow=0.2))
    (got,) = pulls(f"{REPO}@large", hub=hub, home=tmp_path)
    bar, size = got["bars"][f"Pulling {REPO}"], (large / "model.safetensors").stat().st_size
    assert bar["unit"] == "bytes" and size <= bar["total"] < size + 5000 and sum(bar["steps"]) == bar["total"]
    # Three pieces of at most 10 MiB; on a busy machine two of them are told together.
    assert len([n for n in bar["steps"] if n > 1_000_000]) > 1, "not at its end alone"
    assert got["bars"][f"Checking {REPO}"]["total"] > 0


def test_a_spoilt_body_is_fetched_again_and_refused_if_it_stays(hub, tmp_path, made):
    hub.faults.append(Fault("GET /lfs/", spoil=True))
    (got,) = pulls(f"{REPO}@main", hub=hub, home=tmp_path / "once")
    assert "damaged and fetched again" in got["notes"][0] and sha256(Path(got["weights"][0])) == sha256(
        made["main"] / "model.safetensors"
    )
    hub.clear()
    hub.faults.append(Fault("GET /lfs/", times=99, spoil=True))
    (failed,) = pulls(f"{REPO}@main", hub=hub, home=tmp_path / "always")
    assert failed["code"] == 4 and "is not the listed one" in failed["error"] and "was expected" in failed["error"]
    left = [p for p in (tmp_path / "always").rglob("*") if p.is_file() and p.stat().st_size > 100_000]
    assert left == [], "nothing wrong stays in the cache"


def test_a_flipped_byte_in_the_cache_is_found_and_mended(hub, tmp_path, made):
    (got,) = pulls(f"{REPO}@step3000", hub=hub, home=tmp_path)
    blob = Path(got["weights"][0]).resolve()
    data = bytearray(blob.read_bytes())
    data[-1000] ^= 4
    blob.write_bytes(data)
    (failed,) = pulls(f"{REPO}@step3000", hub=hub, home=tmp_path, offline=True)
    assert failed["code"] == 4 and "its hash is" in failed["error"] and "mended" in failed["hint"]
    (mended,) = pulls(f"{REPO}@step3000", hub=hub, home=tmp_path)
    assert mended["sum"] == got["sum"] and "damaged" in mended["notes"][0]


def test_a_shard_of_another_revision_in_the_cache_is_found(hub, tmp_path, made):
    hub.repositories[REPO]["step2000"] = in_shards(made["step3000"], tmp_path / "step2000")
    ours, theirs = pulls(f"{REPO}@step1000", f"{REPO}@step2000", hub=hub, home=tmp_path / "home")
    link = Path(ours["weights"][0])
    link.unlink()
    link.symlink_to(Path(theirs["weights"][0]).resolve())
    (mended,) = pulls(f"{REPO}@step1000", hub=hub, home=tmp_path / "home")
    assert mended["sum"] == ours["sum"] and "damaged" in mended["notes"][0]


def test_a_file_that_does_not_fit_is_refused_before_it_is_fetched(hub, tmp_path):
    hub.sizes["model.safetensors"] = 10**18
    (failed,) = pulls(f"{REPO}@main", hub=hub, home=tmp_path)
    assert (
        failed["code"] == 7 and "1,000,000,000.00 GB" in failed["error"] and not any("/lfs/" in x for x in hub.requests)
    )
    hub.sizes["model.safetensors"] = 12345
    (failed,) = pulls(f"{REPO}@main", hub=hub, home=tmp_path)
    assert failed["code"] == 4 and "12,345 were expected" in failed["error"]


def test_a_disk_that_fills_up_is_a_resource_error_and_nothing_half_written_is_used(hub, tmp_path):
    pytest.importorskip("resource")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
    (failed,) = pulls(f"{REPO}@main", hub=hub, home=tmp_path, before=limit)
    assert failed["code"] == 7 and "no space left" in failed["error"] and "HF_HOME" in failed["hint"]
    (got,) = pulls(f"{REPO}@main", hub=hub, home=tmp_path)
    assert got["commit"] == commit_of(REPO, "main")


def test_a_cache_that_cannot_be_used_is_named(hub, tmp_path):
    (tmp_path / "home").write_text("a file")
    (failed,) = pulls(f"{REPO}@main", hub=hub, home=tmp_path / "home")
    assert failed["code"] == 3 and str(tmp_path / "home") in failed["error"] and "HF_HOME" in failed["hint"]


def test_two_pulls_at_once_fetch_once(hub, tmp_path):
    hub.faults.append(Fault("GET /lfs/", slow=0.3))
    with ThreadPoolExecutor(2) as both:
        (first,), (second,) = both.map(lambda _: pulls(f"{REPO}@main", hub=hub, home=tmp_path), range(2))
    assert first["sum"] == second["sum"] and len([x for x in hub.downloads() if "/lfs/" in x]) == 1


@pytest.mark.parametrize(("revision", "files"), [("step4000", 1), ("pickled-shards", 2)])
def test_pickles_are_converted_in_a_process_of_their_own(hub, tmp_path, made, revision, files):
    (got,) = pulls(f"{REPO}@{revision}", hub=hub, home=tmp_path)
    assert got["record"]["format"] == "pickle" and len(got["weights"]) == files == len(got["record"]["files"])
    assert sum("in a process of its own" in note for note in got["notes"]) == files
    expected = hugging_face(small_config(layers=1, vocab=4096), 3 if files == 1 else 2)
    assert got["sum"] == float(expected.get_output_embeddings().weight.detach().sum())
    hub.clear()
    (again,) = pulls(f"{REPO}@{revision}", hub=hub, home=tmp_path)
    assert again["sum"] == got["sum"] and not any("process" in note for note in again["notes"]), "converted once"
    (refused,) = pulls(f"{REPO}@{revision}", hub=hub, home=tmp_path, accept={"pickles": False})
    assert refused["code"] == 3 and "--no-pickle" in refused["error"]


def test_a_pickle_that_would_execute_does_not(hub, tmp_path, made):
    folder = shutil.copytree(made["step4000"], tmp_path / "bomb")
    marker = tmp_path / "executed"
    with (folder / "pytorch_model.bin").open("wb") as f:
        pickle.dump({"embed_out.weight": Bomb(marker)}, f)
    torch.save({"embed_out.weight": Bomb(marker)}, tmp_path / "zipped.bin")
    hub.repositories[REPO]["bomb"] = folder
    (failed,) = pulls(f"{REPO}@bomb", hub=hub, home=tmp_path / "home")
    assert failed["code"] == 4 and "cannot be read as tensors alone" in failed["error"]
    shutil.copyfile(tmp_path / "zipped.bin", folder / "pytorch_model.bin")
    (failed,) = pulls(f"{REPO}@bomb", hub=hub, home=tmp_path / "home2")
    assert failed["code"] == 4 and "system" in failed["error"] and "Nothing in it was executed" in failed["hint"]
    assert not marker.exists()
    assert not list((tmp_path / "home2").rglob("*.safetensors"))


def test_a_checkpoint_is_taken_out_of_the_cache_again(hub, tmp_path):
    kept, gone = f"{REPO}@main", f"{REPO}@step4000"
    (first,) = pulls(kept, hub=hub, home=tmp_path)
    (got,) = pulls(gone, hub=hub, home=tmp_path, evict=True)
    assert got["freed"] > 2e6 and not any(Path(path).exists() for path in got["weights"])
    assert Path(first["weights"][0]).exists()
    (failed,) = pulls(gone, hub=hub, home=tmp_path, offline=True)
    assert "not in the cache" in failed["error"]


def test_weights_under_anothers_name_are_refused(hub, tmp_path, made):
    config = geometry("EleutherAI/pythia-31m")
    folder = tmp_path / "made"
    shutil.copytree(made["main"], folder)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    hub.repositories["EleutherAI/pythia-14m"] = {"main": folder}
    (failed,) = pulls("EleutherAI/pythia-14m@main", hub=hub, home=tmp_path / "home")
    assert failed["code"] == 4 and "hidden_size is 256" in failed["error"] and "14,067,712" in failed["error"]
    assert any("14m-deduped until" in note for note in failed["notes"])


def test_the_command_pulls_by_name_and_says_what_it_saw(hub, tmp_path):
    def command(*args: str, code: int = 0):
        return pythia_export("pull", *args, env=environment(hub, tmp_path), check=code)

    done = command(f"{REPO}@step3000")
    assert Path(done.stdout.strip()).is_dir() and commit_of(REPO, "step3000") in done.stderr
    assert "with 3 other revisions: none the same" in done.stderr
    facts = json.loads(command(f"{REPO}@step3000", "--offline", "--json").stdout)
    assert facts["commit"] == commit_of(REPO, "step3000") and facts["dtype"] == "float16"
    assert command(f"{REPO}@main", "--offline", code=3).stdout == ""
    assert "--no-pickle" in command(f"{REPO}@step4000", "--no-pickle", code=3).stderr


def test_a_mean_pins_every_revision_and_is_the_same_mean_by_their_commits(hub, tmp_path):
    commits = [commit_of(REPO, revision) for revision in ("step1000", "step3000")]
    (found,) = pulls(f"{REPO}@mean(step1000,step3000)", hub=hub, home=tmp_path)
    assert [one["commit"] for one in found["record"]["averaged"]] == commits
    assert found["commit"].startswith("mean:")
    pinned, offline = f"{REPO}@mean({','.join(commits)})", f"{REPO}@mean(step1000..step3000)"
    (again,) = pulls(pinned, hub=hub, home=tmp_path)
    assert (again["commit"], again["sum"]) == (found["commit"], found["sum"])
    (refused,) = pulls(offline, hub=hub, home=tmp_path, offline=True)
    assert "cannot be asked offline" in refused["error"]
    (freed,) = pulls(f"{REPO}@mean(step1000,step3000)", hub=hub, home=tmp_path, evict=True)
    assert freed["freed"] > 0
