"""sweep.toml: what its short forms stand for, what is left out and told, and what is wrong with one."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from autoencoders import save_autoencoder
from hypothesis import given, settings
from hypothesis import strategies as st
from models import small_config
from places import ROOT
from typer.testing import CliRunner

from pythia_export import cli
from pythia_export.base.errors import IntegrityError, RecipeError, SourceError
from pythia_export.cli.tables import steps_shortened
from pythia_export.model import suite
from pythia_export.model.neox import HEAD, LINEARS
from pythia_export.recipe import Model, Quantize
from pythia_export.sweep.jobs import Job, label
from pythia_export.sweep.plan import plan
from pythia_export.sweep.prepare import facts_of
from pythia_export.sweep.records import Facts
from pythia_export.sweep.schema import load, parse
from pythia_export.sweep.snapshots import snapshots

FACTS = ROOT.parent / "shared" / "data" / "pythia" / "catalog.json"

TEXTS = """
[calibration]
source = "python-stdlib"
[verify]
source = "python-stdlib"
"""


def read(tmp_path: Path, text: str, texts: str = TEXTS):
    path = tmp_path / "sweep.toml"
    path.write_text(text + texts)
    return load(path)


def of(models, revisions="main", **quantize):
    """A sweep of the hub's."""
    raw = {"sweep": {"models": models, "revisions": revisions}, "quantize": quantize}
    return parse(raw | {"calibration": {"source": "python-stdlib"}, "verify": {"source": "python-stdlib"}}, Path())


def named(models, revisions="main"):
    found, left_out = snapshots(of(models, revisions).sweep)
    return [(s.name.removeprefix("pythia-"), s.revision) for s in found], left_out


# What is short for what.


def test_seeds_in_two_dots_are_as_many_models():
    found, _ = named(["160m-seed1..9", "70m"])
    assert found == [*((f"160m-seed{i}", "main") for i in range(1, 10)), ("70m", "main")]
    assert [s.seed for s in snapshots(of(["160m-seed8..9", "160m-data-seed2", "70m"]).sweep)[0]] == [8, 9, 2, None]


def test_all_revisions_of_a_model_are_154_in_the_order_of_training():
    found, left_out = named(["160m"], "all")
    steps = [int(revision.removeprefix("step")) for _, revision in found]
    assert len(found) == 154 and steps == sorted(steps) and left_out == []


def test_terms_may_overlap_and_come_in_any_order():
    short = named(["160m"], "main, 1000:143000:1000, pow2, step512, 3000")
    assert short[0] == named(["160m"], "all")[0], "main is step143000"
    assert [(x.revisions, x.why) for x in short[1]] == [(("main",), "it is step143000")]
    assert named(["160m"], ["pow2", "1000:143000:1000"])[0] == short[0], "a list is its terms"
    assert named(["160m"], "step1000:step3000")[0] == [("160m", f"step{i}") for i in (1000, 2000, 3000)]
    assert named(["160m"], "0:512:256")[0] == [("160m", f"step{i}") for i in (0, 256, 512)]


def test_main_stays_where_the_last_step_is_not_asked_for():
    assert named(["160m"], "142000,main") == ([("160m", "step142000"), ("160m", "main")], [])


def test_what_a_set_or_a_range_names_and_a_model_lacks_is_left_out_and_told():
    found, (lacking,) = named(["160m-v0"], "pow2,1000:2000,main")
    assert found == [("160m-v0", "step1000"), ("160m-v0", "step2000"), ("160m-v0", "main")]
    assert lacking.why == "the model has no such step" and len(lacking.revisions) == 11
    found, (lacking,) = named(["160m"], "500:2500:500,0:2500:500")
    assert found == [("160m", f"step{i}") for i in (0, 1000, 2000)]
    assert lacking.revisions == ("step500", "step1500", "step2500"), "each once"


def test_known_bad_revisions_are_left_out_with_their_reason():
    found, left_out = named(["2.8b"], "all,main")
    bad = [r for r in suite.REVISIONS if suite.known_bad("EleutherAI/pythia-2.8b", r)]
    assert len(found) == 155 - len(bad) and ("2.8b", "step54000") not in found
    assert ("2.8b", "main") in found, "its step143000 is left out, so that main is no duplicate"
    assert sorted(r for x in left_out for r in x.revisions) == sorted(bad)
    assert all("issue 205" in x.why for x in left_out) and len(left_out) == 2
    missing = snapshots(of(["410m-seed1..9"], "40000,88000,111000").sweep)
    assert len(missing[0]) == 24 and {x.name: x.why for x in missing[1]} == {
        f"pythia-410m-seed{i}": "has no weights (issue 202)" for i in (2, 6, 9)
    }


def test_a_model_that_is_named_twice_is_there_once_and_so_is_what_is_told_of_it():
    found, left_out = named(["160m-v0", "EleutherAI/pythia-160m-v0", "PYTHIA-160M-v0"], "pow2,1000")
    assert found == [("160m-v0", "step1000")] and len(left_out) == 1


def test_a_model_may_have_revisions_of_its_own():
    found, _ = named(["70m", {"name": "160m-seed1..2", "revisions": "0,1"}, {"name": "70m", "revisions": "2"}])
    seeds = [(f"160m-seed{i}", f"step{j}") for i in (1, 2) for j in (0, 1)]
    assert found == [("70m", "main"), *seeds, ("70m", "step2")]


def test_the_whole_suite_is_counted(tmp_path):
    """16 models of 154 steps; of 2.8b most are known to be bad, of 12b two."""
    sizes = ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
    models = [*sizes, *(f"{size}-deduped" for size in sizes[2:8])]
    planned = plan(of(models, "pow2,1000:143000:1000", bits=[2, 3, 4, 8], group_size=[-1, 128]))
    bad = sum(1 for m in ("2.8b", "12b") for r in suite.REVISIONS if suite.known_bad(f"EleutherAI/pythia-{m}", r))
    assert planned.jobs == (16 * 154 - bad) * 8 and len(planned.quantizations) == 8
    assert [len(x.revisions) for x in planned.left_out if "12b" in x.name] == [2]
    rows = {row.name: row for row in planned.rows}
    assert rows["pythia-70m"].fetch_bytes == 154 * 2 * rows["pythia-70m"].parameters
    assert rows["pythia-12b"].memory_gb > rows["pythia-6.9b"].memory_gb > rows["pythia-14m"].memory_gb > 0.5
    assert rows["pythia-12b"].hours > 10 * rows["pythia-410m"].hours


def test_autoencoders_are_part_of_the_memory_and_time_of_a_task(tmp_path):
    save_autoencoder(tmp_path / "sae", "blocks.1.hook_resid_post", 512, 2**16)

    def planned(**verify):
        raw = {"sweep": {"models": ["70m"], "revisions": "main"}, "quantize": {"method": "rtn"}}
        (row,) = plan(parse(raw | {"verify": {"source": "python-stdlib"} | verify}, tmp_path)).rows
        return row

    without, inside, features = planned(), planned(inside=True), planned(sae="sae")
    assert inside.memory_gb == without.memory_gb and features.memory_gb > inside.memory_gb + 4 * 2 * 512 * 2**16 / 1e9
    assert without.hours < inside.hours < features.hours


def test_what_a_mean_fetches_is_counted_once():
    """Eleven steps; the shorter mean is of four of them, and `main` is the last."""
    one = plan(of(["70m"], "main,mean(step133000..step143000),mean(step140000..step143000)")).rows[0]
    assert one.checkpoints == 3 and one.fetch_bytes == 11 * 2 * one.parameters


def blocks() -> list[str]:
    """Every sweep that the documentation shows."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = [block for page in pages for block in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)]
    return [block for block in found if block.startswith("[sweep]")]


@pytest.mark.parametrize("block", blocks())
def test_a_sweep_of_the_documentation_is_planned_for_people(tmp_path, block):
    (tmp_path / "sweep.toml").write_text(block)
    done = CliRunner().invoke(cli.app, ["sweep", "plan", str(tmp_path / "sweep.toml")])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "pythia-70m main: it is step143000" in done.stdout


def test_what_is_left_out_is_shortened_and_main_is_no_step():
    assert steps_shortened(("step1000", "step2000", "step3000", "step5000", "main")) == (
        "step1000 ... step3000, step5000, main: "
    )
    assert steps_shortened(("main",)) == "main: " and steps_shortened(()) == ""


# Quantisations.


def test_lists_are_dimensions_and_their_product_is_in_the_files_order(tmp_path):
    file = read(tmp_path, '[sweep]\nmodels = ["70m"]\n[quantize]\nbits = [4, 2]\nmethod = ["rtn", "gptq"]\n')
    assert [label(q) for q in file.quantize] == [
        "int4 group 128 rtn", "int4 group 128", "int2 group 128 rtn", "int2 group 128",
    ]  # fmt: skip
    assert len(read(tmp_path, '[sweep]\nmodels = ["70m"]\n').quantize) == 1, "nothing said is the default once"
    heads = read(tmp_path, '[sweep]\nmodels = ["70m"]\n[quantize]\nhead = [{ method = "none" }, { bits = 4 }]\n')
    assert [q.head.bits for q in heads.quantize] == [8, 4]


def test_several_sections_are_a_union_in_which_each_is_once(tmp_path):
    text = """
    [sweep]
    models = ["70m"]
    [[quantize]]
    bits = [2, 4, 4]
    [[quantize]]
    bits = 4
    group_size = [128, -1]
    [[quantize]]
    method = "none"
    [[quantize]]
    bits = 4
    [[quantize.override]]
    pattern = "*dense*"
    bits = 8
    """
    labels = [label(q) for q in read(tmp_path, text).quantize]
    assert labels[:4] == ["int2 group 128", "int4 group 128", "int4 row", "float"]
    assert len(labels) == 5 and labels[4].startswith("int4 group 128 override ")
    assert plan(read(tmp_path, text)).jobs == 5, "the second int4 group 128 is the first, though it is spelt otherwise"


def test_the_recipe_of_a_job_has_the_sweeps_sections(tmp_path, monkeypatch):
    texts = '[calibration]\nsource = "training-order"\nsamples = 4\n[verify]\nsource = "file"\npath = "text.jsonl"\n'
    file = read(tmp_path, '[sweep]\nmodels = ["70m", "70m-deduped"]\n', texts)
    assert file.verify.path == tmp_path / "text.jsonl", "from the file's own folder"
    monkeypatch.chdir(tmp_path)
    assert load(Path("sweep.toml")) == file, "wherever the command runs: what is done there is known by it"
    recipe = file.recipe(Model(id="70m-deduped", revision="step1000"), file.quantize[0])
    assert recipe.calibration.dataset == "EleutherAI/pile-deduped-pythia-preshuffled"
    assert recipe.model.revision == "step1000" and recipe.verify.tokens == 32768
    with pytest.raises(RecipeError, match="training-order"):
        file.recipe(Model(id="70m-v0"), file.quantize[0])


# Training runs of one's own.


def run_of_ones_own(root: Path, steps, name="step{}", inside="", **facts) -> Path:
    for step in steps:
        folder = root / name.format(step) / inside
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(small_config().to_dict()))
        if facts:
            (folder / "training.json").write_text(json.dumps({k: v for k, v in facts.items() if v is not None}))
    return root


def own(path, revisions, name="mine"):
    return snapshots(of([{"name": name, "path": str(path)}], revisions).sweep)


def test_a_run_of_ones_own_is_found_by_its_template(tmp_path):
    run_of_ones_own(tmp_path, (0, 4, 100, 20), tokens=4096000, learning_rate=3e-3, seed=7)
    run_of_ones_own(tmp_path, ("x",), name="main")
    (tmp_path / "step5").mkdir()  # a checkpoint that is not written yet
    (tmp_path / "notes.txt").write_text("")
    found, left_out = own(tmp_path / "{revision}", "all,main")
    assert [s.revision for s in found] == ["step0", "step4", "step20", "step100", "main"] and left_out == []
    first, last = found[0], found[-1]
    assert (first.step, first.tokens, first.learning_rate, first.seed) == (0, 4096000, 3e-3, 7)
    assert (first.name, first.size, first.family, first.data) == ("mine", "mine", "own", "own")
    assert (last.step, last.tokens, last.learning_rate) == (None, None, None), "nothing is known of it"
    assert first.model == Model(path=tmp_path / "step0", revision="step0")
    facts = facts_of(first)
    assert facts.parameters - facts.non_embedding_parameters == 2 * 96 * 128 and facts.training_tokens == 4096000


def test_the_template_may_have_more_around_the_revision(tmp_path):
    run_of_ones_own(tmp_path, (1, 2), name="run-step{}-hf", inside="model")
    run_of_ones_own(tmp_path, (3,), name="other-step{}-hf", inside="model")
    found, _ = own(tmp_path / "run-{revision}-hf" / "model", "all")
    assert [s.model.path for s in found] == [tmp_path / f"run-step{i}-hf" / "model" for i in (1, 2)]
    braces = run_of_ones_own(tmp_path / "a{b}", (1,))
    assert len(own(braces / "{revision}", "all")[0]) == 1


def test_what_a_run_of_ones_own_lacks_is_told_or_refused(tmp_path):
    run_of_ones_own(tmp_path, (0, 1, 2, 8))
    found, (lacking,) = own(tmp_path / "{revision}", "pow2")
    assert len(found) == 4 and "step4" in lacking.revisions and lacking.name == "mine"
    for revisions, said in (("3", "step3; the nearest are step1 and step2"), ("main", "no directory `main`")):
        with pytest.raises((RecipeError, SourceError), match=said):
            own(tmp_path / "{revision}", revisions)
    with pytest.raises(SourceError, match="no such directory"):
        own(tmp_path / "nowhere" / "{revision}", "all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"no directory there has a config\.json"):
        own(tmp_path / "empty" / "{revision}", "all")
    with pytest.raises(SourceError, match="no directory there"):
        own(tmp_path / "empty" / "{revision}", "0")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("training.json", "{", "training.json"), ("training.json", "[1]", "training.json"),
        ("training.json", '{"tokens": "many"}', "many"), ("config.json", "[]", "an object"),
        ("config.json", "{", "JSON"), ("config.json", '{"model_type": "llama"}', "llama"),
    ],
)  # fmt: skip
def test_what_lies_beside_the_weights_is_read_with_care(tmp_path, file, content, said):
    run_of_ones_own(tmp_path, (0,))
    (tmp_path / "step0" / file).write_text(content)
    with pytest.raises(SourceError, match=said):
        own(tmp_path / "{revision}", "all")


def test_two_runs_of_one_name_are_refused_not_mixed(tmp_path):
    for name in ("a", "b"):
        run_of_ones_own(tmp_path / name, (0,))
    models = [{"name": "mine", "path": str(tmp_path / name / "{revision}")} for name in ("a", "b")]
    with pytest.raises(RecipeError, match="mine at step0 is two checkpoints"):
        snapshots(of(models, "0").sweep)
    assert len(snapshots(of(models[:1] * 2, "0").sweep)[0]) == 1


# Bad input: what is said, and exit code 2.

ONE = '[sweep]\nmodels = ["160m"]\n'

BAD = {
    "unknown model": ('[sweep]\nmodels = ["160m", "165m"]\n', "165m is not in the catalogue", "Did you mean pythia-16"),
    "unknown seed": ('[sweep]\nmodels = ["160m-seed8..10"]\n', "160m-seed10 is not", "Did you mean pythia-160m-seed1"),
    "endless seeds": ('[sweep]\nmodels = ["160m-seed1..999999999"]\n', "160m-seed10 is not", "Did you mean"),
    "old name": ('[sweep]\nmodels = ["350m"]\n', "350m is not in the catalogue", "350M is what 410m was called until"),
    "another owner": ('[sweep]\nmodels = ["me/mine"]\n', "me/mine is not", "A run of your own is a table"),
    "the demo": ('[sweep]\nmodels = ["demo"]\n', "demo is not in the catalogue", "Sweeps take models of the suite"),
    "step in a name": ('[sweep]\nmodels = ["160m@step3000"]\n', "the step belongs into `sweep.revisions`"),
    "names backwards": ('[sweep]\nmodels = ["160m-seed9..1"]\n', "9 is above 1"),
    "no models": ("[sweep]\nmodels = []\n", "`sweep.models`", "at least one was expected"),
    "no sweep": ("", "`sweep` is required and missing"),
    "a word for a list": ('[sweep]\nmodels = "160m"\n', "`sweep.models`", "'160m'"),
    "unknown step": (ONE + "revisions = 'step1500'\n", "no step1500; the nearest are step1000 and step2000"),
    "past the last": (ONE + "revisions = '200000'\n", "no step200000; the nearest are step142000 and step143000"),
    "tomorrow": (ONE + "revisions = 'tomorrow'\n", "'tomorrow' is no step", "`all`, `pow2`, `1000:143000:1000`"),
    "no terms": (ONE + "revisions = ' , '\n", "`sweep.revisions` is empty: there is nothing to do"),
    "an empty list of terms": (ONE + "revisions = []\n", "`sweep.revisions` is empty"),
    "a number": (ONE + "revisions = 3000\n", "`sweep.revisions`", "string"),
    "backwards": (ONE + "revisions = '3000:1000:1000'\n", "first:last:by is meant"),
    "by nothing": (ONE + "revisions = '1000:3000:0'\n", "first:last:by is meant"),
    "between steps": (ONE + "revisions = '1100:1900:100'\n", "has none of these steps; the nearest are step512 and"),
    "a huge range": (ONE + "revisions = '200000:999999999:1'\n", "has none of these steps"),
    "all bad": ('[sweep]\nmodels = ["2.8b"]\nrevisions = "0,1000:3000"\n', "no checkpoint is left", "issue 205"),
    "all lacking": ('[sweep]\nmodels = ["160m-v0"]\nrevisions = "pow2"\n', "no checkpoint is left", "no such step"),
    "no place": ('[sweep]\nmodels = [{ name = "a", path = "runs" }]\n', "'runs' has no {revision} in it"),
    "unknown key": (ONE + "revision = 'main'\n", "unknown key `sweep.revision`; did you mean `revisions`?"),
    "unknown section": (ONE + "[quantise]\nbits = 4\n", "unknown key `quantise`; did you mean `quantize`?"),
    "unknown key of a product": (
        ONE + "[quantize]\nbit = [2, 4]\ngroup_size = [32, 64]\n", "unknown key `quantize.bit`; did you mean `bits`?",
    ),
    "unknown key of a head": (ONE + "[quantize.head]\nmethud = 1\n", "`quantize.head.methud`; did you mean `method`?"),
    "unknown key of a model": (
        '[sweep]\nmodels = [{ name = "a", paths = "{revision}" }]\n', "`sweep.models.0.paths`; did you mean `path`?",
    ),
    "empty dimension": (ONE + "[quantize]\nbits = []\n", "`quantize.bits` is an empty list: there is nothing to do"),
    "no quantisation": ("quantize = []\n" + ONE, "`quantize`", "at least one was expected"),
    "five bits": (ONE + "[quantize]\nbits = [4, 5]\n", "`quantize.bits`", "found 5"),
    "a budget": (ONE + "[quantize]\nbits_per_weight = [4.5]\n", "is not for sweeps", "quantize.override"),
    "gates": (ONE + "[verify.gates]\nppl_ratio = 1.1\n", "unknown key `verify.gates`"),
    "resources of sbatch": (ONE + "[resources.slurm]\nmem = '4G'\n", "`mem` is `resources.memory_gb` here"),
    "cores that no machine has": (ONE + "[resources]\ncores = 9999\n", "`resources.cores`", "found 9999"),
    "endless hours": (ONE + "[resources]\nhours = inf\n", "`resources.hours`: Input should be a finite number"),
    "not TOML": ("[sweep\n", "not TOML"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_2_and_says_what_is_meant(tmp_path, name):
    text, *said = BAD[name]
    path = tmp_path / "sweep.toml"
    texts = TEXTS if "[verify.gates]" not in text else '\n[verify]\nsource = "python-stdlib"\n'
    before, _, gates = text.partition("[verify.gates]")
    path.write_text(before + texts + (f"[verify.gates]{gates}" if gates else ""))
    done = CliRunner().invoke(cli.app, ["sweep", "plan", str(path)])
    assert done.exit_code == 2 and done.stdout == "" and "Traceback" not in done.stderr, done.output
    shown = " ".join(done.stderr.split())
    for words in said:
        assert words in shown, shown
    assert len(done.stderr.splitlines()) <= 4, "of a product each member has the same fault: told once"


def test_what_a_recipe_would_lack_is_told_before_anything_is_done(tmp_path):
    for text, texts, said in (
        (ONE, '[verify]\nsource = "python-stdlib"\n', "method = 'gptq' needs a [calibration] section"),
        ('[sweep]\nmodels = ["160m-v0"]\n', TEXTS.replace("python-stdlib", "training-order"), "is not on the hub"),
    ):
        path = tmp_path / "sweep.toml"
        path.write_text(text + texts)
        done = CliRunner().invoke(cli.app, ["sweep", "plan", str(path)])
        assert done.exit_code == 2 and said in " ".join(done.stderr.split())
    missing = CliRunner().invoke(cli.app, ["sweep", "plan", str(tmp_path / "other.toml")])
    assert missing.exit_code == 2 and "no such file" in missing.stderr and "docs/guides/sweeps.md" in missing.stderr


# Labels and keys.

NAMES = [HEAD, *(f"gpt_neox.layers.{i}.{linear}" for i in range(2) for linear in LINEARS)]
BITS, GROUPS, METHODS = (2, 3, 4, 8), (16, 128, -1), ("gptq", "rtn", "none")
RULES = [
    {}, {"method": "none"}, {"method": "rtn"}, {"method": "gptq"},
    {"bits": 8}, {"group_size": 16}, {"symmetric": False},
]  # fmt: skip
VALUES = {
    "method": METHODS, "bits": BITS, "group_size": GROUPS, "embedding": ("float32", "float16", "int8"),
    "damp": (0.01, 0.0100001, 0.05), "max_damp": (0.05, 0.1, 0.2), "products": (2, 4),
    "hessian": ("quantized", "original"),
    **{key: (True, False) for key, field in Quantize.model_fields.items() if field.annotation is bool},
    "head.symmetric": (True, False), "beam": (1, 4, 16),
    "head.method": METHODS, "head.bits": BITS, "head.group_size": GROUPS,
    "override": [[], *([{"pattern": pattern} | rule] for pattern in ("*dense*", HEAD) for rule in RULES)],
}  # fmt: skip


def rounding(quantize: Quantize):
    """All that makes a difference to what comes out, by the schema's own reading of it."""
    linears = [quantize.linear(name) for name in NAMES]
    found = [(method, None if method == "none" else scheme) for method, scheme in linears]
    by_hessian: tuple = ()
    if any(method == "gptq" for method, _ in linears):
        names = (key for key in Quantize.search_keys() if key != "joint_hessian")
        joint = quantize.joint_hessian and quantize.error_correction
        by_hessian = (*(getattr(quantize, name) for name in names), joint)
    return found, by_hessian, quantize.embedding, quantize.products


def built(fields: dict) -> Quantize:
    head = {name.removeprefix("head."): value for name, value in fields.items() if name.startswith("head.")}
    return Quantize(**{name: value for name, value in fields.items() if not name.startswith("head.")}, head=head)


def job(**changed) -> Job:
    inputs = {
        "model": Model(id="160m", revision="step3000"), "commit": "a" * 40, "snapshot": {"name": "pythia-160m"},
        "quantize": Quantize(), "calibration": "c" * 64, "verify": "e" * 64,
        "versions": {"pythia-export": "0.1.0", "torch": "2.13.0"},
    }  # fmt: skip
    inputs |= changed
    return Job(**inputs | {"snapshot": Facts.model_validate(inputs["snapshot"])})


def test_a_label_says_what_differs_from_the_defaults():
    """Labels are a column of results.parquet: they stay."""
    assert label(Quantize()) == "int4 group 128"
    assert label(Quantize(bits=3, three_bit_field=4)) == "int3 group 128 three bit field 4"
    off = Quantize(act_order=False, clip=False, damp=0.02, beam=1, hessian="original", error_correction=False)
    expected = "int4 group 128 no act order no clip no error correction original's hessian damp 0.02 beam 1"
    assert label(off) == expected
    assert (
        label(Quantize(method="rtn", bits=3, group_size=-1, beam=1, embedding="int8")) == "int3 row rtn embedding int8"
    )


@given(st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in VALUES.items()}))
@settings(max_examples=60, deadline=None)
def test_quantisations_that_round_differently_have_different_labels_and_keys(fields):
    """Each beside those that differ from it in one field."""
    found: dict[str, Quantize] = {}
    for changed in ({}, *({name: value} for name, values in VALUES.items() for value in values)):
        try:
            quantize = built(fields | changed)
        except ValueError:  # a ladder that falls, or the original's Hessians with correction
            continue
        other = found.setdefault(label(quantize), quantize)
        assert rounding(other) == rounding(quantize), label(quantize)
    keys = {job(quantize=quantize).key for quantize in found.values()}
    assert len(keys) == len(found)


def test_labels_read_well():
    assert label(Quantize(bits=3, group_size=-1, method="rtn")) == "int3 row rtn"
    assert label(Quantize(method="none", bits=2, fisher=False)) == "float", "nothing else matters then"
    assert label(Quantize(hessian="original", error_correction=False)) == (
        "int4 group 128 no error correction original's hessian"
    )
    assert label(Quantize(head={"bits": 4, "symmetric": False}, damp=0.05, max_damp=0.2)) == (
        "int4 group 128 damp 0.05 max damp 0.2 head int4 group 128 asymmetric"
    )


def test_the_key_depends_on_every_input_and_on_nothing_else():
    versions = job().versions
    others = [
        job(commit="b" * 40), job(calibration="d" * 64), job(calibration=None), job(verify="f" * 64),
        job(quantize=Quantize(bits=3)), job(versions=versions | {"torch": "2.14.0"}),
        job(versions=versions | {"pythia-export": "0.2.0"}), job(snapshot={"name": "pythia-70m"}),
        job(model=Model(id="160m", revision="step4000")),
    ]  # fmt: skip
    keys = {other.key for other in others}
    assert len(keys) == len(others) and job().key not in keys and len(job().key) == 16
    facts = {"name": "pythia-160m", "training_tokens": 1, "learning_rate": 0.5}
    assert job(snapshot=facts).key == job().key, "what is said of it is no input"
    assert job(model=Model(path="elsewhere", revision="step3000")).key == job().key, "where it lies neither"
    assert job(versions=dict(reversed(versions.items()))).key == job().key


def test_a_job_comes_back_from_its_file_and_only_as_what_its_name_says():
    raw = json.loads(json.dumps(job().to_json()))
    assert Job.from_json(raw, "here") == job()
    for changed, said in (
        ({"commit": "b" * 40}, "its content makes the key"), ({"schema": 2}, "schema 2; this version"),
        ({"quantize": {"bits": 5}}, "not a job"), ({"snapshot": {}}, "not a job"), ({"snapshot": None}, "not a job"),
    ):  # fmt: skip
        with pytest.raises(IntegrityError, match=said):
            Job.from_json(raw | changed, "here")
    with pytest.raises(IntegrityError, match="not a job"):
        Job.from_json({k: v for k, v in raw.items() if k != "key"}, "here")


# Of the suite: tokens and learning rates.


def test_tokens_follow_from_the_step():
    pythia = suite.named("160m")
    assert pythia.tokens("step0") == 0 and pythia.tokens("step1") == 2_097_152
    assert pythia.tokens("main") == pythia.tokens("step143000") == 299_892_736_000
    assert pythia.step("main") == 143_000 and pythia.step("step64") == 64
    assert pythia.step("a" * 40) is None and pythia.tokens("a" * 40) is None and pythia.learning_rate("v1") is None


@pytest.mark.parametrize(
    ("step", "of_the_peak"),
    [
        (0, 0.0), (1, 1 / 1430), (512, 512 / 1430), (1000, 1000 / 1430), (1430, 1.0),
        (48_620, 0.775),  # a third of the way down: 0.1 + 0.9 (1 + cos 60°) / 2
        (72_215, 0.55), (143_000, 0.1),
    ],
)  # fmt: skip
def test_learning_rates_are_those_of_the_published_schedule(step, of_the_peak):
    for name, peak in (("70m", 1e-3), ("160m-seed3", 6e-4), ("12b-deduped", 1.2e-4)):
        assert suite.named(name).learning_rate(f"step{step}") == pytest.approx(peak * of_the_peak, rel=1e-12)
    assert suite.named("70m-v0").learning_rate(f"step{step}") is None, "v0 had others"


@pytest.mark.skipif(not FACTS.is_file(), reason=f"needs {FACTS.name} of the shared data")
def test_peak_learning_rates_are_the_published_ones():
    facts = json.loads(FACTS.read_text())["models"]
    for model in suite.suite().values():
        assert model.peak_learning_rate == facts[model.size]["peak_lr"], model.id


def test_snapshots_carry_tokens_and_learning_rates():
    main, *_ = snapshots(of(["160m"]).sweep)[0]
    assert (main.step, main.tokens, main.learning_rate) == (143_000, 299_892_736_000, pytest.approx(6e-5))
    assert facts_of(main).non_embedding_parameters == suite.named("160m").non_embedding_parameters
    assert facts_of(replace(main, tokens=None)).training_tokens is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sweep]\nmodels = []\n[quantize]\nbits = 4\n", "`sweep.models`: an empty list; at least one was expected"),
        ('[sweep]\nmodels = ["70m"]\n[quantize]\nbeem = 1\n', "unknown key `quantize.beem`; did you mean `beam`?"),
        ('[sweep]\nmodels = [{ name = "m", path = "x" }]\n[quantize]\nbits = 4\n', "'x' has no {revision} in it"),
    ],
)
def test_one_fault_is_one_line(text, said, tmp_path):
    with pytest.raises(RecipeError) as raised:
        read(tmp_path, text)
    assert said in str(raised.value) and len(str(raised.value).splitlines()) == 1
