"""Files of text as people have them: packed, marked, named otherwise, of other columns: read alike, or told."""

from __future__ import annotations

import bz2
import codecs
import gzip
import hashlib
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zstandard
from texts import CONFIG, Told, demo_tokenizer, texts, windows

from pythia_export.base.errors import PythiaExportError, SourceError
from pythia_export.corpus import calibration_windows, formats, packing
from pythia_export.recipe import Calibration, Model, Text

ROWS = texts(40)
LINES = "".join(json.dumps({"text": t}) + "\n" for t in ROWS)
PACKERS = {
    "plain": bytes, "gzip": gzip.compress, "zstd": zstandard.compress, "xz": lzma.compress, "bzip2": bz2.compress,
    "two frames": lambda data: zstandard.compress(data[:300]) + zstandard.compress(data[300:]),
    "two gzips": lambda data: gzip.compress(data[:300]) + gzip.compress(data[300:]),
    "pzstd": lambda data: bytes.fromhex("502a4d18 04000000 00000000") + zstandard.compress(data),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return demo_tokenizer()


def put(folder: Path, name: str, data: bytes | str) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder / name


@pytest.fixture(scope="module")
def expected(tmp_path_factory, tokenizer):  # noqa: F811
    return windows(put(tmp_path_factory.mktemp("plain"), "a.jsonl", LINES), tokenizer).sha256


@pytest.mark.parametrize("how", PACKERS)
def test_what_is_packed_is_told_by_its_content(how, tmp_path, tokenizer, expected):  # noqa: F811
    for name in ("a.jsonl", "a.jsonl.gz", "A.JSONL.ZST", "a.jsonl.xz", "a.ndjson.bz2"):
        assert windows(put(tmp_path, name, PACKERS[how](LINES.encode())), tokenizer).sha256 == expected


@pytest.mark.parametrize("log", [27, 28, 31])
def test_zstd_files_with_long_windows_are_read(log, tmp_path, tokenizer, expected):  # noqa: F811
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=log)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # its size is not written
    path = put(tmp_path, "a.jsonl.zst", packer.compress(LINES.encode()) + packer.flush())
    assert zstandard.get_frame_parameters(path.read_bytes()).window_size == 1 << log
    assert windows(path, tokenizer).sha256 == expected


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_are_no_text(encoding, tmp_path, tokenizer, expected):  # noqa: F811
    assert windows(put(tmp_path, "a.jsonl", LINES.encode(encoding)), tokenizer).sha256 == expected
    array = json.dumps([{"text": t} for t in ROWS], indent=1)
    assert windows(put(tmp_path, "a.json", array.encode(encoding)), tokenizer).sha256 == expected
    plain = windows(put(tmp_path, "plain.txt", "".join(ROWS)), tokenizer)
    assert windows(put(tmp_path, "a.txt", "".join(ROWS).encode(encoding)), tokenizer).sha256 == plain.sha256


def test_marks_inside_line_ends_of_windows_and_blank_lines_are_no_rows(tmp_path, tokenizer, expected):  # noqa: F811
    front, back = LINES[: LINES.index("\n", 500) + 1], LINES[LINES.index("\n", 500) + 1 :]
    joined = front.encode("utf-8-sig") + b"\r\n \n" + back.replace("\n", "\r\n").encode("utf-8-sig")
    assert windows(put(tmp_path, "a.jsonl", joined), tokenizer).sha256 == expected


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_of_rows_is_read_a_chunk_at_a_time(indent, tmp_path, tokenizer, expected, monkeypatch):  # noqa: F811
    monkeypatch.setattr(formats, "_CHUNK", 37)
    array = json.dumps([{"text": t, "id": i} for i, t in enumerate(ROWS)], indent=indent)
    for name in ("a.json", "a.jsonl"):
        assert windows(put(tmp_path, name, "\n" + array), tokenizer).sha256 == expected
    with pytest.raises(SourceError, match=r"a.json, element 40: not JSON"):
        windows(put(tmp_path, "a.json", array[:-20]), tokenizer)


METAS = {
    "an object": {"meta": {"pile_set_name": "Github"}},
    "JSON": {"meta": '{"pile_set_name": "Github", "n": null}'},
    "Python": {"meta": "{'pile_set_name': 'Github', 'pattern': '\\d'}"},
    "at the top": {"pile_set_name": "Github"},
    "at the top, beside another meta": {"pile_set_name": "Github", "meta": "{'url': 'pile_set_name'}"},
}
NO_METAS = {
    "none": {}, "null": {"meta": None}, "a word": {"meta": "pile_set_name"},
    "nested": {"meta": "[" * 3000 + "pile_set_name"},
    "unary": {"meta": "-" * 3000 + "1, 'pile_set_name'"}, "a call": {"meta": "dict(pile_set_name='Github')"},
    "a number": {"meta": "{'pile_set_name': 7}"}, "unhashable": {"meta": "{[]: 'pile_set_name'}"},
    "long": {"meta": "{'pile_set_name': 'Github', 'x': '" + "x" * 10000 + "'}"},
}  # fmt: skip


@pytest.mark.parametrize("case", METAS | NO_METAS)
@pytest.mark.filterwarnings("error")
def test_the_part_of_the_pile_is_read_as_mirrors_write_it(case, tmp_path, tokenizer):  # noqa: F811
    rows = [{"text": t} | (METAS | NO_METAS)[case] for t in ROWS]
    got = windows(put(tmp_path, "a.jsonl", "".join(json.dumps(r) + "\n" for r in rows)), tokenizer)
    assert set(got.subsets) == ({"Github"} if case in METAS else set())


def test_parts_that_no_row_names_are_told_with_the_columns(tmp_path, tokenizer, monkeypatch):  # noqa: F811
    rows = "".join(json.dumps({"text": t, "url": "x"}) + "\n" for t in ROWS)
    with pytest.raises(SourceError, match=r"none of 40 documents names its part of the Pile .*columns: text, url"):
        windows(put(tmp_path, "a.jsonl", rows), tokenizer, subsets=("Github",))
    monkeypatch.setattr("pythia_export.corpus.sources.BUFFER", 10)
    with pytest.raises(SourceError, match="none of 10 documents") as caught:
        windows(put(tmp_path, "a.jsonl", rows + "nope\n"), tokenizer, subsets=("Github",))
    assert "Leave `subsets` out" in caught.value.hint, "and 30 GB are not read to their end for it"


def test_rows_without_text_are_counted_and_told(tmp_path, tokenizer, expected):  # noqa: F811
    told, none = Told(), '{"text": null}\n' * 3 + '{"text": ""}\n'
    section = Calibration(source="file", path=put(tmp_path, "a.jsonl", LINES + none), samples=6, sequence_length=32)
    assert calibration_windows(section, tokenizer, CONFIG, told).sha256 == expected
    assert told.notes == ["a.jsonl: 4 of 44 rows have no text (null or empty): left out"]
    with pytest.raises(SourceError, match="0 tokens in 0 documents; .*; 4 rows have no text"):
        windows(put(tmp_path, "none.jsonl", none), tokenizer)


def archive(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as z:
            z.writestr("a.jsonl", LINES)
    else:
        with tarfile.open(fileobj=file, mode="w:gz") as t:
            t.addfile(tarfile.TarInfo("a.jsonl"))
    return file.getvalue()


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4485272\n"
TOLD = {
    "other columns": ("a.jsonl", '\n{"content": "x", "id": 1}\n', 3, "line 2: an object with a string `text` was "
                      "expected; its columns are content (string), id (number)", "{text: .content}"),
    "a list": ("a.jsonl", '{"text": ["a"]}\n', 3, "line 1: `text` is a list; a string", ""),
    "a number": ("a.jsonl", '{"text": 1}\n', 3, "line 1: `text` is a number", ""),
    "over several lines": ("a.jsonl", '{\n"text": "a"\n}\n', 3, "line 1: not JSON", "one object"),
    "a table": ("a.json", '{"data": [{"text": "a"}]}', 3, "its columns are data (list)", ""),
    "latin 1": ("a.jsonl", LINES.encode() + b'{"text": "\xe9t\xe9"}\n', 4, "line 41: not UTF-8: ", "iconv"),
    "latin 1 text": ("a.txt", b"\xe9t\xe9", 4, "cannot be read to its end", "iconv"),
    "a table of commas": ("a.csv", "text\na\n", 3, ".jsonl, .json, .txt or .parquet", "read_csv"),
    "of tabs": ("a.tsv.gz", gzip.compress(b"text\na\n"), 3, ".jsonl, .json", "sep='\\t'"),
    "Arrow": ("data-00000-of-00001.arrow", b"ARROW1\0\0", 3, ".jsonl, .json", "save_to_disk"),
    "an archive": ("a.jsonl", archive("zip"), 3, "a.jsonl is an archive (.zip)", "Unpack"),
    "a packed archive": ("a.jsonl.gz", archive("tar"), 3, "is an archive (.tar)", "Unpack"),
    "a pointer": ("a.jsonl.zst", POINTER, 3, "a.jsonl.zst: a git-lfs pointer", "git lfs pull"),
    "a pointer to Parquet": ("a.parquet", POINTER, 3, "a.parquet: a git-lfs pointer", "git lfs pull"),
    "a cut xz": ("a.jsonl.xz", lzma.compress(LINES.encode())[:-30], 4, "cannot be read to its end", ""),
    "a damaged xz": ("a.txt.xz", lzma.compress(bytes(10**5))[:40] + b"\xff" * 40, 4, "cannot be read to its end", ""),
    "a cut bz2": ("a.jsonl.bz2", bz2.compress(LINES.encode())[:-30], 4, "cannot be read to its end", ""),
    "a web address": (None, "https://example.org/a.jsonl", 3, "no such text file", "source = 'hub'"),
    "a pattern of nothing": (None, "*.jsonl", 3, "no file matches", "recipe's own folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOLD)
def test_what_cannot_be_read_is_told_with_its_place(case, tmp_path, tokenizer):  # noqa: F811
    name, data, code, said, hint = TOLD[case]
    path = put(tmp_path, name, data) if name is not None else tmp_path / data
    with pytest.raises(PythiaExportError) as caught:
        windows(path, tokenizer)
    assert caught.value.exit_code == code and said in str(caught.value) and hint in caught.value.hint


# Parquet


def test_parquet_of_any_string_type_is_read(tmp_path, tokenizer, expected):  # noqa: F811
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    rows = [None, *ROWS, None]
    arrays = {
        "large": arrow.array(rows, arrow.large_string()),
        "dictionary": arrow.array(rows).dictionary_encode(),
        "chunked": arrow.chunked_array([rows[:7], rows[7:]]),
    }
    for name, array in arrays.items():
        table = arrow.table({"id": range(len(array)), "text": array, "pile_set_name": ["Github"] * len(array)})
        parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=5)
        got = windows(tmp_path / f"{name}.parquet", tokenizer, samples=6)
        assert len(got.subsets["Github"].documents) > 1
        order = np.random.default_rng(0).permutation(40)
        stream = [i for d in order for i in tokenizer.encode(ROWS[d]).ids]
        assert got.ids.ravel().tolist() == stream[: 6 * 32]
    data = (tmp_path / "large.parquet").read_bytes()
    assert windows(put(tmp_path, "misnamed.jsonl", data), tokenizer, samples=6).sha256 == got.sha256 == expected
    maps = arrow.array([[("pile_set_name", "ArXiv")]] * 40, arrow.map_(arrow.string(), arrow.string()))
    parquet.write_table(arrow.table({"text": ROWS, "meta": maps}), tmp_path / "map.parquet")
    assert set(windows(tmp_path / "map.parquet", tokenizer).subsets) == {"ArXiv"}


def test_columns_of_parquet_are_told_with_their_types(tmp_path, tokenizer):  # noqa: F811
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(arrow.table({"content": ROWS, "id": range(40)}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"a.parquet: .*columns are content \(string\), id \(int64\)") as caught:
        windows(tmp_path / "a.parquet", tokenizer)
    assert "rename_column('content', 'text')" in caught.value.hint
    for array in ([["a"]] * 40, [b"a"] * 40, range(40)):
        parquet.write_table(arrow.table({"text": array}), tmp_path / "a.parquet")
        with pytest.raises(SourceError, match=r"its column `text` is (list<.*|binary|int64)"):
            windows(tmp_path / "a.parquet", tokenizer)


# Several files


def halves(folder: Path) -> Path:
    lines = LINES.splitlines(keepends=True)
    put(folder, "b/2.jsonl", "".join(lines[20:]))
    put(folder, "1.jsonl.gz", gzip.compress("".join(lines[:20]).encode()))
    put(folder, ".cache/0.jsonl", "nope")
    put(folder, "README.md", "# Text")
    return folder


@pytest.mark.parametrize("path", [".", "**/*.jsonl*", "[1b]*/../**/*.jsonl*"])
def test_a_folder_or_a_pattern_is_its_files_one_after_another(path, tmp_path, tokenizer, expected):  # noqa: F811
    folder = halves(tmp_path / "text [0]")
    got = windows(folder if path == "." else folder / path, tokenizer)
    assert got.sha256 == expected
    sums = "".join(
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in ("1.jsonl.gz", "b/2.jsonl")
    )
    if path == ".":
        digest = hashlib.sha256(sums.encode()).hexdigest()[:12]
        assert got.source == f"text [0] (2 of 2 files read, SHA-256 {digest})", "as sha256sum's own lines have it"


def test_files_that_are_not_needed_are_not_read(tmp_path, tokenizer, monkeypatch):  # noqa: F811
    monkeypatch.setattr("pythia_export.corpus.sources.BUFFER", 5)
    for i in range(9):
        put(tmp_path, f"{i}.jsonl", LINES if i < 3 else "nope\n")
    assert "(1 of 9 files read" in windows(tmp_path / "?.jsonl", tokenizer).source
    with pytest.raises(SourceError, match=r"3.jsonl, line 1: not JSON"):
        windows(tmp_path / "?.jsonl", tokenizer, samples=600)


def test_a_folder_of_several_kinds_or_of_none_is_told(tmp_path, tokenizer):  # noqa: F811
    with pytest.raises(SourceError, match="found no file"):
        windows(tmp_path, tokenizer)
    put(tmp_path, "a.md", "a")
    with pytest.raises(SourceError, match=r"found 1 \.md"):
        windows(tmp_path, tokenizer)
    put(tmp_path, "LICENSE.txt", "a")
    put(tmp_path, "a.jsonl", LINES)
    with pytest.raises(SourceError, match=r"of one kind was expected .*found 1 \.jsonl, 1 \.md, 1 \.txt") as caught:
        windows(tmp_path, tokenizer)
    assert "path = '" in caught.value.hint
    with pytest.raises(SourceError, match="2 files; one was expected"):
        section = Calibration(source="wikitext2", path=tmp_path / "*[lt]", samples=1, sequence_length=8)
        calibration_windows(section, tokenizer, CONFIG)


def test_home_is_where_the_shell_has_it(tmp_path, monkeypatch, tokenizer, expected):  # noqa: F811
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path, "texts/a.jsonl", LINES)
    assert windows(Path("~/texts/a.jsonl"), tokenizer).sha256 == expected
    assert Model(path=Path("~/model")).path == tmp_path / "model"
    assert Text(source="file", path=Path("~/texts/*.jsonl")).path == tmp_path / "texts" / "*.jsonl"
    with pytest.raises(ValueError, match="~nobody-of-that-name/a"):
        Text(source="file", path=Path("~nobody-of-that-name/a"))


# Long documents


def test_a_long_document_is_tokenised_in_slices_as_whole_and_no_further_than_needed(tmp_path, tokenizer, monkeypatch):  # noqa: F811
    rng = np.random.default_rng(0)
    words = ["été", "naïve", "don't", "x=1", "\n\n", "   ", "\t", "<|endoftext|>", "日本語", "12", "...", " "]
    text = "".join(rng.choice(words, 4000).tolist())
    monkeypatch.setattr(packing, "SLICE", 97)
    for size in (97, 300, 1000):
        monkeypatch.setattr(packing, "SLICE", size)
        pieces = list(packing.slices(text))
        assert "".join(pieces) == text and len(pieces) > 5
        assert [i for piece in pieces for i in tokenizer.encode(piece).ids] == tokenizer.encode(text).ids
    assert list(packing.slices("x" * 5000)) == ["x" * 2000] * 2 + ["x" * 1000], "nowhere to cut, and held within bounds"
    path = put(tmp_path, "a.jsonl", json.dumps({"text": text}) + "\n")
    read: list[int] = []
    monkeypatch.setattr(packing, "slices", lambda t, inner=packing.slices: (read.append(len(s)) or s for s in inner(t)))
    got = windows(path, tokenizer, samples=2)
    assert got.ids.ravel().tolist() == tokenizer.encode(text).ids[:64] and sum(read) < 1500


def test_wikitext_of_an_editor_on_windows_is_the_same(tmp_path, tokenizer):  # noqa: F811
    raw = "".join(f" \n = Title {i} = \n \n Some text of it , as it is . \n" for i in range(60))
    got = []
    for name, data in (("a.raw", raw), ("b.raw", codecs.BOM_UTF8 + raw.replace("\n", "\r\n").encode())):
        section = Calibration(source="wikitext2", path=put(tmp_path, name, data), samples=4, sequence_length=16)
        got.append(calibration_windows(section, tokenizer, CONFIG).sha256)
    assert got[0] == got[1]
