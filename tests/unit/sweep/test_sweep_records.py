"""Records of a sweep's directory that lie: told by file and field, whichever command reads them."""

from __future__ import annotations

import json
import shutil

import pytest
from sweeps import RTN, checkpoints, sweep

from pythia_export.base.errors import IntegrityError, SourceError
from pythia_export.sweep.folder import MANIFEST, Folder
from pythia_export.sweep.run import run
from pythia_export.sweep.status import status
from pythia_export.sweep.table import tables
from pythia_export.sweep.work import failure


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Folder:
    folder = Folder(tmp_path_factory.mktemp("sweep") / "out")
    run(sweep(checkpoints(tmp_path_factory.mktemp("run"), "step0"), RTN), folder)
    return folder


@pytest.fixture
def folder(done, tmp_path) -> Folder:
    return Folder(shutil.copytree(done.root, tmp_path / "out"))


def changed(path, place: str, value: object) -> None:
    record = json.loads(path.read_text())
    of, *parts = record, *place.split(".")
    for part in parts[:-1]:
        of = of[int(part) if part.isdigit() else part]
    of[int(parts[-1]) if parts[-1].isdigit() else parts[-1]] = value
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("snapshots", None), ("snapshots", "x"), ("snapshots.0", {}), ("snapshots.0.name", []),
        ("snapshots.0.task", "another"), ("left_out", "x"), ("left_out", [{}]), ("jobs", []), ("jobs", {"abcd": [1]}),
        ("jobs", {"abcd": ["../../etc"]}), ("jobs", {}),
    ],
)  # fmt: skip
def test_a_manifest_that_lies_is_told_by_its_field(place, value, folder):
    changed(folder.root / MANIFEST, place, value)
    for read in (status, Folder.pinned):
        with pytest.raises(IntegrityError, match=rf"sweep\.json: .*({place.split('.')[0]}|lacks the task)") as raised:
            read(folder)
        assert "sweep run" in raised.value.hint


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("bits_per_weight", "4"), ("cost.nll_original", {"a": 1}), ("threads", 1e308),
        ("cost.clusters.count", True), ("when", 7), ("key", 5), ("cost", None), ("seconds", []), ("job", None),
    ],
)  # fmt: skip
def test_a_result_that_lies_is_told(place, value, folder):
    (path,) = folder.root.glob("results/*/*.json")
    changed(path, place, value)
    with pytest.raises(IntegrityError, match="the result of"):
        tables(folder, folder.pinned().keys)


@pytest.mark.parametrize(("place", "value"), [("exit_code", "4"), ("message", None), ("attempt", {})])
def test_a_failure_that_lies_is_told(place, value, folder):
    (key,) = folder.pinned().keys
    next(folder.root.glob("results/*/*.json")).unlink()
    folder.put_failure(key, failure(SourceError("x"), 1))
    assert status(folder).failures[0].exit_code == 3
    changed(next(folder.root.glob("failures/*/*.json")), place, value)
    with pytest.raises(IntegrityError, match=place):
        status(folder)
