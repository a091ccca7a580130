"""Sweeps on a GPU, and what Slurm is asked: an emulated device, and clients of Slurm that answer what a test wants."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from emulated import emulation
from sweeps import CONFIG, RTN, checkpoints, content, sweep, text, toml
from typer.testing import CliRunner

from pythia_export import cli
from pythia_export.base.errors import EnvironmentProblem
from pythia_export.sweep import engines, slurm
from pythia_export.sweep import work as working
from pythia_export.sweep.engines import visible_gpus
from pythia_export.sweep.folder import Folder
from pythia_export.sweep.plan import need, plan
from pythia_export.sweep.run import run
from pythia_export.sweep.schema import SweepFile
from pythia_export.sweep.slurm import Slurm
from pythia_export.sweep.snapshots import snapshots
from pythia_export.sweep.status import keys
from pythia_export.sweep.table import tables

ORIGINAL = {"hessian": "original", "error_correction": False, "group_size": 32, "fisher": False}
WAYS = [{"bits": 4, "group_size": 32, "beam": 2}, {"bits": 4, **ORIGINAL}, {"bits": 3, **ORIGINAL}, {"bits": 2} | RTN]

without_a_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def records(folder: Folder) -> list[dict]:
    return [record.to_json() for key in keys(folder) if (record := folder.result(key)) is not None]


def logs(folder: Folder) -> str:
    return "".join(path.read_text() for path in folder.root.rglob("*.log"))


def test_a_sweep_on_a_gpu_finds_what_the_cpu_does(tmp_path, monkeypatch):
    narrow = replace(CONFIG, intermediate_size=64)  # an emulated device takes its time for every column
    file = sweep(checkpoints(tmp_path, "step1", config=narrow), WAYS, texts=text(samples=2, tokens=256))
    on_cpu, on_gpu = Folder(tmp_path / "a"), Folder(tmp_path / "b")
    run(file, on_cpu)
    products = []
    with emulation(lambda operator: products.append(operator.overloadpacket.__name__)) as device:
        monkeypatch.setattr(working, "device_called", lambda name: device)
        outcome = run(file, on_gpu)
    assert outcome.done == 4 and products.count("linalg_cholesky_ex") and "Traceback" not in logs(on_gpu)
    assert tables(on_gpu, keys(on_gpu))[0]["device"].to_pylist() == ["emulated"] * 4
    for one, other in zip(records(on_gpu), records(on_cpu), strict=True):
        assert (one["device"], other["device"]) == ("emulated", "cpu")
        got, expected = content(one), content(other)
        # Sums cut off to 10 bits change a code here and there, and this text is of 256 tokens: up to 4 % of a figure.
        assert got.pop("cost")["kld"]["mean"] == pytest.approx(expected.pop("cost")["kld"]["mean"], rel=1e-1)
        for name in ("expected_cost", "residual_error"):
            assert (got.pop(name) or 0) == pytest.approx(expected.pop(name) or 0, rel=1e-1)
        assert got == expected


@without_a_gpu
@pytest.mark.parametrize("engine", ["inline", "local"])
def test_without_a_gpu_nothing_is_begun(tmp_path, engine):
    path = toml(tmp_path / "sweep.toml", sweep(checkpoints(tmp_path / "of", "step1"), WAYS, device="cuda"))
    done = CliRunner().invoke(cli.app, ["sweep", "run", str(path), "--out", str(tmp_path / "out"), "--engine", engine])
    said = " ".join(done.stderr.split())
    assert done.exit_code == 6 and "a GPU was asked for" in said and "`resources.device`" in said
    assert not list((tmp_path / "out").glob("results/*")) and not list((tmp_path / "out").glob("jobs/*"))


@without_a_gpu
def test_a_node_without_one_is_put_down_and_tried_again_by_the_next_run(tmp_path, monkeypatch):
    template, folder = checkpoints(tmp_path, "step1"), Folder(tmp_path / "out")
    monkeypatch.setattr(engines, "device_called", lambda name: None)
    outcome = run(sweep(template, WAYS[3], device="cuda"), folder)
    (key,) = keys(folder)
    assert (outcome.done, outcome.failed) == (0, 1)
    assert folder.failure(key).exit_code == EnvironmentProblem.exit_code
    assert run(sweep(template, WAYS[3]), folder).done == 1


@without_a_gpu
def test_each_process_of_this_machine_has_a_gpu_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "device_called", lambda name: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5a")
    file = sweep(checkpoints(tmp_path / "of", "step1", "step2"), WAYS[3], device="cuda", attempts=1)
    folder = Folder(tmp_path / "out")
    outcome = run(file, folder, engine="local")
    assert outcome.failed == 2  # none has a GPU here
    assert sorted(re.findall(r"1 threads, GPU (.*)", logs(folder))) == ["3", "GPU-5a"]


def test_gpus_are_those_that_this_process_sees(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert visible_gpus() == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,1")
    assert visible_gpus() == ["2", "1"]


def test_a_gpu_is_expected_to_take_less_time_and_is_named(tmp_path):
    template = checkpoints(tmp_path, "step1")
    cpu, gpu = (sweep(template, WAYS, device=device) for device in ("cpu", "cuda"))
    (member,), _ = snapshots(cpu.sweep)
    assert need(gpu, member).hours < need(cpu, member).hours
    assert (plan(cpu).device, plan(gpu).device) == ("cpu", "cuda")
    shown = CliRunner().invoke(cli.app, ["sweep", "plan", str(toml(tmp_path / "sweep.toml", gpu))])
    assert "1 cores and a GPU" in " ".join(shown.stdout.split())


# What is asked of Slurm.

SQUEUE = """#!/bin/sh
test -e {0}/away && echo "squeue: error: no controller" >&2 && exit 1
test -e {0}/queued && cat {0}/queued
exit 0
"""
NONE = "#!/bin/sh\nexit 1\n"
SBATCH = """#!/bin/sh
for last; do :; done
cp "$last" {0}/script
echo Submitted batch job 7
"""


@pytest.fixture
def clients(tmp_path, monkeypatch) -> Path:
    for name, script in (("squeue", SQUEUE), ("sbatch", SBATCH), ("scontrol", NONE), ("srun", NONE)):
        (tmp_path / name).write_text(script.format(tmp_path))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(slurm, "ASK_SECONDS", 0)
    return tmp_path


class Told:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def at_slurm(file: SweepFile, folder: Path, told: Told) -> Slurm:
    return Slurm(Folder(folder), file.resources, None, False, told)


ORDER = engines.Order("task", "title", ("key",), 1.0, 1.0)
GPU_OPTIONS = [
    ({"device": "cuda"}, ["gpus-per-node=1"]),
    ({"device": "cuda", "slurm": {"gres": "gpu:a100:1"}}, ["gres=gpu:a100:1"]),
    ({"device": "cuda", "slurm": {"gpus-per-task": 1}}, ["gpus-per-task=1"]),
    ({}, []),
]


@pytest.mark.parametrize(("resources", "expected"), GPU_OPTIONS)
def test_slurm_is_asked_for_a_gpu(clients, resources, expected):
    at_slurm(sweep("{revision}", WAYS, **resources), clients / "out", Told()).submit([ORDER])
    script = (clients / "script").read_text()
    assert re.findall(r"#SBATCH --((?:gres|gpus).*)", script) == expected


def test_a_controller_that_is_away_for_a_while_ends_nothing(clients, monkeypatch):
    told = Told()
    engine = at_slurm(sweep("{revision}", WAYS), clients / "out", told)
    engine.submit([ORDER])
    (clients / "away").touch()
    assert engine.ended() == engine.ended() == [] and engine.busy
    assert len(told.notes) == 1 and "no controller; asking again for 30 minutes" in told.notes[0]
    (clients / "away").unlink()
    assert engine.ended() == [(ORDER, "interrupted")] and not engine.busy


def test_a_controller_that_does_not_come_back_is_an_error(clients, monkeypatch):
    engine = at_slurm(sweep("{revision}", WAYS), clients / "out", Told())
    engine.submit([ORDER])
    (clients / "away").touch()
    monkeypatch.setattr(slurm, "AWAY_SECONDS", 0)
    with pytest.raises(EnvironmentProblem, match="no controller") as refused:
        engine.ended()
    assert "`sweep run` finds them again" in refused.value.hint
