"""Text from the hub, by the real client from a hub on loopback: fetched whole, in parts, or sequence by sequence."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hub import Fault, commit_of, environment, run, serve
from models import hugging_face, save_checkpoint, small_config
from processes import pythia_export
from texts import in_parts, memory_map

from pythia_export.checkpoint import demo_folder
from pythia_export.recipe import BATCH

PILE, ORDER = "pile/large", "EleutherAI/pile-standard-pythia-preshuffled"

TEXT = """
import json, sys
from tokenizers import Tokenizer
from pythia_export.checkpoint import demo_folder
from pythia_export.corpus import calibration_windows, verify_windows
from pythia_export.base.errors import PythiaExportError
from pythia_export.model.neox import NeoXConfig
from pythia_export.base.progress import SILENT
from pythia_export.recipe import Calibration, Verify

class Heard(type(SILENT)):
    def note(self, message):
        said.append(message)

tokenizer = Tokenizer.from_file(str(demo_folder() / "main" / "tokenizer.json"))
for asked in sys.argv[1:]:
    section, said = json.loads(asked), []
    kind, read = (Verify, verify_windows) if "tokens" in section else (Calibration, calibration_windows)
    try:
        got = read(kind(**section), tokenizer, NeoXConfig(4096, 128, 6, 4, 512), Heard())
        found = {"sha256": got.sha256, "source": got.source, "first": got.ids[:, 0].tolist(), "subsets": [*got.subsets]}
    except PythiaExportError as e:
        found = {"error": str(e), "hint": e.hint, "code": e.exit_code}
    print(json.dumps(found | {"notes": said}))
"""

# As a train shard of the Pile is read: beyond WHOLE, in pieces, with a buffer that fills.
SMALL = """
from pythia_export.corpus import find, sources
from pythia_export.hub import ranges
find.WHOLE, sources.BUFFER, ranges.PIECE = 10_000, 50, 5_000
"""


def texts(*sections: dict, hub, home: Path, offline: bool = False, before: str = SMALL) -> list[dict]:
    return run(TEXT, *map(json.dumps, sections), hub=hub, home=home, offline=offline, before=before)


def lines(n: int) -> bytes:
    rng = np.random.default_rng(0)
    words = (" ".join(f"{w:x}" for w in rng.integers(0, 1 << 30, 40)) for _ in range(n))
    names = ("Github", "Wikipedia (en)")
    rows = ({"text": f"{i}: {w}", "meta": {"pile_set_name": names[i % 2]}} for i, w in enumerate(words))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    pile, order, several, single = (root / name for name in ("pile", "order", "several", "single"))
    for folder in (pile, order, several, single):
        folder.mkdir()
    (pile / "val.jsonl.zst").write_bytes(zstandard.compress(lines(3000)))
    (pile / "val.jsonl").write_bytes(lines(3000))
    (pile / "small.jsonl.gz").write_bytes(gzip.compress(lines(15)))
    in_parts(memory_map(order, n=5 * BATCH, size=33), [100_001, 150_000], last=2)
    for name in ("a.jsonl.zst", "b.jsonl.zst", "README.md"):
        (several / name).write_bytes(b"")
    (single / "README.md").write_bytes(b"a card")
    (single / "train.jsonl.gz").write_bytes(gzip.compress(lines(15)))
    return {PILE: pile, ORDER: order, "pile/several": several, "pile/single": single}


@pytest.fixture(scope="module")
def running(folders):
    with serve({f"datasets/{name}": {"main": folder} for name, folder in folders.items()}) as hub:
        yield hub


@pytest.fixture
def hub(running, folders):
    running.clear()
    running.sizes.clear()
    running.repositories.clear()
    running.repositories |= {f"datasets/{name}": {"main": folder} for name, folder in folders.items()}
    return running


def of(name: str | None, **more) -> dict:
    return {"source": "hub", "dataset": PILE, "file": name, "samples": 3, "sequence_length": 32} | more


def local(path: Path, **more) -> dict:
    return {"source": "file", "path": str(path), "samples": 3, "sequence_length": 32} | more


def test_a_small_file_is_fetched_whole_pinned_and_used_offline(hub, folders, tmp_path):
    small = of("small.jsonl.gz")
    online, same = texts(small, local(folders[PILE] / "small.jsonl.gz"), hub=hub, home=tmp_path)
    assert online["source"] == f"{PILE}/small.jsonl.gz at {commit_of(f'datasets/{PILE}', 'main')[:12]}"
    assert online["sha256"] == same["sha256"] and len(hub.api_calls()) == 1
    assert not any(" bytes=" in line for line in hub.downloads())
    hub.clear()
    (offline,) = texts(small, hub=hub, home=tmp_path, offline=True)
    assert offline == online and hub.requests == []


@pytest.mark.parametrize("file", ["val.jsonl.zst", "val.jsonl"])
def test_of_a_large_file_only_the_front_is_read_and_once(hub, folders, tmp_path, file):
    online, same = texts(of(file), local(folders[PILE] / file), hub=hub, home=tmp_path)
    assert online["sha256"] == same["sha256"] and "only its front is read" in online["notes"][0]
    asked = [line.rpartition("bytes=")[2] for line in hub.downloads() if " /lfs" not in line]
    assert asked == [f"{5000 * i}-{5000 * i + 4999}" for i in range(len(asked))] and len(asked) > 2
    size = (folders[PILE] / file).stat().st_size
    assert hub.sent == 5000 * len(asked) < size / 3, "of 3,000 documents about 53 are needed"
    hub.clear()
    (again,) = texts(of(file), hub=hub, home=tmp_path)
    assert again == online and hub.downloads() == [] and len(hub.api_calls()) == 1
    hub.clear()
    offline, more = texts(of(file), of(file, samples=10**4), hub=hub, home=tmp_path, offline=True)
    assert offline == online and hub.requests == []
    assert more["code"] == 3 and "is not in the cache" in more["error"] and "val.jsonl" in more["error"]


def test_a_large_file_that_the_cache_has_is_not_read_in_parts(hub, tmp_path):
    (whole,) = texts(of("val.jsonl.zst"), hub=hub, home=tmp_path, before="")  # below the true limit: fetched
    hub.clear()
    (again,) = texts(of("val.jsonl.zst"), hub=hub, home=tmp_path, before="from pythia_export.corpus import find\n"
                     "find.WHOLE = 1000\n")  # fmt: skip
    assert again["sha256"] == whole["sha256"] and again["notes"] == [] and hub.downloads() == []


def test_the_end_of_a_large_file_is_its_end(hub, folders, tmp_path):
    everything, same = texts(
        *(x | {"samples": 4500, "eos": False} for x in (of("val.jsonl.zst"), local(folders[PILE] / "val.jsonl"))),
        hub=hub, home=tmp_path,
    )  # fmt: skip
    assert everything["sha256"] == same["sha256"]
    (short,) = texts(of("val.jsonl.zst", samples=10**5), hub=hub, home=tmp_path)
    assert short["code"] == 3 and "tokens in 3,000 documents" in short["error"]
    assert hub.sent == (folders[PILE] / "val.jsonl.zst").stat().st_size, "each part once"


@pytest.mark.parametrize(
    "fault",
    [{"cut": 300}, {"status": 429, "headers": {"Retry-After": "1"}}, {"status": 503}],
    ids=["cut", "429", "503"],
)
def test_a_part_that_does_not_come_is_asked_for_again(hub, folders, tmp_path, fault):
    hub.faults.append(Fault("GET /lfs/", **fault))
    got, same = texts(of("val.jsonl"), local(folders[PILE] / "val.jsonl"), hub=hub, home=tmp_path)
    assert got["sha256"] == same["sha256"] and "trying again in 1 s" in got["notes"][1]


def test_a_hub_that_sends_the_whole_file_or_another_is_refused_before_it_is_read(hub, tmp_path):
    hub.faults.append(Fault("GET /lfs/", whole=True))
    (whole,) = texts(of("val.jsonl"), hub=hub, home=tmp_path)
    assert (
        whole["code"] == 4
        and "in part and sent whole (status 200)" in whole["error"]
        and "HF_ENDPOINT" in whole["hint"]
    )
    hub.sizes["val.jsonl"] = 10**6
    (other,) = texts(of("val.jsonl"), hub=hub, home=tmp_path)
    assert other["code"] == 4 and "bytes 0 to 4999 of 1000000 were asked for, bytes 0-4999/" in other["error"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 1000], (
        "nothing is kept"
    )


def test_a_part_that_was_damaged_where_it_is_kept_is_fetched_again(hub, tmp_path):
    (first,) = texts(of("val.jsonl"), hub=hub, home=tmp_path)
    parts = sorted((tmp_path / "pythia-export" / "ranges").rglob("*-5000"))
    data = bytearray(parts[0].read_bytes())
    data[17] ^= 1
    parts[0].write_bytes(data)
    hub.clear()
    (offline,) = texts(of("val.jsonl"), hub=hub, home=tmp_path, offline=True)
    assert offline["code"] == 3 and "not in the cache" in offline["error"]
    (again,) = texts(of("val.jsonl"), hub=hub, home=tmp_path)
    assert again["sha256"] == first["sha256"] and len([x for x in hub.downloads() if "/lfs/" in x]) == 1


def test_a_full_disk_is_said(hub, tmp_path):
    pytest.importorskip("resource")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))\n"
    (failed,) = texts(of("val.jsonl"), hub=hub, home=tmp_path, before=SMALL + limit)
    assert failed["code"] == 7 and "no space left" in failed["error"] and "HF_HOME" in failed["hint"]
    assert not list(tmp_path.rglob(".*.tmp-*")), "nothing half-written stays"


MISSES = {
    "no such data set": ({"dataset": "pile/none", "file": "a.jsonl"}, 3, "no such repository"),
    "no such revision": ({"dataset": f"{PILE}@v7"}, 3, "no such revision"),
    "no such file": ({"file": "vla.jsonl.zst"}, 3, "has no vla.jsonl.zst"),
    "several files": ({"dataset": "pile/several", "file": None}, 3, "has 2 files of text: a.jsonl.zst, b.jsonl.zst"),
    "no text": ({"dataset": ORDER, "file": None}, 3, "has 0 files of text"),
}


def test_what_a_data_set_lacks_is_named(hub, tmp_path):
    answers = texts(*(of("val.jsonl", **changes) for changes, _, _ in MISSES.values()), hub=hub, home=tmp_path)
    for got, (case, (_, code, said)) in zip(answers, MISSES.items(), strict=True):
        assert got["code"] == code and said in got["error"] and got["hint"], case
    assert "val.jsonl.zst" in answers[2]["hint"]


def test_a_data_set_may_be_pinned_and_its_only_text_need_not_be_named(hub, tmp_path):
    commit = commit_of("datasets/pile/single", "main")
    bare, pinned = (of(None, dataset=f"pile/single{at}", samples=9) for at in ("", f"@{commit}"))
    first, second = texts(bare, pinned, hub=hub, home=tmp_path)
    assert first["sha256"] == second["sha256"] and second["source"] == f"pile/single/train.jsonl.gz at {commit[:12]}"
    assert first["subsets"] == ["Github", "Wikipedia (en)"]
    (offline,) = texts(pinned, hub=hub, home=tmp_path, offline=True)
    assert offline == second


def test_files_of_the_hub_are_read_as_those_of_the_disk_are(hub, tmp_path):
    folder, rows = tmp_path / "data", lines(300).splitlines(keepends=True)
    (folder / "train").mkdir(parents=True)
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (folder / "long.jsonl.zst").write_bytes(packer.compress(b"".join(rows)) + packer.flush())
    (folder / "marked.jsonl").write_bytes(b"\xef\xbb\xbf" + b"".join(rows))
    (folder / "misnamed.jsonl.gz").write_bytes(b"".join(rows))
    (folder / "train" / "0.jsonl").write_bytes(b"".join(rows[:60]))
    (folder / "train" / "1.jsonl.zst").write_bytes(lzma.compress(b"".join(rows[60:])))  # named otherwise
    (folder / "columns.jsonl").write_text('{"content": "x", "id": 1}\n')
    hub.repositories["datasets/pile/people"] = {"main": folder}
    names = ("long.jsonl.zst", "marked.jsonl", "misnamed.jsonl.gz", "train/*.jsonl*", "train/*", "columns.jsonl")
    sections = [of(name, dataset="pile/people", samples=n) for name, n in zip(names, (3, 3, 3, 3, 400, 3), strict=True)]
    *alike, several, columns = texts(*sections, hub=hub, home=tmp_path / "home")
    assert len({got.get("sha256", got.get("error")) for got in alike}) == 1, alike
    at = commit_of("datasets/pile/people", "main")[:12]
    assert alike[-1]["source"] == f"pile/people/train/*.jsonl* at {at} (1 of 2 files read)"
    assert several.get("source", several) == f"pile/people/train/* at {at} (2 of 2 files read)"
    assert (
        columns["code"] == 3 and "line 1: " in columns["error"] and "content (string), id (number)" in columns["error"]
    )


# The training order


def steps(batches: str | None = "1:3", **more) -> dict:
    found = {"source": "training-order", "dataset": ORDER, "batches": batches, "sequence_length": 32, **more}
    return {name: value for name, value in found.items() if value is not None}


def test_exactly_the_sequences_of_the_batches_are_read(hub, tmp_path):
    (got,) = texts(steps(), hub=hub, home=tmp_path)
    assert got["first"] == [33 * i % 65536 % 4000 for i in range(BATCH, 3 * BATCH)]
    assert got["source"] == f"{ORDER} at {commit_of(f'datasets/{ORDER}', 'main')[:12]}, training order, batches 1:3"
    tokens, index = 2 * 33 * 2 * BATCH - 2, 12 * 2 * BATCH + 34  # the last sequence without its last token
    assert hub.sent == tokens + index and len(hub.api_calls()) == 1
    assert {line.split(" ")[1].rpartition("/")[2] for line in hub.downloads()} == {
        "document.idx", "document-00000-of-00002.bin", "document-00001-of-00002.bin", "document-00002-of-00002.bin",
    }, "the batches begin in the first part and end in the last"  # fmt: skip
    hub.clear()
    (offline,) = texts(steps(), hub=hub, home=tmp_path, offline=True)
    assert offline == got and hub.requests == []


def test_a_few_sequences_of_them_are_drawn_and_no_others_read(hub, tmp_path):
    drawn, again, held_out = texts(
        steps("0:5", samples=6), steps("0:5", samples=6), steps("4:5", tokens=64), hub=hub, home=tmp_path
    )
    assert drawn == again and len(drawn["first"]) == 6 and len(held_out["first"]) == 2
    places = [33 * i % 65536 % 4000 for i in range(4 * BATCH, 5 * BATCH)]
    assert set(held_out["first"]) <= set(places)
    assert hub.sent < 10_000, "of an index and data of 400 kB"


ORDERS = {
    "beyond the training": (steps("4:6"), 3, "5,120 sequences are batches 0:5; 4:6 were asked for"),
    "longer sequences": (steps(sequence_length=64), 3, "a sequence has 33 tokens; 64 were asked for"),
    "more than there are": (steps("0:1", samples=2000), 3, "1,024 sequences of batches 0:1; 2,000 were asked for"),
    "no memory map": (steps(dataset=PILE), 3, "0 .idx and 0 .bin"),
}


def test_what_the_order_lacks_is_named(hub, tmp_path):
    answers = texts(*(section for section, _, _ in ORDERS.values()), hub=hub, home=tmp_path)
    for got, (case, (_, code, said)) in zip(answers, ORDERS.items(), strict=True):
        assert got["code"] == code and said in got["error"] and got["hint"], case


def test_a_missing_part_and_a_damaged_index_are_refused(hub, folders, tmp_path):
    for wrong in ("part", "index", "pointers"):
        folder = tmp_path / wrong
        folder.mkdir()
        for path in folders[ORDER].iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        hub.repositories[f"datasets/pile/{wrong}"] = {"main": folder}
    (tmp_path / "part" / "document-00001-of-00002.bin").unlink()
    index = bytearray((folders[ORDER] / "document.idx").read_bytes())
    (tmp_path / "index" / "document.idx").write_bytes(b"MMIDIDX\x01" + index[8:])
    begin = 34 + 4 * 5 * BATCH + 8 * BATCH
    index[begin : begin + 8] = (1 << 40).to_bytes(8, "little")
    (tmp_path / "pointers" / "document.idx").write_bytes(index)
    part, magic, pointers = texts(
        *(steps(dataset=f"pile/{wrong}") for wrong in ("part", "index", "pointers")), hub=hub, home=tmp_path / "home"
    )
    assert part["code"] == 3 and "do not follow one another from 0 to 2" in part["error"]
    assert magic["code"] == 4 and "magic b'MMIDIDX\\x01" in magic["error"]
    assert pointers["code"] == 4 and "the index points to" in pointers["error"]


# WikiText-2


def test_wikitext_comes_from_the_hub_by_its_own_name(hub, tmp_path):
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    folder = tmp_path / "data" / "wikitext-2-raw-v1"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        rows = [f" = {split} {i} = \n" if i % 5 == 0 else f" a row of {split} , number {i} . \n" for i in range(200)]
        parquet.write_table(arrow.table({"text": rows}), folder / f"{split}-00000-of-00001.parquet")
    hub.repositories["datasets/Salesforce/wikitext"] = {"main": tmp_path / "data"}
    section = {"source": "wikitext2", "sequence_length": 32}
    calibration, held_out = texts(
        section | {"samples": 4}, section | {"tokens": 512}, hub=hub, home=tmp_path / "home", before=""
    )
    assert "/train-00000" in calibration["source"] and "/test-00000" in held_out["source"]
    assert len(calibration["first"]) == 4 and len(held_out["first"]) == 16


# A whole recipe

RECIPE = f"""
[model]
id = "someone/small-neox"
[calibration]
source = "training-order"
dataset = "{ORDER}"
batches = "1:3"
samples = 4
sequence_length = 32
[quantize]
group_size = 32
[verify]
source = "hub"
dataset = "{PILE}"
file = "val.jsonl.zst"
subsets = ["Github"]
tokens = 256
sequence_length = 32
"""


def test_a_recipe_that_was_pulled_runs_without_the_hub(hub, tmp_path):
    config = small_config(layers=1, vocab=4096)
    tokenizer = demo_folder() / "main" / "tokenizer.json"
    model = save_checkpoint(hugging_face(config), config, tmp_path / "model", tokenizer)
    hub.repositories["someone/small-neox"] = {"main": model}
    (tmp_path / "my.toml").write_text(RECIPE)

    def command(*args: str) -> str:
        return pythia_export(*args, "--json", cwd=tmp_path, env=environment(hub, tmp_path / "home")).stdout

    pulled = json.loads(command("pull", "my.toml"))
    assert pulled["texts"]["calibration"]["source"].endswith("training order, batches 1:3")
    hub.clear()
    command("run", "my.toml", "--out", "out", "--offline")
    assert hub.requests == []
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["calibration"]["sha256"] == pulled["texts"]["calibration"]["sha256"]
    assert manifest["calibration"]["source"] == pulled["texts"]["calibration"]["source"]
    parity = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert manifest["calibration"]["end_tokens"] == 0 == parity["corpus"]["end_tokens"], "counted, and none there"
    assert pulled["texts"]["verify"]["sha256"] in json.dumps(parity)
    assert 'subsets = ["Github"]' in (tmp_path / "out" / "README.md").read_text(), "the recipe on the card"
