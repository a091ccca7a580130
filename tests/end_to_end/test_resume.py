"""A run that was killed goes on after its last finished layer, to the same bytes; or says why it cannot."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import demo_of
from demo_job import ENVIRONMENT, RECIPE, run
from models import InMemory, hugging_face, on_disk, small_config
from processes import script, started

from pythia_export.base.errors import IntegrityError, OutputError, SourceError
from pythia_export.calibrate import Journal, quantize_stream
from pythia_export.calibrate.journal import _seal
from pythia_export.recipe import Quantize
from pythia_export.weights.layout import layout
from pythia_export.weights.writer import WeightsWriter

LAYERS = 4


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    demo_of(LAYERS, folder / "model")
    (folder / "recipe.toml").write_text(RECIPE)
    run("quantize", folder / "recipe.toml", "--out", folder / "whole")
    return folder


def layers_done(work: Path) -> int:
    try:
        return len(json.loads((work / "journal.json").read_text())["finished"])
    except (OSError, ValueError):
        return 0


def kill_after(job: Path, out: Path, layers: int, sign: signal.Signals = signal.SIGKILL) -> None:
    kill_at(layers, out, sign, "quantize", job / "recipe.toml", "--out", out)


def kill_at(layers: int, out: Path, sign: signal.Signals, *command: object) -> None:
    process, deadline = started(*command, env=ENVIRONMENT), time.monotonic() + 120
    while layers_done(out.parent / f".{out.name}.work") < layers and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, sign)
    process.join(60)
    assert process.exitcode not in (None, 0)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_resumed_the_weights_are_the_same_bytes(job, tmp_path, sign):
    out = tmp_path / "out"
    kill_after(job, out, 1, sign)
    assert not out.exists()
    if sign == signal.SIGKILL:  # and once more, further on
        kill_at(3, out, sign, "quantize", job / "recipe.toml", "-o", out, "--resume")
    at = layers_done(tmp_path / ".out.work")
    assert at >= (3 if sign == signal.SIGKILL else 1)
    done = run("quantize", job / "recipe.toml", "--out", out, "--resume")
    assert f"Going on after {at} finished layers" in done.stderr
    assert (out / "model.onnx_data").read_bytes() == (job / "whole" / "model.onnx_data").read_bytes()

    def linears(folder):
        found = json.loads((folder / "quantization.json").read_text())
        return [{k: v for k, v in linear.items() if k != "seconds"} for linear in found["linears"]]

    assert linears(out) == linears(job / "whole")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert os.stat(out / "model.onnx_data").st_nlink == 1  # onnx refuses a file that has a second name


PUBLISHING_FAILS = """
import os, signal, sys
from pythia_export.artifact import Publisher
from pythia_export.cli import main

how, publish = sys.argv.pop(1), Publisher.publish

def fails(self, *what):
    if how != "taken":
        os.kill(os.getpid(), getattr(signal, how))
    self.out.mkdir()  # somebody else's
    publish(self, *what)

Publisher.publish = fails
main()
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "taken"])
def test_what_is_not_published_is_not_lost(how, job, tmp_path):
    out, code = tmp_path / "out", tmp_path / "fails.py"
    code.write_text(PUBLISHING_FAILS)
    done = script(code, how, "quantize", job / "recipe.toml", "--out", out, env=ENVIRONMENT)
    code.unlink()
    assert done.returncode == {"SIGKILL": -9, "SIGTERM": 143, "taken": OutputError.exit_code}[how], done
    if how == "taken":
        out.rmdir()
    again = run("quantize", job / "recipe.toml", "--out", out, "--resume")
    assert f"Going on after {LAYERS} finished layers" in again.stderr
    assert (out / "model.onnx_data").read_bytes() == (job / "whole" / "model.onnx_data").read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and os.stat(out / "model.onnx_data").st_nlink == 1


PUBLISHED_THEN_KILLED = """
import os, signal
from pythia_export.cli import main
from pythia_export.calibrate import Journal

Journal.finish = lambda self: os.kill(os.getpid(), signal.SIGKILL)
main()
"""


def test_killed_between_publishing_and_tidying_up_there_is_nothing_left_to_do(job, tmp_path):
    """Going on used to rewrite what was published, through hard links."""
    out, code = tmp_path / "out", tmp_path / "code.py"
    code.write_text(PUBLISHED_THEN_KILLED)
    shutil.copytree(job / "whole", out)
    command = ("quantize", job / "recipe.toml", "--out", out, "--overwrite")
    assert script(code, *command, env=ENVIRONMENT).returncode == -9
    code.unlink()
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in out.iterdir()}
    assert before["manifest.json"][1] != (job / "whole" / "manifest.json").read_bytes()
    other = shutil.copytree(tmp_path, tmp_path.with_name("other"))
    (tmp_path / "other.toml").write_text(RECIPE.replace("bits = 4", "bits = 3"))
    done = run(*command[:-1], "--resume")  # nothing is to be overwritten
    assert "was published before its run was interrupted" in done.stderr
    assert {path.name: (path.stat().st_ino, path.read_bytes()) for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.toml", "out"]
    run("inspect", out)
    refused = run("quantize", tmp_path / "other.toml", "--out", other / "out", "--resume", check=3)
    assert "quantize.bits: 4 then, 3 now" in refused.stderr and [p.name for p in other.iterdir()] == ["out"]


def test_weights_that_are_gone_or_cut_are_no_run_to_go_on_from(job, tmp_path):
    out = tmp_path / "out"
    kill_after(job, out, 1)
    weights = tmp_path / ".out.work" / "artifact" / "model.onnx_data"
    with weights.open("r+b") as file:
        file.truncate(1000)
    cut = run("quantize", job / "recipe.toml", "--out", out, "--resume", check=4)
    assert "model.onnx_data has 1,000 bytes; " in cut.stderr and "without --resume" in cut.stderr
    weights.rename(weights.with_name("other"))
    gone = run("quantize", job / "recipe.toml", "--out", out, "--resume", check=4)
    assert "model.onnx_data is not there; " in gone.stderr


def test_changed_inputs_are_refused_with_the_fields_that_differ(job, tmp_path):
    out = tmp_path / "out"
    kill_after(job, out, 1)
    text = (
        RECIPE.replace("bits = 4", "bits = 3")
        .replace("samples = 4", "samples = 5")
        .replace('"model"}', f'"{job}/model"}}')
    )
    (tmp_path / "recipe.toml").write_text(text)
    refused = run("quantize", tmp_path / "recipe.toml", "--out", out, "--resume", check=3)
    assert "quantize.bits: 4 then, 3 now" in refused.stderr and "calibration.sha256" in refused.stderr
    assert layers_done(tmp_path / ".out.work") >= 1  # nothing is lost by asking
    anew = run("quantize", tmp_path / "recipe.toml", "--out", out)
    assert "Starting anew" in anew.stderr
    assert json.loads((out / "quantization.json").read_text())["linears"][0]["bits"] == 3


@pytest.mark.parametrize(("dtype", "parallel"), [("float32", True), ("float16", True), ("float16", False)])
def test_a_layer_that_is_read_back_computes_what_it_computed(dtype, parallel, tmp_path):
    """In float16 norms and biases are rounded when they are stored; both runs must compute with what is stored."""
    config = replace(small_config(layers=3), parallel_residual=parallel)
    source = InMemory(config, {name: t + 1e-5 for name, t in on_disk(hugging_face(config)).items()})
    windows, quantize = np.random.default_rng(0).integers(0, 96, (16, 32)), Quantize(bits=4, group_size=32)
    places, found = layout(config, quantize, dtype), []
    for stops in ((), (2,)):
        work = tmp_path / str(len(stops))
        for stop in (*stops, 99):
            with suppress(InterruptedError), Journal(work, {}, resume=work.exists()) as journal:
                monkey = journal.commit

                def commit(layer, *rest, stop=stop, monkey=monkey):
                    monkey(layer, *rest)
                    if layer.layer + 1 == stop:
                        raise InterruptedError

                journal.commit = commit
                path = journal.weights
                with WeightsWriter(path, places, keep=bool(journal.finished)) as writer:
                    quantize_stream(source, writer, windows, journal=journal)
        found.append(path.read_bytes())
    assert found[0] == found[1]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A work directory with two of three layers done, and how to go on from one; sensitivities are measured."""
    config, folder = small_config(layers=3), tmp_path_factory.mktemp("interrupted")
    source = InMemory(config, on_disk(hugging_face(config)))
    windows, quantize = np.random.default_rng(0).integers(0, 96, (4, 32)), Quantize(bits=4, group_size=32, beam=1)
    places = layout(config, quantize, "float32")

    def go_on(work: Path, stop: int = 99, resume: bool = True) -> bytes:
        with Journal(work, {}, resume=resume) as journal, pytest.MonkeyPatch.context() as patch:
            commit = journal.commit

            def stops(layer, *rest):
                commit(layer, *rest)
                if layer.layer + 1 == stop:
                    raise InterruptedError

            patch.setattr(journal, "commit", stops)
            with WeightsWriter(journal.weights, places, keep=bool(journal.finished)) as writer:
                quantize_stream(source, writer, windows, journal=journal)
            return journal.weights.read_bytes()

    with pytest.raises(InterruptedError):
        go_on(folder / "two", stop=2, resume=False)
    shutil.copytree(folder / "two", folder / "three")
    return folder, go_on, places, go_on(folder / "three")


@pytest.fixture
def work(interrupted, tmp_path) -> Path:
    return shutil.copytree(interrupted[0] / "two", tmp_path / "work")


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("layer", [0, 1])
def test_a_flipped_byte_in_a_finished_layer_is_found_with_the_layer(interrupted, work, layer):
    _, go_on, places, _ = interrupted
    names = [name for name in places.slots if f"layers.{layer}." in name]
    for name in (names[0], names[len(names) // 2], names[-1]):
        slot, file = places.slots[name], work / "artifact" / "model.onnx_data"
        flip(file, slot.end - 1)
        with pytest.raises(IntegrityError, match=f"model.onnx_data: layer {layer} is not what was written"):
            go_on(work)
        flip(file, slot.end - 1)


def test_any_other_flipped_byte_is_written_anew(interrupted, work):
    """Between the tensors, where no layer's hash looks, and in tensors that are not done."""
    _, go_on, places, whole = interrupted
    file, covered = work / "artifact" / "model.onnx_data", np.zeros(places.nbytes, bool)
    for name, slot in places.slots.items():
        if "layers.0." in name or "layers.1." in name:
            covered[slot.offset : slot.end] = True
    for at in np.flatnonzero(~covered)[::97]:
        flip(file, int(at))
    assert go_on(work) == whole


def test_a_flipped_byte_in_the_sensitivities_is_found_with_the_layer(interrupted, work):
    file = next(work.glob("2.*residual*.npy"))
    flip(file, file.stat().st_size - 1)
    with pytest.raises(IntegrityError, match="layer 2: .*residual.npy is not what was written"):
        interrupted[1](work)
    file.unlink()
    with pytest.raises(IntegrityError, match="layer 2: .*residual.npy is not there any more"):
        interrupted[1](work)


def test_a_journal_that_claims_more_layers_than_are_done_is_found_with_the_layer(interrupted, work):
    folder, go_on, _, _ = interrupted
    journal = work / "journal.json"
    state = json.loads(journal.read_text())
    more = state["finished"] + [state["finished"][-1] | {"layer": {"layer": 2, "residual_error": 0, "seconds": 0}}]
    journal.write_text(json.dumps(state | {"finished": more}))
    with pytest.raises(IntegrityError, match="layer 2 is not what was written"):
        go_on(work)
    shutil.copyfile(folder / "three" / "journal.json", journal)  # a sound one, of bytes that are not here
    with pytest.raises(IntegrityError, match="model.onnx_data: layer 2 is not what was written"):
        go_on(work)
    assert interrupted[0].joinpath("two", "artifact", "model.onnx_data").is_file()


def test_a_number_that_changed_in_the_journal_is_found(interrupted, work):
    journal = work / "journal.json"
    state = json.loads(journal.read_text())
    state["finished"][1]["linears"][2]["loss"] *= 2
    journal.write_text(json.dumps(state))
    with pytest.raises(IntegrityError, match="what it says of layer 1 is not what was written"):
        interrupted[1](work)


def test_a_journal_of_a_version_that_said_more_of_a_linear_is_gone_on_from(interrupted, work):
    """What this version does not know is under the seal that it was given, and is not kept."""
    journal, before = work / "journal.json", ""
    state = json.loads(journal.read_text())
    for entry in state["finished"]:
        for linear in entry["linears"]:
            linear["dead_inputs"] = 3
        entry["seal"] = before = _seal(entry["layer"], entry["linears"], entry["weights"], before)
    journal.write_text(json.dumps(state))
    assert interrupted[1](work) == interrupted[3]
    finished = json.loads(journal.read_text())["finished"]
    assert len(finished) == 3 and all("dead_inputs" not in linear for x in finished for linear in x["linears"])
    with Journal(work, {}, resume=True) as read_again:
        assert [entry.layer.layer for entry in read_again.finished] == [0, 1, 2]


def test_a_journal_that_hashed_nothing_is_refused_with_the_cause(interrupted, work):
    (work / "journal.json").write_text('{"fingerprint": {}, "layers": [], "linears": [], "sensitivity": false}')
    with pytest.raises(SourceError, match="earlier version, which did not hash"):
        interrupted[1](work)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "null", '{"fingerprint": {}}', "\x00", "[" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000,
        '{"schema": 2, "fingerprint": {}, "finished": null, "sensitivity": null, "publication": null}',
        '{"schema": 2, "fingerprint": {}, "finished": [[]], "sensitivity": null, "publication": null}',
        '{"schema": 2, "fingerprint": {}, "finished": [{"layer": {}}], "sensitivity": null, "publication": null}',
        '{"schema": 2, "fingerprint": [], "finished": [], "sensitivity": null, "publication": null}',
        '{"schema": 2, "fingerprint": {}, "finished": [], "sensitivity": null, "publication": {}}',
        '{"schema": 3, "fingerprint": {}, "finished": [], "sensitivity": null, "publication": null}',
    ],
    ids=range(14),
)  # fmt: skip
def test_a_journal_that_cannot_be_read_is_refused_and_kept(text, tmp_path):
    (tmp_path / "work" / "artifact").mkdir(parents=True)
    (tmp_path / "work" / "artifact" / "data").write_text("bytes")
    (tmp_path / "work" / "journal.json").write_text(text)
    with pytest.raises(IntegrityError, match="not a journal of ours|not JSON"):
        Journal(tmp_path / "work", {}, resume=True).__enter__()
    assert (tmp_path / "work" / "artifact" / "data").exists()


def test_a_file_in_the_way_and_a_journal_without_weights_are_said(tmp_path):
    (tmp_path / "work").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        Journal(tmp_path / "work", {}).__enter__()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "journal.json").write_text("{}")
    with pytest.raises(SourceError, match="no run to go on from"):
        Journal(tmp_path / "other", {}, resume=True).__enter__()


def test_nothing_to_go_on_from_is_said(job, tmp_path):
    refused = run("quantize", job / "recipe.toml", "--out", tmp_path / "out", "--resume", check=3)
    assert "no run to go on from" in refused.stderr and "Tokenising" not in refused.stderr  # nothing was read for it
    assert list(tmp_path.iterdir()) == []


def test_one_process_at_a_time(tmp_path):
    with Journal(tmp_path / "work", {}), pytest.raises(OutputError, match="another process"):
        Journal(tmp_path / "work", {}).__enter__()


def test_a_journal_without_a_layer_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), Journal(tmp_path / "work", {}):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SourceError), Journal(tmp_path / "work", {}, resume=True):
        pass


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that takes nothing, whoever asks")
def test_a_place_that_takes_no_folder_is_told():
    with pytest.raises(OutputError, match=r"/proc/.out.work cannot be written"), Journal(Path("/proc/.out.work"), {}):
        pass
