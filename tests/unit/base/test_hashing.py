"""Hashes that are taken meanwhile are those of the whole file."""

from __future__ import annotations

import hashlib

import pytest

from pythia_export.base import hashing
from pythia_export.base.beside import beside
from pythia_export.checkpoint import Accept, demo_folder, pull, with_hashes
from pythia_export.recipe import Model
from pythia_export.weights import growing

DATA = bytes(range(256)) * 129  # eight pages and a bit


@pytest.mark.parametrize("piece", [1000, 4096, 5000, 1 << 20])
def test_a_file_is_hashed_in_pieces_of_any_size(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(hashing, "_PIECE", piece)
    path = tmp_path / "file"
    path.write_bytes(DATA)
    assert hashing.sha256_of(path) == hashlib.sha256(DATA).hexdigest()
    (tmp_path / "empty").touch()
    assert hashing.sha256_of(tmp_path / "empty") == hashlib.sha256().hexdigest()


def test_a_growing_file_is_hashed_behind_what_will_not_change(tmp_path, monkeypatch):
    monkeypatch.setattr(growing, "_AT_ONCE", 1000)
    monkeypatch.setattr(growing, "_TO_DISK", 9000)
    path = tmp_path / "file"
    path.write_bytes(bytes(len(DATA)))
    found = growing.GrowingHash(path, len(DATA))
    with path.open("r+b", buffering=0) as file:
        for begin in range(0, len(DATA), 777):
            file.write(DATA[begin : begin + 777])
            found.final(file.tell())
    assert found.result() == hashlib.sha256(DATA).hexdigest()


def test_what_is_not_finished_is_waited_for_by_nobody(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(DATA)
    found = growing.GrowingHash(path, len(DATA))
    found.stop()
    with pytest.raises(AssertionError, match="not finished"):
        found.result()


def test_work_beside_raises_where_its_result_is_asked_for():
    assert beside(lambda: 7)() == 7
    failed = beside(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        failed()


def test_a_folder_that_is_hashed_later_has_the_commit_of_one_hashed_at_once():
    model = Model(path=demo_folder() / "main")
    later = pull(model, accept=Accept(hashed=False))
    assert later.commit == "" and not later.record.files
    assert with_hashes(later) == pull(model) == with_hashes(pull(model))
