"""Weights are copied in large pieces: the system caches a file in the pieces in which it was written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pythia_export.disk import copy_weights

MOST = 8 << 20


@pytest.mark.parametrize("size", [0, 1, MOST, 2 * MOST + 12345])
def test_a_copy_is_whole(tmp_path: Path, size: int) -> None:
    source, to = tmp_path / "source", tmp_path / "to"
    source.write_bytes(np.random.default_rng(0).bytes(size))
    copy_weights(source, to)
    assert to.read_bytes() == source.read_bytes()


def test_the_system_does_not_split_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sent(*given: object) -> None:
        pytest.fail("os.sendfile writes 64 KB at a time, whatever it is asked for")

    monkeypatch.setattr(os, "sendfile", sent, raising=False)
    (tmp_path / "source").write_bytes(bytes(MOST + 1))
    copy_weights(tmp_path / "source", tmp_path / "to")
    assert (tmp_path / "to").stat().st_size == MOST + 1
