"""`mean(...)` as a revision: held to a slow mean in float64, and refused where it would be of anything else."""

from __future__ import annotations

import importlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from checkpoints import configured
from models import hugging_face, on_disk, save_checkpoint, small_config
from rich.console import Console
from sweeps import RTN, checkpoints, sweep, text
from typer.testing import CliRunner

from pythia_export.base.errors import PythiaExportError, RecipeError, SourceError
from pythia_export.checkpoint import open_checkpoint, pull
from pythia_export.cli import app
from pythia_export.cli.tables import plan_view
from pythia_export.commands.plan import plan
from pythia_export.model.mean import Term, terms, written
from pythia_export.model.neox import tensors
from pythia_export.recipe import Model, load_recipe
from pythia_export.study.averages import averages
from pythia_export.sweep.folder import Folder
from pythia_export.sweep.pairs import DIFFERENCES, pairs
from pythia_export.sweep.run import run
from pythia_export.sweep.snapshots import snapshots
from pythia_export.sweep.status import keys

CONFIG = small_config(layers=1)
STEPS = ("step1", "step2", "step10", "main")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for seed, step in enumerate(STEPS):
        save_checkpoint(hugging_face(CONFIG, seed), CONFIG, root / step)
    return root


def of(root: Path, revision: str) -> Model:
    return Model(path=root / "{revision}", revision=revision)


def slow_mean(weights: dict[str, float], name: str) -> np.ndarray:
    """In float64, of the float16 that lies on disk."""
    stored = {s: on_disk(hugging_face(CONFIG, seed))[name].half().numpy() for seed, s in enumerate(STEPS)}
    return sum(w * stored[s].astype(np.float64) for s, w in weights.items()) / sum(weights.values())


@pytest.mark.parametrize(
    ("revision", "weights"),
    [
        ("mean(step1..step10)", {"step1": 1, "step2": 1, "step10": 1}),
        ("mean(2..10,main)", {"step2": 1, "step10": 1, "main": 1}),
        ("mean(step1:1, step10:3)", {"step1": 1, "step10": 3}),
    ],
)
def test_every_tensor_is_the_mean(runs, revision, weights):
    opened = open_checkpoint(pull(of(runs, revision)))
    assert opened.dtype == "float32"
    for spec in tensors(CONFIG):
        found = opened.tensor(spec.name)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), slow_mean(weights, spec.name), atol=3e-7, rtol=0)


def test_the_record_says_what_was_averaged_and_names_the_same_mean_again(runs):
    pulled = pull(of(runs, "mean(step1:1, step10:3)"))
    recorded = pulled.record.averaged
    assert [(one.revision, one.weight) for one in recorded] == [("step1", 0.25), ("step10", 0.75)]
    assert [one.commit for one in recorded] == [pull(of(runs, step)).commit for step in ("step1", "step10")]
    assert pulled.name == runs.name
    again = written([Term(one.revision, one.weight) for one in recorded])
    assert pull(of(runs, again)).commit == pulled.commit
    alike = ("mean(step1,step10)", "mean(step1:1,step2:3)", "mean(step10:1,step1:3)")
    others = {pull(of(runs, revision)).commit for revision in alike}
    assert len(others | {pulled.commit}) == 4


@pytest.mark.parametrize(
    ("revision", "said"),
    [
        ("mean(step1)", "two revisions or more"),
        ("mean(step1,step1)", "step1 is in it twice"),
        ("mean(step3..step9)", "no step in step3..step9"),
        ("mean(step10..step1)", "the first step is above the last"),
        ("mean(step1,,step2)", "nothing between two commas"),
        ("mean(step1,step2", "is not a mean"),
        ("mean(step1:0,step2)", "the weight of step1 is '0'"),
        ("mean(step1:nan,step2)", "the weight of step1 is 'nan'"),
        ("mean(step1..:3)", "is no range of steps"),
        ("mean(../step1,step2)", "is no range of steps"),
        ("mean(step1,step7)", "no such checkpoint directory"),
    ],
)
def test_what_is_no_mean_is_refused(runs, revision, said):
    with pytest.raises((PythiaExportError, ValueError), match=said.replace("(", r"\(")):
        pull(of(runs, revision))


def test_checkpoints_of_two_shapes_have_no_mean(runs, tmp_path):
    save_checkpoint(hugging_face(CONFIG, 0), CONFIG, tmp_path / "step1")
    save_checkpoint(hugging_face(CONFIG, 1), CONFIG, tmp_path / "step2")
    configured(tmp_path / "step1", layer_norm_eps=1e-3)
    with pytest.raises(SourceError, match="only checkpoints of one model have a mean"):
        open_checkpoint(pull(of(tmp_path, "mean(step1,step2)")))


def test_one_checkpoint_under_two_names_counts_once(tmp_path):
    for step in ("step1", "step2"):
        save_checkpoint(hugging_face(CONFIG, 0), CONFIG, tmp_path / step)
    with pytest.raises(SourceError, match="step2 and step1 are one checkpoint"):
        pull(of(tmp_path, "mean(step1,step2)"))


def test_a_folder_without_a_place_for_the_revision_is_refused(runs):
    with pytest.raises(ValueError, match=r"has no \{revision\} in it"):
        Model(path=runs / "step1", revision="mean(step1,step2)")


def test_of_the_suite_a_range_is_its_steps():
    assert Model(id="410m", revision="mean(133000..143000)").id == "EleutherAI/pythia-410m"
    with pytest.raises(ValueError, match="no step in step142100..step142900"):
        Model(id="410m@mean(step142100..step142900)")
    with pytest.raises(ValueError, match="has no step142500"):
        Model(id="410m@mean(step142500,step143000)")


def test_a_plan_says_what_a_mean_fetches():
    mean, last = plan(load_recipe("410m@mean(step133000..step143000)")), plan(load_recipe("410m"))
    assert mean.revisions == 11 and mean.download_bytes == 11 * last.download_bytes
    assert "11 checkpoints, averaged tensor by tensor" in mean.steps[0]
    console = Console(width=120, file=io.StringIO())
    console.print(plan_view(mean))
    assert "about 8.9 GB: 11 checkpoints of 810.7 MB, which the disk holds together" in console.file.getvalue()
    demo = plan(load_recipe("demo@mean(step500,step2000)"))
    assert (demo.revisions, demo.download_bytes) == (2, None)


def test_a_written_mean_is_read_as_the_same_terms():
    given = (Term("a" * 40, 0.1), Term("b" * 40, 0.9))
    assert terms(written(given), ()) == given
    with pytest.raises(RecipeError, match="is no revision"):
        terms("mean(-x,main)", ())


def test_a_sweep_takes_a_mean_beside_its_steps(tmp_path):
    root = tmp_path / "runs"
    paths = checkpoints(root, "step1", "step2", "main")
    file = sweep(paths, RTN | {"bits": 4}, "1,mean(step1, step2:3),main")
    members, _ = snapshots(file.sweep)
    assert [m.revision for m in members] == ["step1", "main", "mean(step1, step2:3)"]
    assert members[-1].step is None  # no point of a curve over training
    with pytest.raises(RecipeError, match=r"`sweep.revisions`: mean\(step5..step9\): there is no step"):
        snapshots(sweep(paths, RTN, "mean(step5..step9)").sweep)


def test_the_report_sets_a_mean_beside_the_last_step_document_by_document(tmp_path):
    paths = checkpoints(tmp_path / "runs", "step1", "step2", "main")
    given = text()
    (tmp_path / "verify").mkdir()
    for name in ("argparse", "optparse", "textwrap", "string"):
        source = Path(importlib.import_module(name).__file__).read_text(encoding="utf-8")
        (tmp_path / "verify" / f"{name}.txt").write_text(source[:1000], encoding="utf-8")
    given["verify"]["path"], given["calibration"]["path"] = str(tmp_path / "verify"), given["verify"]["path"]
    file, folder = sweep(paths, RTN | {"bits": 4}, "all,main,mean(step1,main)", texts=given), Folder(tmp_path / "out")
    assert run(file, folder, engine="inline").done == 4
    (row,) = pairs(folder, keys(folder)).to_pylist()
    assert (row["revision"], row["last_revision"], row["quantization"]) == (
        "mean(step1,main)",
        "main",
        "int4 group 32 rtn",
    )
    mean, last = folder.result(row["key"]).cost, folder.result(row["last_key"]).cost
    assert row["clusters"] == len(mean.sums.tokens) > 2
    assert row["delta_nll"] == pytest.approx(mean.delta_nll.mean - last.delta_nll.mean)
    assert row["nll_original"] == pytest.approx(mean.nll_original - last.nll_original)
    apart = np.subtract(mean.sums.nll_quantized, last.sums.nll_quantized) / mean.sums.tokens  # of each document
    assert apart.min() < row["nll_quantized"] < apart.max()
    assert row["nll_quantized_low"] < row["nll_quantized"] < row["nll_quantized_high"]
    alone = mean.nll_quantized - last.nll_quantized  # token for token; two intervals of their own would be far wider
    assert row["nll_quantized"] == pytest.approx(alone)
    page = CliRunner().invoke(app, ["sweep", "report", str(folder.root)])
    assert page.exit_code == 0 and parquet.read_table(folder.root / "means.parquet").to_pylist() == [row]
    html = (folder.root / "report.html").read_text()
    assert "Means of checkpoints" in html and "beside main" in html


def test_what_is_said_of_means_follows_their_intervals():
    def row(revision, low, high, **changed):
        ends = {
            f"{name}{end}": x
            for name in DIFFERENCES
            for end, x in zip(("_low", "", "_high"), (low, (low + high) / 2, high), strict=True)
        }
        return (
            {"name": "mine", "revision": revision, "last_revision": "main", "quantization": "int4 row"} | ends | changed
        )

    rows = [
        row("mean(a,b)", -0.02, -0.01),
        row("mean(a,c)", -0.02, 0.01),
        row("mean(b,c)", 0.01, 0.02, nll_original_low=-0.2, nll_original_high=-0.1),
    ]
    section = averages(pa.Table.from_pylist(rows))
    assert section.sentences[1] == (
        "At “int4 row”, clear of noise: rounding costs less for 1 of 3 means, and more for 1; once rounded, 1 predict "
        "better than the last checkpoint and 1 worse; before, 2 better and 0 worse."
    )
    assert section.table.rows[0][2] == ("−0.0150", "−0.0200 to −0.0100")
    alone = averages(pa.Table.from_pylist([row("mean(a,b)", 0, 0, last_revision=None)]))
    assert alone.table is None and alone.sentences == [
        "The sweep has no single checkpoint to set beside “mean(a,b)” of “mine”."
    ]
    assert averages(pa.Table.from_pylist(rows[:0])).sentences == []
