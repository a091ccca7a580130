"""Sweeps for real, on the embedded checkpoints and on smaller ones: results, and what happens on the way to them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from autoencoders import save_autoencoder
from safetensors.torch import load_file, save_file
from sweeps import CONFIG, RTN, checkpoints, content, sweep, text, toml
from typer.testing import CliRunner

from pythia_export import cli
from pythia_export.base.errors import IntegrityError, NumericsError, OutputError
from pythia_export.calibrate import quantize_stream
from pythia_export.checkpoint import demo_folder, open_checkpoint, pull
from pythia_export.corpus import calibration_windows, verify_windows
from pythia_export.proof.cost import measure_rounding
from pythia_export.proof.subject import Subject
from pythia_export.recipe import Calibration, Export, Model, Verify
from pythia_export.sweep import work as working
from pythia_export.sweep.engines import Inline
from pythia_export.sweep.folder import MANIFEST, SILENT_SECONDS, Folder
from pythia_export.sweep.measure import Shared
from pythia_export.sweep.prepare import prepare
from pythia_export.sweep.run import Outcome, run
from pythia_export.sweep.status import keys, status
from pythia_export.sweep.table import COLUMNS, MARK, SUBSET_COLUMNS, read, tables, write
from pythia_export.sweep.work import work
from pythia_export.weights.layout import layout
from pythia_export.weights.names import DATA_FILE
from pythia_export.weights.reader import WeightsReader
from pythia_export.weights.writer import WeightsWriter

ORIGINAL = {"hessian": "original", "error_correction": False, "group_size": 32}
QUANTIZE = [{"bits": 4, "group_size": 32}, {"bits": 2} | RTN, ORIGINAL | {"bits": 3, "fisher": False}]
PARTS = ("Github", "ArXiv", None)


def invoke(*args: object):
    return CliRunner().invoke(cli.app, ["sweep", *map(str, args)])


def records(folder: Folder) -> dict[str, dict]:
    return {key: folder.result(key).to_json() for key in keys(folder)}


def only(folder: Folder, kind: str) -> list[Path]:
    return sorted(p for p in (folder.root / kind).rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> dict:
    """Documents of two parts of the Pile, and of none."""
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    lines = []
    for i in range(60):
        words = " ".join(f"self.value_{i}_{j} = int(values[{j}])\n" for j in range(3 + i % 4))
        meta = {"meta": {"pile_set_name": PARTS[i % 3]}} if PARTS[i % 3] else {}
        lines.append(json.dumps({"text": words} | meta))
    path.write_text("\n".join(lines))
    return {
        "calibration": {"source": "python-stdlib", "samples": 8, "sequence_length": 128},
        "verify": {"source": "file", "path": str(path), "tokens": 1024, "sequence_length": 128},
    }


@pytest.fixture(scope="module")
def file(held_out):
    return sweep(str(demo_folder() / "{revision}"), QUANTIZE, "500,main", texts=held_out)


@pytest.fixture(scope="module")
def done(file, tmp_path_factory) -> tuple[Folder, Outcome]:
    folder = Folder(tmp_path_factory.mktemp("sweep") / "out")
    return folder, run(file, folder)


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> str:
    return checkpoints(tmp_path_factory.mktemp("run"), "step0", "step1")


@pytest.fixture
def tiny(template):
    """Four jobs of two tasks, tenths of a second."""
    return sweep(template, RTN | {"bits": [8, 2]})


def stop(*args, **kwargs):
    raise AssertionError("this was to be done once")


# Results.


def test_every_job_has_a_result_and_its_place(done):
    folder, outcome = done
    assert (outcome.jobs, outcome.done, outcome.did, outcome.failed) == (6, 6, 6, 0)
    assert len(only(folder, "results")) == len(only(folder, "jobs")) == 6
    assert only(folder, "running") == [] and not (folder.root / "failures").exists()
    now = status(folder)
    assert [(of.name, of.jobs, of.done, of.waiting) for of in now.models] == [("mine", 6, 6, 0)]
    found = list(records(folder).values())
    assert [r["job"]["model"]["revision"] for r in found] == ["step500"] * 3 + ["main"] * 3, "in the order of the file"
    cost = [r["cost"]["kld"]["mean"] for r in found]
    assert all(0 < cost[i] < cost[i + 2] < cost[i + 1] for i in (0, 3)), "4 bits, 3 bits, 2 bits to nearest"
    assert {r["threads"] for r in found} == {1} and all(r["attempt"] == 1 for r in found)
    assert [r["expected_cost"] is not None for r in found] == [True, False, False] * 2, "GPTQ with fisher"


@pytest.mark.parametrize("number", [3, 4, 5])
def test_a_result_is_what_the_pipelines_parts_say_by_hand(done, held_out, tmp_path, number):
    folder, _ = done
    record = list(records(folder).values())[number]
    job = folder.job(record["key"])
    checkpoint = open_checkpoint(pull(Model(path=demo_folder() / "main")))
    tokenizer, config = checkpoint.tokenizer(), checkpoint.config
    windows = verify_windows(Verify(**held_out["verify"]), tokenizer, config)
    ids = calibration_windows(Calibration(**held_out["calibration"]), tokenizer, config).ids
    torch.set_num_threads(1)
    places = layout(config, job.quantize, "float32")
    with WeightsWriter(tmp_path / DATA_FILE, places) as writer:
        by_gptq = job.quantize.method == "gptq"
        found = quantize_stream(checkpoint, writer, ids if by_gptq else None)
    stored = WeightsReader(tmp_path / DATA_FILE, places)
    subject = Subject(None, checkpoint, stored, config, None, tmp_path, job.quantize, Export())  # no graph: torch alone
    expected = measure_rounding(subject, stored, windows).to_json()
    for figure in ("delta_nll", "kld"):
        for part in ("mean", "se", "low", "high"):
            assert record["cost"][figure][part] == expected[figure]["artifact"][part], (figure, part)
    assert record["bits_per_weight"] == found.bits_per_weight and record["cost"]["tokens"] == 8 * 127
    assert record["job"]["verify"] == windows.sha256 and record["job"]["commit"] == checkpoint.pulled.commit


def test_parts_of_the_text_are_in_the_results_and_in_the_table(done, tmp_path):
    folder, _ = done
    results, parts = tables(folder, keys(folder))
    assert results.column_names == list(COLUMNS) and parts.column_names == list(SUBSET_COLUMNS)
    assert len(results) == 6 and len(parts) == 12 and set(parts["subset"].to_pylist()) == {"Github", "ArXiv"}
    one = results.slice(1, 1).to_pylist()[0]
    assert one["quantization"] == "int2 group 32 rtn" and one["head_method"] == "gptq" and one["revision"] == "step500"
    assert one["calibration"] is None and one["expected_cost"] is None and one["step"] == 500
    assert one["training_tokens"] == 500 * 4096 and one["clusters"] == 16 and one["clustered_by"] == "document"
    assert one["delta_nll"] == pytest.approx(one["nll_quantized"] - one["nll_original"])
    tokens = {p["subset"]: p["tokens"] for p in parts.to_pylist() if p["key"] == one["key"]}
    assert 0.55 < sum(tokens.values()) / one["tokens"] < 0.75, "two documents of three name their part"
    written = write(tmp_path, results, parts)
    assert [p.name for p in written] == ["results.parquet", "results.csv", "subsets.parquet", "subsets.csv"]
    assert read(tmp_path / "results.parquet").equals(results)
    assert parquet.read_table(tmp_path / "subsets.parquet").to_pylist() == parts.to_pylist()
    assert (tmp_path / "results.csv").read_text().count("\n") == 7
    write(tmp_path, results, parts.slice(0, 0))
    assert not list(tmp_path.glob("subsets*")), "those of a text that the sweep had before"


def test_twice_does_nothing_twice(done, file, monkeypatch):
    folder, _ = done
    before = {p: p.stat().st_mtime_ns for kind in ("jobs", "results", "texts") for p in only(folder, kind)}
    monkeypatch.setattr(working, "Shared", stop)
    again = run(file, folder)
    assert (again.jobs, again.done, again.did, again.failed) == (6, 6, 0, 0)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_what_is_added_to_a_sweep_is_all_that_is_done(template, tmp_path):
    folder = Folder(tmp_path / "out")
    assert run(sweep(template, RTN | {"bits": 8}, "0"), folder).did == 1
    first = content(*records(folder).values())
    wider = run(sweep(template, RTN | {"bits": [2, 8]}), folder)
    assert (wider.jobs, wider.did) == (4, 3) and first in [content(r) for r in records(folder).values()]
    narrower = run(sweep(template, RTN | {"bits": 2}), folder)
    assert (narrower.jobs, narrower.done, narrower.did) == (2, 2, 0), "what is no more of it is not counted"


def test_neither_order_nor_company_makes_a_difference_to_a_bit(template, tmp_path):
    """Four of the five share the original's Hessians, of different bits, damp, clip and fisher."""
    others = {"clip": False, "damp": 0.05, "fisher": False}
    quantize = [{"group_size": 32, "fisher": False}, ORIGINAL | {"bits": [4, 2]}, ORIGINAL | {"bits": 3} | others,
                ORIGINAL | {"act_order": False, "symmetric": False}]  # fmt: skip
    file = sweep(template, quantize, "0", texts=text(samples=4, tokens=256, length=64))
    together = Folder(tmp_path / "together")
    assert run(file, together).done == 5
    found = records(together)
    one, *_ = prepare(file, together).tasks
    for name, calls in {"alone": [[key] for key in found], "backwards": [list(found)[::-1]]}.items():
        folder = Folder(tmp_path / name)
        folder.put_jobs(one.jobs)
        for saved in only(together, "texts"):
            (folder.root / "texts").mkdir(exist_ok=True)
            shutil.copy(saved, folder.root / "texts")
        for some in calls:
            assert set(work(folder.root, one.key, some, cores=1).values()) == {0}
        for key, record in found.items():
            assert content(folder.result(key).to_json()) == content(record), (name, folder.job(key).title)


# What fails.


def test_a_job_without_a_solution_fails_alone_and_is_not_tried_again_unless_told(tmp_path, template, monkeypatch):
    """Of 64 tokens a Hessian of 128 columns has half its eigenvalues zero: undamped, it is not positive definite."""
    quantize = [
        ORIGINAL | {"fisher": False, "bits": [4, 2]},
        ORIGINAL | {"fisher": False, "damp": 1e-30, "max_damp": 1e-30},
    ]
    file = sweep(template, quantize, "0", texts=text(samples=1, length=64))
    folder = Folder(tmp_path / "out")
    outcome = run(file, folder)
    assert (outcome.done, outcome.failed) == (2, 1)
    (failed,) = status(folder).failures
    assert failed.exit_code == 5 and "damp 1e-30" in failed.title and "positive definite" in failed.message
    (log,) = (p for p in only(folder, "logs") if p.suffix == ".log")
    assert log.read_text().count("attempt 1: ") == 1 and "Traceback" in log.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(working, "Shared", stop)
        assert run(file, folder).failed == 1
    again = run(file, folder, again=True)
    assert (again.did, again.failed) == (0, 1) and log.read_text().count("attempt 1: 1 jobs") == 1


def test_one_that_fails_after_others_of_its_batch_are_done_fails_alone(tmp_path, template, monkeypatch):
    file = sweep(template, ORIGINAL | {"fisher": False, "bits": [8, 4, 3, 2]}, "0")
    score, scored = Shared._score, []

    def fail(self, original, stored, windows):
        scored.append(1)
        assert len(scored) < 20, "the same again and again"
        figures = score(self, original, stored, windows)
        if figures.kld.mean > 0.001 and not hasattr(fail, "which"):
            fail.which = figures.kld.mean
        if figures.kld.mean == getattr(fail, "which", None):
            raise NumericsError("a NaN")
        return figures

    monkeypatch.setattr(Shared, "_score", fail)
    outcome = run(file, Folder(tmp_path / "out"))
    assert (outcome.done, outcome.failed) == (3, 1) and len(scored) == 5, "only the failed one was tried twice"


def test_a_checkpoint_with_a_nan_fails_and_the_rest_goes_on(tmp_path):
    template = checkpoints(tmp_path / "run", "step0", "step1")
    weights = tmp_path / "run" / "step0" / "model.safetensors"
    tensors = load_file(weights)
    tensors["gpt_neox.layers.0.attention.dense.weight"][3, 5] = float("nan")
    save_file(tensors, weights)
    folder = Folder(tmp_path / "out")
    outcome = run(sweep(template, RTN | {"bits": [8, 4]}), folder)
    assert (outcome.done, outcome.failed) == (2, 2)
    failures = status(folder).failures
    assert {f.exit_code for f in failures} == {5} and all("step0" in f.title for f in failures)
    done = invoke("run", toml(tmp_path / "sweep.toml", sweep(template, RTN | {"bits": [8, 4]})), "--engine", "inline",
                  "--out", folder.root)  # fmt: skip
    assert done.exit_code == 11 and "2 of 4 jobs done, 0 of them now" in done.stdout and "2 failed" in done.stdout


def test_a_checkpoint_that_changed_since_it_was_pinned_is_not_taken_for_it(tmp_path):
    template = checkpoints(tmp_path / "run", "step0")
    file, folder = sweep(template, RTN | {"bits": [8, 4]}), Folder(tmp_path / "out")
    with folder.held():
        prepared = prepare(file, folder)
    folder.put_jobs(prepared.jobs)
    checkpoints(tmp_path / "run", "step0", seed=9)
    codes = work(folder.root, prepared.tasks[0].key, [job.key for job in prepared.jobs], cores=1)
    assert set(codes.values()) == {3} and folder.done() == set()
    assert "the sweep was pinned to" in status(folder).failures[0].message
    after = run(file, folder)
    assert (after.done, after.did) == (2, 2) and folder.done().isdisjoint(codes), "pinned anew they are other jobs"


def ran_out(monkeypatch, errors) -> list[float]:
    """`measure` raises these, one a call, and then does its work; the memory that tasks were ordered with."""
    measure, submit, ordered = Shared.measure, Inline.submit, []

    def fail(self, jobs):
        if errors:
            raise errors.pop(0)
        yield from measure(self, jobs)

    def heard(self, orders):
        ordered.extend(order.memory_gb for order in orders)
        submit(self, orders)

    monkeypatch.setattr(Shared, "measure", fail)
    monkeypatch.setattr(Inline, "submit", heard)
    return ordered


def test_a_task_that_is_short_of_memory_is_ordered_again_with_twice_as_much(tmp_path, template, monkeypatch):
    words = "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ordered = ran_out(monkeypatch, [MemoryError(), RuntimeError(words)])
    folder = Folder(tmp_path / "out")
    outcome = run(sweep(template, RTN | {"bits": [8, 2]}, "0"), folder)
    assert ordered == [1.0, 2.0, 4.0] and (outcome.done, outcome.failed) == (2, 0)
    assert [r["attempt"] for r in records(folder).values()] == [3, 3] and folder.failed() == set()


def test_memory_that_is_never_enough_is_given_up_with_a_clear_record(tmp_path, template, monkeypatch):
    ordered = ran_out(monkeypatch, [MemoryError("16 GiB")] * 2)
    folder, file = Folder(tmp_path / "out"), sweep(template, RTN | {"bits": [8, 2]}, "0", attempts=2)
    outcome = run(file, folder)
    assert ordered == [1.0, 2.0] and (outcome.done, outcome.failed) == (0, 2)
    first, second = sorted(status(folder).failures, key=lambda failed: "at last" in failed.message)
    assert (first.exit_code, first.attempt) == (7, 2) and "not enough memory: 16 GiB" in first.message
    assert (second.exit_code, second.attempt) == (7, 2)
    assert "at last with 2.0 GB (2 attempts)" in second.message and "resources.memory_gb" in second.hint
    assert run(file, folder).did == 2, "tried again by the next run"


def test_another_error_is_a_fault_of_the_program_that_names_itself(tmp_path, template, monkeypatch):
    ran_out(monkeypatch, [ZeroDivisionError("division by zero")])
    folder = Folder(tmp_path / "out")
    assert run(sweep(template, RTN | {"bits": [8, 2]}, "0"), folder).failed == 1
    (failed,) = status(folder).failures
    assert failed.exit_code == 1 and failed.message == "ZeroDivisionError: division by zero"


def test_a_task_that_is_killed_is_tried_again_and_given_up_after_its_attempts(tmp_path, template):
    file = sweep(template, RTN | {"bits": [8, 2]}, "0", attempts=2)
    folder, over, killed = Folder(tmp_path / "out"), threading.Event(), []

    def kill() -> None:
        while not over.wait(0.002):
            for mark in folder.running().values():
                if mark.pid not in killed:
                    killed.append(mark.pid)
                    os.kill(mark.pid, signal.SIGKILL)

    watcher = threading.Thread(target=kill)
    watcher.start()
    try:
        outcome = run(file, folder, engine="local")
    finally:
        over.set()
        watcher.join()
    assert (outcome.done, outcome.failed) == (0, 2) and len(killed) == 2
    for failed in status(folder).failures:
        assert failed.exit_code == 6 and failed.attempt == 2 and "sweep logs" in failed.hint
        assert "its process was ended from outside (2 attempts)" in failed.message
    assert status(folder).models[0].running == 0 and len(folder.output_of(prepare(file, folder).tasks[0].key)) == 4
    assert run(file, folder).did == 2, "the next run tries it again"


# What is damaged, foreign, or in the way.


def full(monkeypatch, *where: str) -> None:
    """A disk that takes half of what is written to paths with these words, and no more."""
    for name in ("write_bytes", "write_text"):
        plain = getattr(Path, name)

        def write(self, data, *args, plain=plain, **kwargs):
            if not any(f"/{words}" in str(self) for words in where):
                return plain(self, data, *args, **kwargs)
            plain(self, data[: len(data) // 2], *args, **kwargs)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, name, write)


@pytest.mark.parametrize("where", ["results/", "jobs/", "texts/", "running/", ".sweep.json"])
def test_a_full_disk_is_7_and_leaves_nothing_half_written(tmp_path, tiny, monkeypatch, where):
    out, path = tmp_path / "out", toml(tmp_path / "sweep.toml", tiny)
    with monkeypatch.context() as patch:
        full(patch, where, "failures/")
        done = invoke("run", path, "--out", out, "--engine", "inline")
    assert done.exit_code == 7 and "No space left" in done.stderr and "Traceback" not in done.stderr
    left = [p for p in out.rglob("*") if p.is_file() and p.parent.name != "running"]
    assert not [p for p in left if p.suffix not in (".json", ".npz", ".log")], left
    for p in left:
        if p.suffix == ".json":
            json.loads(p.read_text())
    done = invoke("run", path, "--out", out, "--engine", "inline")
    assert done.exit_code == 0 and "4 of 4 jobs done" in done.stdout


def test_a_full_temporary_directory_is_short_of_disk_not_a_fault(tmp_path, template, monkeypatch):
    ran_out(monkeypatch, [OSError(errno.ENOSPC, "No space left on device")] * 3)
    folder = Folder(tmp_path / "out")
    assert run(sweep(template, RTN, "0"), folder).failed == 1
    (failed,) = status(folder).failures
    assert failed.exit_code == 7 and "no space left" in failed.message and "TMPDIR" in failed.hint


def test_a_job_file_torn_in_half_fails_alone_and_is_written_again(tmp_path, tiny):
    folder = Folder(tmp_path / "out")
    with folder.held():
        prepared = prepare(tiny, folder)
    folder.put_jobs(prepared.jobs)
    first, second = (job.key for job in prepared.tasks[0].jobs)
    torn = folder.root / "jobs" / first[:2] / f"{first}.json"
    torn.write_text(torn.read_text()[:100])
    assert work(folder.root, prepared.tasks[0].key, [first, second], cores=1) == {first: 4, second: 0}
    (failed,) = status(folder).failures
    assert failed.exit_code == 4 and "not JSON" in failed.message and failed.key == first
    logs = invoke("logs", folder.root, first)
    assert logs.exit_code == 4 and "sweep run" in logs.stderr
    assert run(tiny, folder).did == 3 and invoke("logs", folder.root, first).exit_code == 0


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda r: json.dumps(r)[:300], "not JSON"),
        (lambda r: json.dumps(r | {"schema": 2}), "schema 2"),
        (lambda r: json.dumps({"schema": 1}), "no `key`"), (lambda r: "[]", "an object was expected"),
        (lambda r: json.dumps(r | {"cost": {}}), "no `cost.tokens`"),
    ],
    ids=["torn", "schema", "empty", "list", "no cost"],
)  # fmt: skip
def test_a_result_that_is_none_is_named_and_made_again_once_deleted(tmp_path, tiny, damage, said):
    folder = Folder(tmp_path / "out")
    run(tiny, folder)
    path = only(folder, "results")[2]
    path.write_text(damage(json.loads(path.read_text())))
    done = invoke("results", folder.root)
    assert done.exit_code == 4 and path.stem in done.stderr and said in done.stderr and "Traceback" not in done.stderr
    assert not list(folder.root.glob("results.*"))
    path.unlink()
    assert run(tiny, folder).did == 1 and invoke("results", folder.root).exit_code == 0


@pytest.mark.parametrize("damage", ["half", "flipped", "other", "empty"])
def test_a_damaged_text_is_refused_and_written_again(tmp_path, tiny, damage):
    folder = Folder(tmp_path / "out")
    run(tiny, folder)
    (path,) = only(folder, "texts")
    whole = path.read_bytes()
    if damage == "other":
        with np.load(path) as saved:
            np.savez(path, ids=saved["ids"] + 1, documents=saved["documents"], facts=saved["facts"])
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
        path.write_bytes({"half": whole[:middle], "flipped": flipped, "empty": b""}[damage])
    with pytest.raises(IntegrityError, match=path.stem[:16]):
        folder.text(path.stem)
    only(folder, "results")[0].unlink()
    assert run(tiny, folder).did == 1 and folder.text(path.stem).ids.shape == (8, 128)


def test_what_a_run_tells_of_itself_later_is_in_the_table_and_measures_nothing_again(tmp_path):
    folder, template = Folder(tmp_path / "out"), checkpoints(tmp_path / "run", "step500")
    file = sweep(template, RTN)
    run(file, folder)
    assert tables(folder, keys(folder))[0]["training_tokens"].to_pylist() == [None]
    (tmp_path / "run" / "step500" / "training.json").write_text('{"tokens": 4096, "learning_rate": 0.003, "seed": 7}')
    assert run(file, folder).did == 0
    (one,) = tables(folder, keys(folder))[0].to_pylist()
    assert (one["training_tokens"], one["learning_rate"], one["seed"]) == (4096, 0.003, 7) and one["step"] == 500
    manifest = json.loads((folder.root / "sweep.json").read_text())
    del manifest["snapshots"][0]["facts"]  # as an earlier version wrote it
    (folder.root / "sweep.json").write_text(json.dumps(manifest))
    assert tables(folder, keys(folder))[0]["training_tokens"].to_pylist() == [None]


def test_results_from_before_a_key_of_quantize_have_its_default(tmp_path, done):
    results, _ = tables(done[0], keys(done[0]))
    parquet.write_table(results.drop_columns(["max_damp", "beam"]), tmp_path / "results.parquet")
    found = read(tmp_path / "results.parquet")
    assert found["beam"].to_pylist() == 6 * [16] and found["max_damp"].to_pylist() == 6 * [0.1]
    assert set(found.column_names) == set(COLUMNS)


def test_results_of_another_schema_are_refused(tmp_path, done):
    results, _ = tables(done[0], keys(done[0]))
    for said, table in {
        "its schema is 2": results.replace_schema_metadata({MARK: b"2"}),
        "its schema is none": results.replace_schema_metadata({}),
        "columns kld, when are missing": results.drop_columns(["kld", "when"]),
    }.items():
        parquet.write_table(table, tmp_path / "results.parquet")
        with pytest.raises(IntegrityError, match=said):
            read(tmp_path / "results.parquet")
    (tmp_path / "results.parquet").write_bytes(b"PAR1 and more")
    with pytest.raises(IntegrityError, match="not a Parquet file"):
        read(tmp_path / "results.parquet")


@pytest.mark.parametrize(
    ("content", "said"), [("{", "not JSON"), ("[]", "an object"), ('{"schema": 2}', "schema 2")]
)  # fmt: skip
def test_a_manifest_that_is_none_is_named_and_written_again(tmp_path, tiny, content, said):
    folder, path = Folder(tmp_path / "out"), toml(tmp_path / "sweep.toml", tiny)
    run(tiny, folder)
    (folder.root / MANIFEST).write_text(content)
    for args in (("status", folder.root), ("results", folder.root), ("plan", path, "--out", folder.root)):
        done = invoke(*args)
        assert done.exit_code == 4 and said in done.stderr and "Traceback" not in done.stderr, args
    again = run(tiny, folder)
    assert (again.done, again.did) == (4, 0) and invoke("status", folder.root).exit_code == 0


def test_two_runs_in_one_directory_are_refused(tmp_path, tiny):
    folder, path = Folder(tmp_path / "out"), toml(tmp_path / "sweep.toml", tiny)
    with folder.held():
        done = invoke("run", path, "--out", folder.root, "--engine", "inline")
        assert done.exit_code == 8 and "another `sweep run` works in this directory" in done.stderr
    assert run(tiny, folder).did == 4


def test_a_directory_of_something_else_is_refused_and_one_that_was_begun_is_taken(tmp_path, tiny):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("all of it")
    with pytest.raises(OutputError, match="holds other things"):
        run(tiny, Folder(tmp_path / "other"))
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["thesis.tex"]
    (tmp_path / "begun" / "texts").mkdir(parents=True)  # stopped, or refused, before the manifest was written
    assert run(tiny, Folder(tmp_path / "begun")).did == 4
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be used as a directory"):
        run(tiny, Folder(tmp_path / "file"))


def test_a_text_that_is_too_short_can_be_mended_in_the_same_directory(tmp_path, template):
    short = {"source": "file", "path": str(tmp_path / "short.txt"), "sequence_length": 128}
    (tmp_path / "short.txt").write_text("too short")
    quantize = {"group_size": 32, "error_correction": False, "fisher": False}
    file = sweep(template, quantize, "0", texts=text() | {"verify": short})
    path = toml(tmp_path / "sweep.toml", file)
    done = invoke("run", path, "--out", tmp_path / "out", "--engine", "inline")
    assert done.exit_code == 3 and "tokens in 1 documents" in done.stderr
    assert run(sweep(template, quantize, "0"), Folder(tmp_path / "out")).did == 1


def test_a_task_of_this_machine_is_at_work_only_if_its_process_is_there_and_gave_a_sign_of_life(tmp_path):
    folder = Folder(tmp_path)
    with ExitStack() as stack:
        stack.enter_context(folder.working("task", 3, 1))
        assert folder.running()["task"].jobs == 3
        mark = tmp_path / "running" / "task.json"
        facts = json.loads(mark.read_text())
        long_ago = time.time() - SILENT_SECONDS - 5
        os.utime(mark, (long_ago, long_ago))
        assert folder.running() == {}, "another process may have its number since"
        os.utime(mark)
        for changed, there in (({"pid": 2**22 + 1}, False), ({"pid": 2**22 + 1, "host": "another"}, True)):
            mark.write_text(json.dumps(facts | changed))
            assert bool(folder.running()) == there
        mark.write_text("{")
        assert folder.running() == {}
    assert folder.running() == {} and not mark.exists()


def test_jobs_of_a_killed_driver_are_waited_for_not_done_twice(tmp_path, tiny, monkeypatch):
    """Its workers go on: one that is still at work has its jobs left to it, and what it leaves is done after."""
    folder, submit, ordered = Folder(tmp_path / "out"), Inline.submit, []
    with folder.held():
        task, another = prepare(tiny, folder).tasks
    first, second = (job.key for job in task.jobs)

    def heard(self, orders):
        ordered.extend((order.task, order.keys) for order in orders)
        submit(self, orders)

    def other() -> None:
        while len(folder.done()) < 2:
            time.sleep(0.01)
        assert ordered == [(another.key, tuple(job.key for job in another.jobs))]
        work(folder.root, "other", [first], cores=1)
        mark.close()

    monkeypatch.setattr(Inline, "submit", heard)
    mark = ExitStack()
    mark.enter_context(folder.working(task.key, jobs=2, attempt=1))
    worker = threading.Thread(target=other)
    worker.start()
    outcome = run(tiny, folder)
    worker.join()
    assert outcome.done == 4 and ordered[1:] == [(task.key, (second,))]


def test_models_whose_text_is_not_the_same_tokens_are_two_sweeps(tmp_path):
    checkpoints(tmp_path / "a", "step0")
    checkpoints(tmp_path / "b", "step0")
    path = tmp_path / "b" / "step0" / "tokenizer.json"
    settings = json.loads(path.read_text())
    vocabulary = settings["model"]["vocab"]
    words = list(vocabulary)[-2:]
    vocabulary[words[0]], vocabulary[words[1]] = vocabulary[words[1]], vocabulary[words[0]]
    path.write_text(json.dumps(settings))
    models = [{"name": name, "path": str(tmp_path / name / "{revision}")} for name in "ab"]
    done = invoke(
        "run", toml(tmp_path / "sweep.toml", sweep(models, RTN)), "--out", tmp_path / "out", "--engine", "inline"
    )
    assert done.exit_code == 3 and "b has another tokenizer than a" in done.stderr


def test_a_sweep_that_looks_inside_has_its_figures_and_another_key(template, tmp_path):
    """Jobs of before keep their keys: what they measured is not measured again."""
    plain = sweep(template, RTN | {"bits": 8})
    texts = text()
    save_autoencoder(tmp_path / "sae", "blocks.0.hook_resid_post", CONFIG.hidden_size, 64)
    texts["verify"] |= {"inside": True, "sae": str(tmp_path / "sae")}
    file = sweep(template, RTN | {"bits": [8, 2]}, texts=texts)
    folder = Folder(tmp_path / "inside")
    assert run(file, folder).did == 4
    changed = Folder(tmp_path / "changed")
    with changed.held():
        prepared = prepare(file, changed)
    changed.put_jobs(prepared.jobs)
    task = prepared.tasks[0]
    assert {job.key for job in task.jobs} < set(keys(folder))
    save_autoencoder(tmp_path / "sae", "blocks.0.hook_resid_post", CONFIG.hidden_size, 64, seed=1)
    assert set(work(changed.root, task.key, [job.key for job in task.jobs], cores=1).values()) == {3}
    with changed.held():
        again = {job.key for job in prepare(file, changed).jobs}
    assert len(again) == 4 and not again & set(keys(folder)), "other autoencoders are other jobs"
    results, subsets = tables(folder, keys(folder))
    rows = results.to_pylist()
    for row in rows:
        assert 0 < row["stream_error_low"] < row["stream_error"] < row["stream_error_high"]
        assert row["pattern_js"] > 0 and 0 < row["induction"] < 1 and row["lens_same_top"] <= 1
        assert 0 < row["feature_survival_low"] < row["feature_survival"] < 1
        assert row["unexplained"] > 0 and row["unexplained_original"] > 0
    by_bits = {bits: [r["stream_error"] for r in rows if r["bits"] == bits] for bits in (8, 2)}
    assert max(by_bits[8]) < min(by_bits[2])
    survive = {bits: [r["feature_survival"] for r in rows if r["bits"] == bits] for bits in (8, 2)}
    assert min(survive[8]) > max(survive[2])
    before = Folder(tmp_path / "before")
    assert run(plain, before).did == 2
    assert not set(keys(before)) & set(keys(folder))
    for key in keys(before):
        assert "inside" not in before.job(key).to_json()
    assert all(row["stream_error"] is None for row in tables(before, keys(before))[0].to_pylist())
    older = results.drop_columns(["stream_error", "induction", "unexplained"])  # of a version that had none
    write(folder.root, older, subsets)
    assert read(folder.root / "results.parquet")["induction"].null_count == 4
