"""A run that is killed at any step of publishing: each call that changes the file system, one after the other."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models import small_config

from pythia_export.artifact import Artifact, Publisher, publish
from pythia_export.base.errors import OutputError, SourceError
from pythia_export.base.progress import SILENT
from pythia_export.calibrate import Journal, require_begun
from pythia_export.commands import publication
from pythia_export.commands.options import Options
from pythia_export.commands.publication import finish_interrupted, work_folder
from pythia_export.commands.publication import publish as publish_journal
from pythia_export.commands.quantize import quantize as quantize_recipe
from pythia_export.commands.run import run as run_recipe
from pythia_export.commands.verify import verify as verify_artifact
from pythia_export.disk import held
from pythia_export.model.neox import layer_prefix
from pythia_export.recipe import Recipe
from pythia_export.records.manifest import Origin
from pythia_export.records.quantization import LayerRecord
from pythia_export.weights.layout import layout
from pythia_export.weights.writer import WeightsWriter

LAYERS = 2
CONFIG = small_config(layers=LAYERS, vocab=32, positions=32, ff=128)
MANIFEST = {
    "versions": {"pythia-export": "0"}, "source": {"name": "m", "revision": "main", "commit": "c"},
    "calibration": None, "layout": {"kv_cache": "shared", "kv_dtype": "float32"},
}  # fmt: skip


def recipe_of(target: str) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"id": "demo"}, "quantize": {"method": "rtn", "group_size": 32},
            "export": {"layout": target}, "verify": {"source": "python-stdlib"},
        }
    )  # fmt: skip


def run(out: Path, recipe: Recipe, fill: int, resume: bool = False) -> None:
    """What `run` does, with every tensor full of one number, and no proof."""
    if finish_interrupted(recipe, out, resume, SILENT) is not None:
        return
    places, work = layout(CONFIG, recipe.quantize, "float32"), work_folder(out)
    with Publisher(out, overwrite=True) as publisher:
        if resume:
            require_begun(work)
        with Journal(work, {"fill": fill}, resume) as journal:
            with WeightsWriter(journal.weights, places, keep=bool(journal.finished)) as writer:
                journal.check(writer, LAYERS)
                prefixes = [f"{layer_prefix(layer)}." for layer in range(LAYERS)]
                for layer, prefix in enumerate(prefixes):
                    if layer < len(journal.finished):
                        writer.kept(prefix)
                        continue
                    put(writer, places, fill, lambda name, prefix=prefix: name.startswith(prefix))
                    writer.commit()
                    journal.commit(
                        LayerRecord(layer=layer, residual_error=None, seconds=0.0), [], writer.digest(prefix), None
                    )
                put(writer, places, fill, lambda name: not name.startswith(tuple(prefixes)))
            layers = [{"layer": layer, "residual_error": None, "seconds": 0} for layer in range(LAYERS)]
            record = {"schema": 2, "method": "rtn", "bits_per_weight": 4, "linears": [], "layers": layers}
            record["seconds"] = fill
            (journal.output / "config.json").write_text(json.dumps(CONFIG.to_dict()))
            (journal.output / "quantization.json").write_text(json.dumps(record))
            (journal.output / "README.md").write_text(f"filled with {fill}")
            origin = Origin.model_validate(MANIFEST | {"recipe": recipe.model_dump(mode="json")})
            publish_journal(publisher, journal, recipe, origin)


def put(writer: WeightsWriter, places, fill: int, wanted: Callable[[str], bool]) -> None:
    for name, slot in places.slots.items():
        if wanted(name):
            writer.put(name, np.full(slot.shape, fill, slot.dtype))


def filled_with(out: Path) -> int:
    """Which of the two it is; raises where it is not whole."""
    opened = Artifact.open(out)
    opened.check()
    fill = opened.read_json("quantization.json")["seconds"]
    assert opened.file("README.md").read_text() == f"filled with {fill}"
    (weights,) = opened.folder.rglob("*.onnx_data")
    assert set(weights.read_bytes()) <= {0, *np.array([fill], "f4").tobytes(), *np.array([fill], "f2").tobytes(), fill}
    assert all(path.stat().st_nlink == 1 for path in opened.folder.rglob("*") if path.is_file())
    return fill


def killed_at(step: int, work: Callable[[], None]) -> bool:
    """Run `work` in a process that ends by SIGKILL at its `step`th change to the file system from publishing on;
    whether it came so far. Of a write, half is done."""
    child = os.fork()
    if child == 0:
        try:
            dying(step)
            work()
        finally:
            os._exit(3)  # no exception of the child's unwinds through the tests
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, status
    return False


def dying(step: int) -> None:
    done = [0]

    def counted(call):
        def counts(*args, **options):
            done[0] += 1
            if done[0] == step:
                if call is write_bytes:
                    call(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return counts

    write_bytes, arrange = Path.write_bytes, publication.arrange

    def armed(*args):
        for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync", "link"):
            setattr(os, name, counted(getattr(os, name)))
        Path.write_bytes = counted(write_bytes)
        publish.exchange = counted(publish.exchange)
        arrange(*args)

    publication.arrange = armed


def job(out: Path, recipe: Recipe, resume: bool) -> None:
    run(out, recipe, 2, resume)
    os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process that forks")
@pytest.mark.parametrize(
    ("target", "old", "exchanges"),
    [("flat", True, True), ("transformers.js", True, False), ("transformers.js", False, True)],
    ids=["flat, replacing", "two renames", "nothing there before"],
)
def test_killed_at_any_step_of_publishing_nothing_is_lost(tmp_path, monkeypatch, target, old, exchanges):
    if not exchanges:
        monkeypatch.setattr(publish, "exchange", lambda a, b: False)
    recipe, begun, seen = recipe_of(target), tmp_path / "begun", []
    begun.mkdir()
    if old:
        run(begun / "out", recipe, 1)
    assert killed_at(1, lambda: job(begun / "out", recipe, resume=False))
    for step in range(2, 200):
        folder = tmp_path / str(step)
        shutil.copytree(begun, folder)
        out = folder / "out"
        if not killed_at(step, lambda out=out: job(out, recipe, resume=True)):
            break
        after = check_each_way_on(folder, recipe, old)
        seen.append(after)
        shutil.rmtree(folder)
    assert filled_with(out) == 2 and [p.name for p in folder.iterdir()] == ["out"]
    assert seen == sorted(seen) and set(seen) == ({1, 2} if old else {0, 2})  # the old one or none, then the new one
    assert len(seen) > 15


def test_whoever_writes_is_refused_while_another_process_does(tmp_path):
    out, recipe = tmp_path / "out", recipe_of("flat")
    run(out, recipe, 1)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in out.iterdir())
    for work in (
        lambda: verify_artifact(out),
        lambda: run_recipe(recipe, out, Options(overwrite=True)),
        lambda: quantize_recipe(recipe, out, Options(overwrite=True)),
    ):
        with held(out), pytest.raises(OutputError, match=f"out: process {os.getpid()} on .* is writing there"):
            work()
    assert sorted((path.name, path.stat().st_mtime_ns) for path in out.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def check_each_way_on(folder: Path, recipe: Recipe, old: bool) -> int:
    """What a killed process left: what carries the name, and that both ways on from there lead to the new artifact."""
    out = folder / "out"
    aside = [path.name for path in folder.iterdir() if ".old-" in path.name]
    carried = filled_with(out) if out.exists() else 0
    assert carried or not old or aside  # between two renames, the old one lies beside, whole
    if aside and not carried:
        assert filled_with(folder / aside[0]) == 1
    other = folder.parent / "other"
    shutil.copytree(folder, other)
    for at, resume in ((folder, True), (other, False)):
        try:
            run(at / "out", recipe, 2, resume)
        except SourceError as e:  # the journal is gone, and all it had to say with it
            assert carried == 2 and "no run to go on from" in str(e)
            run(at / "out", recipe, 2)
        assert filled_with(at / "out") == 2
        assert [path.name for path in at.iterdir()] == ["out"]
    shutil.rmtree(other)
    return carried or (1 if old else 0)
