"""How a task's process ends, and what a sweep makes of it: on this machine (test_slurm.py has Slurm's)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from checkpoints import demo_of
from places import ROOT

from pythia_export.base.errors import EnvironmentProblem, ResourceError, SourceError
from pythia_export.sweep.folder import SILENT_SECONDS, Folder
from pythia_export.sweep.run import run
from pythia_export.sweep.schema import SweepFile, parse

DEMO = ROOT / "demo"


def a_sweep(
    folder: Path, *, models: Path = DEMO, samples: int = 8, verify: Path | None = None, **resources: float
) -> SweepFile:
    text: dict[str, object] = {"source": "python-stdlib", "sequence_length": 128}
    other = {} if verify is None else {"source": "file", "path": str(verify)}
    raw = {
        "sweep": {"models": [{"name": "a", "path": f"{models}/{{revision}}"}]},
        "quantize": {"bits": [3, 4], "group_size": 32},
        "calibration": text | {"samples": samples},
        "verify": text | other | {"tokens": 1024},
        "resources": {"cores": 1, "attempts": 1, **resources},
    }
    return parse(raw, folder)


def test_what_is_wrong_with_a_sweep_is_said_again_the_second_time(tmp_path: Path) -> None:
    """What the first run left behind is not taken for somebody else's."""
    text = tmp_path / "held-out.txt"
    demo_of(1, tmp_path / "models" / "main")
    file = a_sweep(tmp_path, models=tmp_path / "models", verify=text)
    for _ in range(2):
        with pytest.raises(SourceError, match="held-out"):
            run(file, Folder(tmp_path / "out"), engine="local")
    text.write_text("\n".join(f"def number_{i}():\n    return {i}" for i in range(1000)))
    assert run(file, Folder(tmp_path / "out"), engine="inline").done == 2


def test_a_process_that_cannot_even_begin_is_not_said_to_lack_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise ImportError('libtorch is of another machine')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'broken'}:{os.environ.get('PYTHONPATH', '')}")
    folder = Folder(tmp_path / "out")
    assert run(a_sweep(tmp_path), folder, engine="local").failed == 2
    for key in folder.failed():
        record = folder.failure(key)
        assert record is not None
        assert (record.exit_code, record.message) == (
            EnvironmentProblem.exit_code,
            "its process failed (1 attempt)",
        )
    (task,) = {path.stem for path in (tmp_path / "out" / "logs").glob("*.files")}
    assert "libtorch is of another machine" in "".join(path.read_text() for path in folder.output_of(task))


def test_a_process_over_its_time_is_put_down_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told half a minute before, and leaves nothing in TMPDIR."""
    (tmp_path / "scratch").mkdir()
    for name in ("torch", "json", "submitit", "pickle"):  # in the folder where it is called: for nobody to import
        (tmp_path / "scratch" / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.chdir(tmp_path / "scratch")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    folder = Folder(tmp_path / "out")
    assert run(a_sweep(tmp_path, samples=2048, hours=0.0125), folder, engine="local").failed == 2
    records = [folder.failure(key) for key in folder.failed()]
    assert {(r.exit_code, r.message) for r in records if r is not None} == {
        (ResourceError.exit_code, "not enough time, at last with 1 min (1 attempt)")
    }
    assert not [path for path in (tmp_path / "scratch").iterdir() if path.suffix != ".py"]
    assert not (tmp_path / "ran").exists()


def test_a_mark_without_a_sign_of_life_is_nobodys(tmp_path: Path) -> None:
    """Though there be a process of its number: after a restart of the machine it is another's."""
    folder = Folder(tmp_path)
    with folder.working("0123", 1, 1):
        assert folder.running().keys() == {"0123"}
        long_ago = time.time() - SILENT_SECONDS - 1
        os.utime(tmp_path / "running" / "0123.json", (long_ago, long_ago))
        assert not folder.running()
    assert not list((tmp_path / "running").iterdir())
