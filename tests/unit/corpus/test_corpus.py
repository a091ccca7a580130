"""Text to token windows: every source, in the seed's order, counted and hashed."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import zstandard
from places import ROOT
from texts import CONFIG, Told, demo_tokenizer, in_parts, memory_map, pile, texts, windows, written
from tokenizers import Tokenizer

from pythia_export.base.errors import IntegrityError, PythiaExportError, SourceError
from pythia_export.base.progress import SILENT
from pythia_export.corpus import calibration_windows, formats, sources, verify_windows
from pythia_export.corpus.stdlib import stdlib_documents
from pythia_export.model.neox import NeoXConfig
from pythia_export.recipe import Calibration, Verify

SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def tokenizer():
    return demo_tokenizer()


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_every_compression_gives_the_same_windows(name, tmp_path, tokenizer):
    got = windows(written(tmp_path, name, texts(40)), tokenizer)
    plain = windows(written(tmp_path, "plain.jsonl", texts(40)), tokenizer)
    assert got.ids.shape == (6, 32) and got.sha256 == plain.sha256


def test_windows_are_the_documents_in_the_seeds_order_with_eos_between(tmp_path, tokenizer):
    rows = texts(30)
    got = windows(written(tmp_path, "a.jsonl", rows), tokenizer, samples=8, eos=True)
    order = np.random.default_rng(0).permutation(30)
    stream = [i for d in order for i in [*tokenizer.encode(rows[d]).ids, 0]]
    assert got.ids.ravel().tolist() == stream[: 8 * 32]
    starts = np.cumsum([0] + [len(tokenizer.encode(rows[d]).ids) + 1 for d in order])
    expected = [int(np.searchsorted(starts, i, "right")) - 1 for i in range(8 * 32)]
    assert got.documents.ravel().tolist() == expected
    assert windows(tmp_path / "a.jsonl", tokenizer, samples=8, seed=1, eos=True).sha256 != got.sha256
    assert got.end_tokens == int((got.ids == 0).sum()) > 0


def test_bytes_are_those_of_the_text_even_where_a_window_ends_inside_a_character(tmp_path, tokenizer):
    rng = np.random.default_rng(0)
    text = "".join(chr(c) for c in rng.choice([0x61, 0xE9, 0x4E2D, 0x1F600], 400))  # one to four bytes each
    (tmp_path / "a.txt").write_text(text)
    ids = tokenizer.encode(text).ids
    halves = [i for i in range(16, len(ids) - 16) if tokenizer.decode(ids[:i]).endswith("\N{REPLACEMENT CHARACTER}")]
    length = next(i for i in halves if not tokenizer.decode(ids[: 2 * i]).endswith("\N{REPLACEMENT CHARACTER}"))
    got = windows(tmp_path / "a.txt", tokenizer, samples=2, length=length)
    whole = tokenizer.decode(ids[: 2 * length])
    assert text.startswith(whole) and got.n_bytes == len(whole.encode())


def test_bytes_of_the_end_token_are_none(tmp_path, tokenizer):
    got = windows(written(tmp_path, "a.jsonl", ["abc"] * 40), tokenizer, samples=2, length=16, eos=True)
    ends = int((got.ids == 0).sum())
    assert ends and got.n_bytes == len(tokenizer.decode([i for i in got.ids.ravel().tolist() if i]).encode())


def test_subsets_are_those_that_the_lines_name_with_their_own_bytes(tmp_path, tokenizer):
    rows = [
        {"text": "a fraction of it\n" * 5, "meta": {"pile_set_name": "Wikipedia (en)"}},
        {"text": "un deux trois été, cut\n" * 5, "meta": {"pile_set_name": "EuroParl"}},
        {"text": "no one knows whence\n" * 5},
        {"text": "the longest of all, by far\n" * 20, "meta": {"pile_set_name": "Wikipedia (en)"}},
        *({"text": text, "meta": meta} for text, meta in (("x", "EuroParl"), ("y", {"pile_set_name": 7}), ("z", None))),
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    got = windows(tmp_path / "a.jsonl", tokenizer, samples=11)
    order = [int(i) for i in np.random.default_rng(0).permutation(len(rows))]
    assert set(got.subsets) == {"EuroParl", "Wikipedia (en)"}
    for name, subset in got.subsets.items():
        named = [rows[i].get("meta") == {"pile_set_name": name} for i in order]
        assert set(subset.documents) <= {d for d, own in enumerate(named) if own}
        text = "".join(tokenizer.decode(got.ids[got.documents == d].tolist()) for d in subset.documents)
        assert subset.n_bytes == len(text.encode()) > 0
    assert windows(written(tmp_path, "b.jsonl", texts(40)), tokenizer).subsets.keys() == {"Test"}


def test_only_the_subsets_that_are_asked_for_are_read_in_the_same_order(tmp_path, tokenizer):
    rows = [(text, ("Github", "ArXiv", "EuroParl")[i % 3]) for i, text in enumerate(texts(60))]
    path = pile(tmp_path, rows)
    got = windows(path, tokenizer, subsets=("ArXiv", "EuroParl"), samples=8, eos=True)
    order = [rows[i] for i in np.random.default_rng(0).permutation(60)]
    stream = [i for text, name in order if name != "Github" for i in [*tokenizer.encode(text).ids, 0]]
    assert got.ids.ravel().tolist() == stream[: 8 * 32] and set(got.subsets) == {"ArXiv", "EuroParl"}
    with pytest.raises(SourceError) as caught:
        windows(path, tokenizer, subsets=("FreeLaw",))
    assert "0 tokens in 0 documents of FreeLaw (all that were read: " in str(caught.value)
    assert all(f"{name} 20" in str(caught.value) for name in ("Github", "ArXiv", "EuroParl"))


def test_documents_follow_one_another_without_an_end_token_as_in_pythias_batches(tmp_path, tokenizer):
    rows = texts(30)
    got = windows(written(tmp_path, "a.jsonl", rows), tokenizer, samples=7)
    order = np.random.default_rng(0).permutation(30)
    assert got.ids.ravel().tolist() == [i for d in order for i in tokenizer.encode(rows[d]).ids][: 7 * 32]
    assert got.sha256 == windows(tmp_path / "a.jsonl", tokenizer, samples=7, eos=False).sha256
    assert got.end_tokens == 0 < got.n_bytes


@pytest.mark.parametrize("row_group", [7, 1000])
def test_parquet_reads_as_the_lines_do(tmp_path, tokenizer, row_group):
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    rows = [(text, ("Github", "ArXiv")[i % 2]) for i, text in enumerate(texts(40))]
    table = arrow.table({"text": [t for t, _ in rows], "meta": [{"pile_set_name": n} for _, n in rows], "other": rows})
    parquet.write_table(table, tmp_path / "pile.parquet", row_group_size=row_group)
    got, lines = (windows(p, tokenizer, subsets=("ArXiv",)) for p in (tmp_path / "pile.parquet", pile(tmp_path, rows)))
    assert got.sha256 == lines.sha256 and got.subsets == lines.subsets
    data = (tmp_path / "pile.parquet").read_bytes()
    for wrong in (b"", b"no parquet", data[:-20], data[:40] + b"\xff" * 60 + data[100:]):
        (tmp_path / "wrong.parquet").write_bytes(wrong)
        with pytest.raises(IntegrityError, match=r"wrong.parquet"):
            windows(tmp_path / "wrong.parquet", tokenizer)
    parquet.write_table(arrow.table({"txt": ["a"]}), tmp_path / "columns.parquet")
    with pytest.raises(SourceError, match=r"columns.parquet: .* `text` .*columns are txt \(string\)"):
        windows(tmp_path / "columns.parquet", tokenizer)


def test_the_hash_is_of_shape_and_little_endian_ids(tmp_path, tokenizer):
    got = windows(written(tmp_path, "a.jsonl", texts(40)), tokenizer, samples=6, length=32)
    words = [6, 32, *got.ids.ravel().tolist()]
    assert got.sha256 == hashlib.sha256(b"".join(w.to_bytes(8, "little") for w in words)).hexdigest()
    assert got.ids.dtype == np.int64 and not got.ids.flags.writeable


def test_a_text_keeps_its_line_ends(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\n" * 50)
    got = windows(tmp_path / "a.txt", tokenizer, samples=2)
    assert ("one\r\ntwo\n" * 50).startswith(tokenizer.decode(got.ids.ravel().tolist()))


def test_a_long_text_is_read_in_pieces_cut_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "PIECE", 100)
    lines = "".join(f"line {i}\n" for i in range(200))
    (tmp_path / "a.txt").write_text(lines)
    source = sources.documents_of(Calibration(source="file", path=tmp_path / "a.txt"))
    pieces = [piece.text for piece in source.documents]
    assert len(pieces) > 10 and all(p.endswith("\n") and len(p) < 120 for p in pieces)
    assert sorted("".join(pieces).splitlines()) == sorted(lines.splitlines())


@pytest.mark.parametrize("bound", [{"BUFFER": 10}, {"BUFFER_CHARS": 300}])
def test_no_more_documents_are_held_than_the_buffer_takes(bound, tmp_path, monkeypatch):
    for name, value in bound.items():
        monkeypatch.setattr(sources, name, value)
    rows = [f"document {i:016d}" for i in range(100)]  # 25 characters
    path = written(tmp_path, "a.jsonl", rows)
    with path.open("a") as f:
        f.write("nope\n")
    given = sources.documents_of(Calibration(source="file", path=path, seed=3)).documents
    got = []
    with pytest.raises(SourceError, match="line 101"):
        for document in given:
            got.append(document.text)
    assert 88 <= len(got) <= 90 and len(set(got)) == len(got) and got != rows[: len(got)]


def test_too_little_text_is_counted(tmp_path, tokenizer):
    path = written(tmp_path, "a.jsonl", texts(3))
    with pytest.raises(SourceError, match=r"\d+ tokens in 3 documents; 90 windows of 32 need 2,880 tokens"):
        windows(path, tokenizer, samples=90)
    with pytest.raises(SourceError) as caught:
        verify_windows(Verify(source="file", path=path, sequence_length=32, tokens=100_000), tokenizer, CONFIG)
    assert "fewer `tokens` (`verify --tokens`)" in caught.value.hint, "[verify] has no samples"
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(SourceError, match="0 tokens in 0 documents"):
        windows(tmp_path / "empty.jsonl", tokenizer)


def broken(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


NOISE = np.random.default_rng(0).integers(97, 123, 1000, np.uint8).tobytes()
DAMAGED = gzip.compress(NOISE)[:10] + b"\xff" * 50 + gzip.compress(NOISE)[60:]  # no deflate block begins so

FAULTS = {
    "missing": ("no.jsonl", None, SourceError, "no such text file"),
    "kind": ("a.csv", b"a,b", SourceError, ".jsonl, .json, .txt or .parquet"),
    "not JSON": ("a.jsonl", b'{"text": "a"}\nnope\n', SourceError, "line 2: not JSON"),
    "no text": ("a.jsonl", b'{"txt": "a"}\n', SourceError, "line 1"),
    "not an object": ("a.jsonl", b"1\n", SourceError, "line 1: an object with a string `text` was expected, found int"),
    "an array of no objects": ("a.jsonl", b"[[1]]\n", SourceError, "element 1: an object with a string"),
    "half a character": ("a.jsonl", b'{"text": "\\ud800"}\n', SourceError, "line 1: `text` is not Unicode"),
    "damaged gzip": ("a.txt.gz", DAMAGED, IntegrityError, "read to its end"),
    "cut zstd": ("a.txt.zst", zstandard.compress(NOISE)[:-9], IntegrityError, "ends inside a frame"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 999)[:-12], IntegrityError, "read to its end"),
    "no zstd": ("a.jsonl.zst", b"not compressed", SourceError, "line 1: not JSON"),
    "not UTF-8": ("a.txt", b"\xff\xfe\xfa", IntegrityError, "read to its end"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_text_is_refused_with_its_place(fault, tmp_path, tokenizer):
    name, data, kind, said = FAULTS[fault]
    path = broken(tmp_path, name, data) if data is not None else tmp_path / name
    with pytest.raises(PythiaExportError) as caught:
        windows(path, tokenizer)
    assert type(caught.value) is kind and said in str(caught.value)


def test_zstd_files_of_several_frames_are_read_to_their_end(tmp_path, tokenizer):
    plain = written(tmp_path, "a.jsonl", texts(40))
    data, skipped = plain.read_bytes(), bytes.fromhex("502a4d18 04000000 00000000")  # as pzstd writes them
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(data[:700]) + skipped + zstandard.compress(data[700:]))
    assert windows(tmp_path / "a.jsonl.zst", tokenizer).sha256 == windows(plain, tokenizer).sha256


def test_windows_longer_than_the_context_and_foreign_tokens_are_refused(tmp_path, tokenizer):
    path = written(tmp_path, "a.jsonl", texts(40))
    with pytest.raises(SourceError, match="context is 16"):
        windows(path, tokenizer, config=NeoXConfig(4096, 128, 6, 4, 512, max_positions=16))
    with pytest.raises(SourceError, match="vocabulary is 300"):
        windows(path, tokenizer, config=NeoXConfig(300, 128, 6, 4, 512))


def test_a_link_that_leads_nowhere_is_no_module(tmp_path, monkeypatch):
    (tmp_path / "here.py").write_text("x = 1\n")
    (tmp_path / "sitecustomize.py").symlink_to(tmp_path / "etc" / "sitecustomize.py")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    names = [name for half in ("train", "heldout") for name, _ in stdlib_documents(half)]
    assert "here.py" in names and "sitecustomize.py" not in names


@pytest.mark.slow
def test_the_two_halves_of_the_standard_library_share_no_module(tokenizer):
    train, held_out = ({name for name, _ in stdlib_documents(half)} for half in ("train", "heldout"))
    assert not train & held_out and "argparse.py" in held_out and "os.py" in train
    assert not any(name.startswith(("json/", "logging/")) for name in train)
    assert not any(name.startswith("test/") for name in train | held_out)
    section = Verify(source="python-stdlib", tokens=1000, sequence_length=128)
    calibration = Calibration(source="python-stdlib", samples=8, sequence_length=128)
    got = verify_windows(section, tokenizer, CONFIG)
    assert got.ids.shape == (8, 128) and section.eos, "the demo was trained with an end token after each document"
    assert (
        calibration_windows(calibration, tokenizer, CONFIG).sha256 != verify_windows(section, tokenizer, CONFIG).sha256
    )


# WikiText-2


RAW = "".join(
    f" \n = Title {i} = \n \n Some text of the article number {i} , as it is . \n \n = = Part = = \n \n More . \n"
    for i in range(30)
)


def wikitext(path: Path, tokenizer, kind=Verify, **more):
    section = kind(source="wikitext2", path=path, sequence_length=32, **more)
    return (verify_windows if kind is Verify else calibration_windows)(section, tokenizer, CONFIG)


def test_wikitext_is_one_text_of_rows_joined_by_two_newlines(tmp_path, tokenizer):
    (tmp_path / "wiki.test.raw").write_text(RAW)
    rows = [line + "\n" if line.strip() else "" for line in RAW.removesuffix("\n").split("\n")]
    ids = tokenizer.encode("\n\n".join(rows)).ids
    got = wikitext(tmp_path / "wiki.test.raw", tokenizer, tokens=1024)
    assert got.ids.ravel().tolist() == ids[:1024] and got.source == "wiki.test.raw, WikiText-2 as GPTQ reads it"
    heads = [i for i, row in enumerate(rows) if row.startswith(" = Title")]
    for article, start in enumerate(heads):
        at = len(tokenizer.encode("\n\n".join([*rows[:start], ""])).ids)
        if at < 1024:
            assert got.documents.ravel()[at + 1] == article, "an article begins with its title"
    with pytest.raises(
        SourceError, match=f"{len(ids):,} tokens make {len(ids) // 32} windows of 32; {len(ids) // 32 + 1} were"
    ):
        wikitext(tmp_path / "wiki.test.raw", tokenizer, tokens=len(ids))


def test_wikitext_calibrates_on_windows_drawn_anywhere(tmp_path, tokenizer):
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    rows = [line + "\n" if line.strip() else "" for line in RAW.removesuffix("\n").split("\n")]
    parquet.write_table(arrow.table({"text": rows}), tmp_path / "train.parquet")
    text = "\n\n".join(rows)
    got = wikitext(tmp_path / "train.parquet", tokenizer, Calibration, samples=20, seed=3)
    ids = tokenizer.encode(text).ids
    starts = np.random.default_rng(3).integers(0, len(ids) - 32, 20)
    assert got.ids.tolist() == [ids[s : s + 32] for s in starts]
    (tmp_path / "short.raw").write_text(" = A = \n")
    with pytest.raises(SourceError, match="tokens; a window has 32"):
        wikitext(tmp_path / "short.raw", tokenizer, Calibration, samples=1)


# Pythia's training order


def order(path: Path, tokenizer, samples=5, length=64, progress=SILENT, **more):
    section = Calibration(source="training-order", path=path, samples=samples, sequence_length=length, **more)
    return calibration_windows(section, tokenizer, CONFIG, progress)


def test_the_training_order_is_read_sequence_by_sequence(tmp_path, tokenizer):
    ids = order(memory_map(tmp_path), tokenizer).ids
    assert ids.shape == (5, 64) and len({row[0] for row in ids.tolist()}) == 5
    for row in ids:
        assert row[0] % 65 == 0 and row.tolist() == [(row[0] + i) % 4000 for i in range(64)]


def test_batches_are_the_sequences_of_so_many_steps_in_their_order(tmp_path, tokenizer):
    path = memory_map(tmp_path, n=3 * 1024 + 7, size=9)
    section = Calibration(source="training-order", path=path, batches="1:3", sequence_length=8)
    got = calibration_windows(section, tokenizer, CONFIG)
    rows = [[(9 * i + j) % 65536 % 4000 for j in range(8)] for i in range(1024, 3072)]
    assert section.samples == 2048 and got.ids.tolist() == rows
    assert got.source == "document.idx, training order, batches 1:3"
    drawn = order(path, tokenizer, samples=40, length=8, batches="1:3").ids.tolist()
    places = [rows.index(row) for row in drawn]
    assert len(drawn) == 40 and places == sorted(set(places))
    assert order(path, tokenizer, samples=40, length=8, batches="1:3", seed=1).ids.tolist() != drawn
    with pytest.raises(SourceError, match="3,079 sequences are batches 0:3; 2:4 were asked for"):
        order(path, tokenizer, batches="2:4", length=8)
    with pytest.raises(SourceError, match="1,024 sequences of batches 2:3; 1,025 were asked for"):
        order(path, tokenizer, samples=1025, batches="2:3", length=8)


def test_data_in_parts_reads_as_the_whole(tmp_path, tokenizer):
    expected = order(memory_map(tmp_path), tokenizer, samples=20).ids.tolist()
    cuts = [3, 130, 131, 777]  # inside a token, between sequences, a part of one byte, inside a sequence
    assert order(in_parts(memory_map(tmp_path), cuts), tokenizer, samples=20).ids.tolist() == expected
    (tmp_path / "document-00002-of-00004.bin").unlink()
    with pytest.raises(SourceError, match="do not follow one another from 0 to 4"):
        order(tmp_path / "document.idx", tokenizer)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"magic": b"x" * 9}, "magic"),
        ({"magic": b"TNTIDX\x00\x00\x01"}, "TNTIDX"),
        ({"version": 2}, "version 2"),
        ({"dtype": 4}, r"dtype 4 \(int32\)"),
        ({"dtype": 99}, r"dtype 99 \(unknown\)"),
        ({"documents": 10**6}, "1000000 document boundaries"),
    ],
)
def test_another_kind_of_index_is_refused(changes, said, tmp_path, tokenizer):
    with pytest.raises(IntegrityError, match=said):
        order(memory_map(tmp_path, **changes), tokenizer)


UNEVEN = {
    "from the first on": [30, 12, 99, 65, 65, 70],
    "among the chosen": [65] * 19 + [66],
    "before the chosen": [64, 67] + [65] * 18,
    "after the chosen": [65] * 10 + [3, 127] + [9, 9],
}


@pytest.mark.parametrize("case", UNEVEN)
def test_a_memory_map_of_documents_is_no_training_order(case, tmp_path, tokenizer):
    """pythia_deduped_pile_idxmaps is one; EleutherAI/pythia #158."""
    path = memory_map(tmp_path, sizes=UNEVEN[case])
    for seed in range(4):
        with pytest.raises(SourceError, match="map of documents") as caught:
            order(path, tokenizer, samples=2, length=8, seed=seed)
    assert f"sequences of {min(UNEVEN[case])} to {max(UNEVEN[case])} tokens" in str(caught.value)
    assert "pile-deduped-pythia-preshuffled" in caught.value.hint


def test_index_and_data_that_do_not_belong_together_are_refused(tmp_path, tokenizer):
    path = memory_map(tmp_path)
    data = path.with_suffix(".bin").read_bytes()
    for wrong in (data[:-2], data + data, data[: 2 * 65 * 19]):  # a token short, another's, a sequence short
        path.with_suffix(".bin").write_bytes(wrong)
        with pytest.raises(IntegrityError, match=f"{len(wrong):,} bytes; .*(points to|2,600)"):
            order(path, tokenizer, samples=1)


def test_end_tokens_in_training_order_are_counted_and_told(tmp_path, tokenizer):
    """EleutherAI/pythia #123 and #175: the smallest token of its batches is 2."""
    path, told = memory_map(tmp_path, n=1024), Told()
    got = order(path, tokenizer, samples=1024, progress=told)
    assert got.end_tokens == int((got.ids == 0).sum()) > 0
    assert told.notes == [
        f"document.idx, training order: {got.end_tokens} of 65,536 tokens are the end-of-text token (id 0)"
    ]
    tokens = np.fromfile(path.with_suffix(".bin"), "<u2")
    np.maximum(tokens, 2).tofile(path.with_suffix(".bin"))
    got = order(path, tokenizer, samples=2, progress=told)
    assert got.end_tokens == 0 and "no end-of-text token (id 0) among 128 tokens" in told.notes[-1]
    order(memory_map(tmp_path, n=1030), tokenizer, progress=told)
    assert "1,030 sequences are 1 batches of 1,024 and 6 sequences more" in told.notes[-2]


def test_a_memory_map_is_found_by_any_of_its_names(tmp_path, tokenizer):
    (tmp_path / "pile_0.87 [a]").mkdir()
    expected = order(memory_map(tmp_path), tokenizer).sha256
    index = memory_map(tmp_path / "pile_0.87 [a]").rename(tmp_path / "pile_0.87 [a]" / "pile_0.87_text[0].idx")
    (index.parent / "document.bin").rename(index.with_suffix(".bin"))
    for path in (index, index.with_suffix(".bin"), index.with_suffix(""), index.parent):
        assert order(path, tokenizer).sha256 == expected
    in_parts(index, [1000])
    assert order(index.parent / "pile_0.87_text[0]-00000-of-00001.bin", tokenizer).sha256 == expected
    (index.parent / "another.idx").touch()
    with pytest.raises(SourceError, match="2 .idx files"):
        order(index.parent, tokenizer)


@pytest.mark.parametrize("kept", [0, 33, 34, 34 + 12 * 20 - 1, 34 + 12 * 20 + 8 * 21 - 1])
def test_a_truncated_index_is_refused(kept, tmp_path, tokenizer):
    path = memory_map(tmp_path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(IntegrityError, match=f"document.idx: {kept} bytes"):
        order(path, tokenizer)


def test_an_index_that_points_before_the_file_is_refused(tmp_path, tokenizer):
    path = memory_map(tmp_path)
    raw = path.read_bytes()
    path.write_bytes(raw[: 34 + 4 * 20] + np.full(20, -2, "<i8").tobytes() + raw[34 + 12 * 20 :])
    with pytest.raises(IntegrityError, match="points to -2 .."):
        order(path, tokenizer)


def test_a_short_memory_map_is_refused(tmp_path, tokenizer):
    path = memory_map(tmp_path)
    with pytest.raises(SourceError, match="20 sequences; 30 were asked"):
        order(path, tokenizer, samples=30)
    with pytest.raises(SourceError, match="65 tokens; 100 were asked"):
        order(path, tokenizer, length=100)
    (tmp_path / "document.bin").write_bytes(b"12")
    with pytest.raises(IntegrityError, match="2 bytes; the index points to"):
        order(path, tokenizer)
    (tmp_path / "document.bin").unlink()
    with pytest.raises(SourceError, match="document.bin"):
        order(path, tokenizer)


# Real data, where it lies beside the project


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared test data does not lie beside the project")
def test_wikitext_has_the_tokens_that_everybody_counts():
    """288,730 test tokens for Pythia's tokenizer, 140 windows of 2,048."""
    tokenizer = Tokenizer.from_file(str(SHARED / "tokenizer" / "20B_tokenizer.json"))
    path, config = SHARED / "wikitext2" / "wiki.test.raw.gz", NeoXConfig(50304, 128, 6, 4, 512)
    section = Verify(source="wikitext2", path=path, tokens=286720)
    got = verify_windows(section, tokenizer, config)
    assert got.ids.shape == (140, 2048) and 0 not in got.ids
    assert len(np.unique(got.documents)) == 62, "its articles"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
    joined = "\n\n".join(line if line.strip() else "" for line in lines)
    assert joined.startswith(tokenizer.decode(got.ids.ravel().tolist()))
    with pytest.raises(SourceError, match="288,730 tokens make 140 windows of 2,048; 141 were asked for"):
        verify_windows(section.model_copy(update={"tokens": 288730}), tokenizer, config)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared test data does not lie beside the project")
def test_pile_documents_through_pythias_tokenizer():
    tokenizer = Tokenizer.from_file(str(SHARED / "tokenizer" / "20B_tokenizer.json"))
    config = NeoXConfig(50304, 128, 6, 4, 512)
    got = windows(SHARED / "pile" / "pile_test_docs.jsonl.gz", tokenizer, samples=4, length=2048, config=config)
    assert got.ids.shape == (4, 2048) and 3 < got.n_bytes / got.ids.size < 5.5
