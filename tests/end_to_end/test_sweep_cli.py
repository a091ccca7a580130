"""`sweep` on the command line: help, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from sweeps import RTN, checkpoints, sweep, toml
from typer.testing import CliRunner

from pythia_export import cli
from pythia_export.sweep.table import COLUMNS, read

COMMANDS = ("plan", "run", "status", "logs", "results", "report")
INLINE = ("--engine", "inline")


def invoke(*args: object, width: int | None = None):
    env = {} if width is None else {"COLUMNS": str(width)}
    return CliRunner(env=env).invoke(cli.app, ["sweep", *map(str, args)])


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """A sweep's file and directory: of three checkpoints, the second has a NaN."""
    root = tmp_path_factory.mktemp("sweep")
    template = checkpoints(root / "run", "step0", "step1", "step2")
    weights = root / "run" / "step1" / "model.safetensors"
    tensors = load_file(weights)
    tensors["embed_out.weight"][7, 7] = float("nan")
    save_file(tensors, weights)
    path = toml(root / "sweep.toml", sweep(template, RTN | {"bits": [8, 2]}, "0:3:1"))
    done = invoke("run", path, "--out", root / "out", *INLINE)
    assert done.exit_code == 11, done.output
    return path, root / "out"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_shows_examples(command):
    done = invoke(command, "--help")
    assert done.exit_code == 0 and f"pythia-export sweep {command}" in done.output.split("Examples")[1]
    assert command in invoke("--help").output


def test_run_is_0_when_all_is_done_and_11_when_something_is_left(made, tmp_path):
    path, out = made
    again = invoke("run", path, "--out", out, *INLINE)
    assert again.exit_code == 11 and again.stdout.startswith("4 of 6 jobs done, 0 of them now, in ")
    assert f"2 failed: pythia-export sweep status {out}" in " ".join(again.stdout.split())
    found = invoke("run", path, "--out", out, *INLINE, "--json")
    outcome = json.loads(found.stdout)
    assert found.exit_code == 11 and outcome.pop("seconds") >= 0
    assert outcome == {"jobs": 6, "done": 4, "did": 0, "failed": 2}
    good = tmp_path / "sweep.toml"
    good.write_text(path.read_text().replace('"0:3:1"', '"0,2"'))
    assert invoke("run", good, "--out", tmp_path / "out", *INLINE).exit_code == 0


def test_exit_codes_of_what_is_wrong(made, tmp_path):
    path, out = made
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    for code, said, args in (
        (2, "--out", ("run", path)),
        (2, "ray", ("run", path, "--out", out, "--engine", "ray")),
        (2, "no such file", ("run", tmp_path / "none.toml", "--out", out)),
        (2, "no jobs whose keys begin with 'zzz'", ("logs", out, "zzz")),
        (2, "6 jobs whose keys begin with ''", ("logs", out, "")),
        (3, "no sweep was run there", ("status", tmp_path)),
        (3, "no sweep was run there", ("logs", tmp_path, "a")),
        (3, "no sweep was run there", ("results", tmp_path / "nowhere")),
        (3, "no sweep was run there", ("report", tmp_path)),
        (6, "--engine local has --workers", ("run", path, "--out", out, *INLINE, "--workers", 2)),
        (8, "holds other things", ("run", path, "--out", tmp_path / "other", *INLINE)),
        (8, "cannot be used as a directory", ("run", path, "--out", path, *INLINE)),
    ):
        done = invoke(*args)
        assert done.exit_code == code and done.stdout == "" and "Traceback" not in done.stderr, (args, done.output)
        assert said in " ".join(done.stderr.split()), (args, done.stderr)


def test_no_slurm_is_6_and_says_what_else_there_is(made, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    done = invoke("run", made[0], "--out", tmp_path / "out", "--engine", "slurm")
    assert done.exit_code == 6 and "sbatch and squeue are not found" in done.stderr and "--engine local" in done.stderr


def test_plan_counts_what_is_to_do_and_what_is_done(made):
    path, out = made
    plain = json.loads(invoke("plan", path, "--json").stdout)
    assert (plain["jobs"], plain["done"]) == (6, 0) and plain["rows"][0]["measured"] is False
    assert plain["left_out"] == [{"name": "mine", "revisions": ["step3"], "why": "there is no such checkpoint"}]
    found = json.loads(invoke("plan", path, "--out", out, "--json").stdout)
    row = found["rows"][0]
    assert (row["jobs"], row["done"], row["failed"], row["checkpoints"]) == (6, 4, 2, 3) and row["measured"] is True
    assert (row["fetch_bytes"], row["memory_gb"]) == (0, 1.0) and found["quantizations"] == [
        "int8 group 32 rtn", "int2 group 32 rtn",
    ]  # fmt: skip
    nowhere = json.loads(invoke("plan", path, "--out", out.parent / "nowhere", "--json").stdout)
    assert nowhere == plain


def test_plans_table_fits_80_columns(tmp_path):
    models = ["14m", "12b-deduped", "160m-data-seed1..3", "intervention-1.4b-deduped"]
    file = sweep(models, [{"bits": [2, 3, 4, 8], "group_size": [-1, 128]}], "main", memory_gb=None)
    done = invoke("plan", toml(tmp_path / "sweep.toml", file), width=80)
    assert done.exit_code == 0 and max(map(len, done.stdout.splitlines())) <= 80
    rows = [line for line in done.stdout.splitlines() if "GB" in line or line.startswith("in all")]
    assert len(rows) == 7 and rows[-1].split()[:5] == ["in", "all", "6", "48", "0"]
    for line in rows[:-1]:
        assert line.split()[1:4] == ["1", "8", "0"] and " GB" in line and "…" not in line, "a row is one line, uncut"
    assert "int2 row" in done.stdout and "Memory and time are a task's" in done.stdout


def test_status_shows_how_far_it_is_and_what_failed_and_why(made):
    _, out = made
    done = invoke("status", out, width=80)
    shown = " ".join(done.stdout.split())
    assert done.exit_code == 0 and "mine 6 4 0 0 2 █████████████" in shown
    assert "mine at step1, int8 group 32 rtn exit code 5: " in shown and "Left out: mine step3" in shown
    found = json.loads(invoke("status", out, "--json").stdout)
    assert (found["jobs"], found["done"], len(found["failures"]), found["running"]) == (6, 4, 2, {})
    assert found["models"] == [{"name": "mine", "jobs": 6, "done": 4, "running": 0, "failed": 2}]
    assert {f["exit_code"] for f in found["failures"]} == {5} and "embed_out" in found["failures"][0]["message"]
    watched = invoke("status", out, "--watch", "0.5")
    assert watched.exit_code == 0 and "mine" in watched.stdout, "nothing runs or waits: it ends"


def test_logs_show_a_job_what_came_of_it_and_what_its_task_said(made):
    _, out = made
    failed = json.loads(invoke("status", out, "--json").stdout)["failures"][0]
    done = invoke("logs", out, failed["key"][:6])
    assert done.exit_code == 0 and done.stdout.startswith(f"{failed['key']}  {failed['title']}\n")
    assert f"failed on attempt 1, exit code 5: {failed['message']}" in done.stdout
    assert "Traceback" in done.stdout and "attempt 1: 2 jobs, 1 threads" in done.stdout and ".log" in done.stdout
    result = next((out / "results").rglob("*.json")).stem
    assert "\ndone on attempt 1, 20" in invoke("logs", out, result).stdout
    (out / "results" / result[:2] / f"{result}.json").rename(out / "aside")
    assert "\nnot done yet\n" in invoke("logs", out, result).stdout
    (out / "aside").rename(out / "results" / result[:2] / f"{result}.json")


def test_results_are_the_columns_of_the_schema(made):
    _, out = made
    done = invoke("results", out)
    assert done.exit_code == 0 and done.stdout.startswith("4 rows  ")
    table = read(out / "results.parquet")
    assert table.column_names == list(COLUMNS) and [str(t) for t in table.schema.types] == [
        str(t) for t in COLUMNS.values()
    ]
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS) and len(rows) == 4 and [r["step"] for r in rows] == ["0", "0", "2", "2"]
    found = json.loads(invoke("results", out, "--json").stdout)
    assert found == {"rows": 4, "files": [str(out / "results.parquet"), str(out / "results.csv")]}


def test_the_report_counts_what_is_missing(made):
    pytest.importorskip("matplotlib")
    done = invoke("report", made[1])
    assert done.exit_code == 0 and done.stdout.strip().endswith("report.html")
    page = Path(done.stdout.strip()).read_text()
    assert "2 jobs failed" in " ".join(page.split()) or "2 failed" in " ".join(page.split())


def test_an_interrupted_run_says_that_the_same_command_goes_on(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("pythia_export.sweep.run.run", interrupted)
    file = tmp_path / "sweep.toml"
    file.write_text(
        '[sweep]\nmodels = ["14m"]\n[quantize]\nmethod = "rtn"\n[verify]\nsource = "python-stdlib"\ntokens = 64\n'
    )
    done = CliRunner().invoke(cli.app, ["sweep", "run", str(file), "--out", str(tmp_path / "out")])
    assert done.exit_code == 130 and "same command goes on" in done.output and "--resume" not in done.output


def test_a_manifest_that_lacks_its_parts_is_named_and_not_a_fault_of_ours(tmp_path):
    (tmp_path / "sweep.json").write_text('{"schema": 1, "jobs": {}}')
    for command in ("status", "results", "report"):
        done = invoke(command, tmp_path)
        assert done.exit_code == 4 and "sweep.json: no `created` (and 5 more such fields)" in done.output, done.output
