"""Traces on the disk: what is read back, what an interruption leaves, and when the disk is full."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest
from processes import pythia_export
from safetensors.numpy import load_file
from test_trace import CONFIG, every  # noqa: F401
from typer.testing import CliRunner

from pythia_export.base.errors import NumericsError, OutputError, RecipeError, ResourceError, SourceError
from pythia_export.cli import app
from pythia_export.model.hooks import hooks_of
from pythia_export.trace import Traces, store

NAMES = ["resid", "attn.pattern", "logits"]
TEXTS = [f"value_{i} = " + " + ".join(map(str, range(i % 7))) for i in range(20)]


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(store, "SHARD_BYTES", 1 << 20)


@pytest.mark.usefixtures("small_shards")
def test_what_is_read_back_is_what_trace_returns(every, tmp_path):  # noqa: F811
    artifact = every.artifact()
    for positions in ("all", "last", [0, -1]):
        out = tmp_path / str(positions)
        written = artifact.trace_to(out, TEXTS, NAMES, positions=positions)
        traces, expected = Traces.open(out), artifact.trace(TEXTS, NAMES, positions=positions)
        assert traces.whole and len(traces) == len(written) == len(TEXTS)
        assert traces.hooks == (*hooks_of(["resid", "attn.pattern"], CONFIG), "logits")
        for seen, there in zip(traces, expected, strict=True):
            assert seen.index == there.index and list(seen.values) == list(there.values)
            assert seen.tokens.tolist() == there.tokens.tolist()
            assert seen.positions.tolist() == there.positions.tolist()
            for hook, value in seen.values.items():
                np.testing.assert_allclose(value, there[hook], atol=2e-5)
    shards = Traces.open(tmp_path / "all").shards()
    assert len(shards) > 2
    whole = np.concatenate([load_file(path)["blocks.1.hook_in"] for path in shards])  # as a probe's training takes it
    np.testing.assert_allclose(whole, np.concatenate([t["blocks.1.hook_in"] for t in artifact.trace(TEXTS)]), atol=2e-5)
    with pytest.raises(IndexError, match="no text 20; it has 20"):
        Traces.open(tmp_path / "all")[20]


@pytest.mark.usefixtures("small_shards")
def test_after_a_full_disk_it_goes_on_where_it_stopped(every, tmp_path, monkeypatch):  # noqa: F811
    artifact, out, write = every.artifact(), tmp_path / "seen", store.write_atomically
    expected = artifact.trace(TEXTS, NAMES)
    files = 0

    def fills(path, data, **options):
        nonlocal files
        files += 1
        if files == 4:  # trace.json and two shards are there
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data, **options)

    monkeypatch.setattr(store, "write_atomically", fills)
    with pytest.raises(ResourceError, match="no space left while writing") as full:
        artifact.trace_to(out, TEXTS, NAMES)
    assert "goes on behind the last file" in full.value.hint
    half = Traces.open(out)
    assert not half.whole and len(half.shards()) == 2 and 0 < len(half) < len(TEXTS)
    for seen in half:
        np.testing.assert_allclose(seen["logits"], expected[seen.index]["logits"], atol=2e-5)
    monkeypatch.setattr(store, "write_atomically", write)
    stray = out / ".00002.safetensors.tmp-999999999-0123abcd"  # what a process that was killed left
    stray.touch()
    before = [path.stat().st_mtime_ns for path in half.shards()]
    whole = artifact.trace_to(out, TEXTS, NAMES)
    assert not stray.exists() and whole.whole and [path.stat().st_mtime_ns for path in whole.shards()[:2]] == before
    assert [len(seen.tokens) for seen in whole] == [len(seen.tokens) for seen in expected]


def test_a_folder_of_something_else_stays_as_it_is(every, tmp_path):  # noqa: F811
    artifact, out = every.artifact(), tmp_path / "seen"
    artifact.trace_to(out, TEXTS[:3], "resid")
    for texts, capture, differs in ((TEXTS[:2], "resid", "texts, tokens, shards"), (TEXTS[:3], "embed", "hooks")):
        with pytest.raises(OutputError, match=f"the trace of something else: {differs} differ"):
            artifact.trace_to(out, texts, capture)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(OutputError, match=r"holds notes\.txt and is no folder of `trace`"):
        artifact.trace_to(tmp_path / "mine", TEXTS, "resid")
    with pytest.raises(SourceError, match=r"no trace\.json"):
        Traces.open(tmp_path / "mine")


def test_room_is_looked_for_before_anything_is_computed(every, tmp_path, monkeypatch):  # noqa: F811
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")(10, 0, 10)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ResourceError, match=r"bytes are to be written, and 10 are free"):
        every.artifact().trace_to(tmp_path / "seen", TEXTS, "resid")
    assert not list((tmp_path / "seen").iterdir())


def test_what_float16_cannot_hold_is_refused_by_name(every, tmp_path):  # noqa: F811
    artifact = every.artifact()
    large = {"blocks.1.hook_out": {"op": "add", "value": 1e5}}
    with pytest.raises(NumericsError, match=r"text 0: blocks\.2\.hook_in reaches 100,0\d\d; float16 ends at 65,504"):
        artifact.trace_to(tmp_path / "a", TEXTS, "resid", intervene=large, dtype="float16")
    halved = artifact.trace_to(tmp_path / "b", TEXTS, "resid", dtype="float16")
    assert halved[3]["blocks.1.hook_in"].dtype == np.float16
    with pytest.raises(RecipeError, match="position 9 of a text of"):
        artifact.trace_to(tmp_path / "c", TEXTS, "resid", positions=[9])


def test_the_command_writes_what_python_does(every, tmp_path):  # noqa: F811
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS[:3], "x = 1\n" * 40]))
    done = pythia_export(
        "trace", every.folder, "--texts", texts, "--capture", "resid,attn.z", "--positions", "0,-1",
        "--out", tmp_path / "seen", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    traces = Traces.open(tmp_path / "seen")
    windows = said["texts"] - 3
    assert said["hooks"] == list(hooks_of(["resid", "attn.z"], CONFIG)) and windows > 1  # 48 tokens are the context
    assert "MB will be written" in done.stderr and "1 documents are longer than the context" in done.stderr
    seen = every.artifact().trace(TEXTS[1], ["resid", "attn.z"], positions=[0, -1])
    for hook, value in traces[1].values.items():
        np.testing.assert_allclose(value, seen[hook], atol=2e-5)
    for options, message in (
        (["--capture", "resids"], "'resids' is no place in this model; the nearest are resid"),
        (["--positions", "first"], "--positions first: all, last or numbers"),
        (["--texts", tmp_path / "none.txt"], "none.txt"),
    ):
        wrong = pythia_export(
            "trace", every.folder, "--texts", texts, "--out", tmp_path / "other", *options, check=None
        )
        assert wrong.returncode in (2, 3) and message in wrong.stderr and "Traceback" not in wrong.stderr


SILENT_HEAD = {"blocks.0.attn.hook_z": {"op": "suppress", "heads": [1], "pos": [0, -1]}}


def test_the_command_changes_what_python_does(every, tmp_path):  # noqa: F811
    texts, file, inline = tmp_path / "texts.jsonl", tmp_path / "changes.json", json.dumps(SILENT_HEAD)
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[1:4]))
    file.write_text(inline)
    told = ("trace", every.folder, "--texts", texts, "--capture", "logits")
    for given in (inline, file):
        pythia_export(*told, "--intervene", given, "--out", tmp_path / "seen")  # the second finds all done
    expected = every.artifact().trace(TEXTS[1:4], "logits", intervene=SILENT_HEAD)
    for seen, there in zip(Traces.open(tmp_path / "seen"), expected, strict=True):
        np.testing.assert_allclose(seen["logits"], there["logits"], atol=2e-5)
    behind = ("trace", every.folder, "--texts", texts, "--capture", "embed", "--intervene", inline)
    assert "changing it changes nothing here" in pythia_export(*behind, "--out", tmp_path / "embed").stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ('{"blocks.0.hook_resid_pots": {"op": "suppress"}}', "the nearest are blocks.0.hook_resid_post"),
        ('{"blocks.3.hook_out": {"op": "suppress"}}', "no place in this model: its layers are 0 to 2"),
        ('{"blocks.0.attn.hook_z": {"op": "suppress", "heads": [2]}}', "head 2; heads are 0 to 1"),
        ('{"blocks.0.attn.hook_z": "suppress"}', "blocks.0.attn.hook_z: 'suppress'"),
        ('{"blocks.0.attn.hook_z": 5}', "blocks.0.attn.hook_z: 5"),
        ('{"blocks.0.hook_out": {"op": "suppress"}', "--intervene: not JSON"),
        ("blocks.0.hook_out", "--intervene blocks.0.hook_out: no such file"),
        ("[1", "--intervene: not JSON"),
        ("[1]", "--intervene: an array of 1; an object was expected"),
    ],
)
def test_a_change_that_is_none_is_refused_by_the_command(every, tmp_path, given, message):  # noqa: F811
    (tmp_path / "t.txt").write_text("x = 1")
    told = ["trace", every.folder, "--texts", tmp_path / "t.txt", "--out", tmp_path / "seen", "--intervene", given]
    found = CliRunner().invoke(app, list(map(str, told)))
    assert found.exit_code == 2 and message in found.stderr and not (tmp_path / "seen").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"op": "suppress", "pos": 3}, r"text 1: blocks\.0\.hook_out: position 3 of a text of 1 tokens"),
        ({"op": "set", "value": np.ones((2, 1))}, r"text 0: .*a value of shape \[2, 1\].* stretches to \[4, 128\]"),
        # Rows of a batch are sorted by length: an axis of texts would meet the wrong ones.
        ({"op": "set", "value": np.ones((2, 1, 128))}, r"text 0: .*a value of shape \[2, 1, 128\]"),
    ],
)
def test_a_change_that_does_not_fit_a_text_is_told_before_anything_is_written(every, tmp_path, change, message):  # noqa: F811
    with pytest.raises(RecipeError, match=message):
        every.artifact().trace_to(
            tmp_path / "seen", [[1, 2, 3, 4], [5]], "resid", intervene={"blocks.0.hook_out": change}
        )
    assert not (tmp_path / "seen").exists()


def test_what_is_not_finite_is_told_by_text_and_token(every, tmp_path):  # noqa: F811
    large = {"blocks.0.hook_out": {"op": "scale", "factor": 3e38, "pos": -2}}
    texts = [list(range(9)), [1, 2, 3], list(range(7))]  # the batch has the shortest first
    with pytest.raises(NumericsError, match=r"text 1: blocks\.1\.hook_in is not finite, first at token 1"):
        every.artifact().trace_to(tmp_path / "seen", texts, "resid", intervene=large)
