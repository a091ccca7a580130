"""Recipes: what ships parses, what is wrong is named with its place."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import replace

import pytest
from autoencoders import save_autoencoder
from places import ROOT

from pythia_export.base.errors import RecipeError, SourceError
from pythia_export.commands import plan as planning
from pythia_export.model.neox import HEAD
from pythia_export.model.suite import geometry, sizes
from pythia_export.recipe import Export, Override, Quantize, Recipe, load_recipe, parse_recipe, recipe_names
from pythia_export.sweep.schema import load as load_sweep

MINIMAL = {
    "model": {"id": "demo"},
    "calibration": {"source": "python-stdlib"},
    "verify": {"source": "python-stdlib"},
}


def changed(**sections) -> dict:
    return {name: MINIMAL.get(name, {}) | sections.get(name, {}) for name in {**MINIMAL, **sections}}


def test_every_size_ships_at_both_widths():
    names = recipe_names()
    assert {f"pythia-{size}-{bits}" for size in sizes() for bits in ("int4", "int8")} <= set(names)
    assert {"demo", "demo-int8"} <= set(names)


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_parses_and_never_ships_the_slow_kernel(name):
    recipe = load_recipe(name)
    assert recipe.model.id == "demo" or geometry(recipe.model.id) is not None
    assert recipe.verify.gates.ppl_ratio is not None
    if recipe.quantize.bits == 8 and recipe.export.target == "cpu":
        # 8 bits at accuracy level 0 are tens of times slower than float32 on a CPU.
        assert recipe.export.accuracy_level == 4


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"exprot": {}}, "unknown key `exprot`; did you mean `export`"),
        ({"quantize": {"override": {"pattern": "x"}}}, "`quantize.override`: an array of tables was expected"),
        ({"quantize": {"head": 3}}, "`quantize.head`: a table was expected (found 3)"),
        ({"calibration": {"subsets": "Github"}}, "`calibration.subsets`: an array was expected (found 'Github')"),
        ({"model": {"revison": "main"}}, "unknown key `model.revison`; did you mean `revision`"),
        ({"quantize": {"group": 32}}, "unknown key `quantize.group`; did you mean `group_size`"),
        ({"quantize": {"head": {"bit": 8}}}, "unknown key `quantize.head.bit`; did you mean `bits`"),
        ({"verify": {"gates": {"ppl": 1.1}}}, "unknown key `verify.gates.ppl`"),
        ({"quantize": {"override": [{"patern": "*"}]}}, "did you mean `pattern`"),
        ({"quantize": {"bits": 5}}, "`quantize.bits`"),
        ({"quantize": {"bits": "4"}}, "`quantize.bits`"),
        ({"quantize": {"group_size": 48}}, "`quantize.group_size`"),
        ({"quantize": {"damp": 0}}, "`quantize.damp`"),
        ({"quantize": {"damp": 0.5, "max_damp": 0.1}}, "max_damp"),
        ({"quantize": {"max_damp": math.nan}}, "`quantize.max_damp`: Input should be a finite number (found nan)"),
        ({"verify": {"gates": {"ppl_ratio": math.inf}}}, "gates.ppl_ratio.limit`: Input should be a finite number"),
        ({"calibration": {"memory_gb": math.inf}}, "`calibration.memory_gb`: Input should be a finite number"),
        ({"calibration": {"samples": 0}}, "`calibration.samples`"),
        ({"calibration": {"source": "hub"}}, "needs `dataset`"),
        ({"calibration": {"source": "file"}}, "needs `path`"),
        ({"calibration": {"source": "hub", "dataset": "a/b", "path": "c"}}, "either `path` or a hub data set"),
        ({"calibration": {"batches": "0:4"}}, "`batches` is for source = 'training-order', not 'python-stdlib'"),
        ({"calibration": {"source": "training-order", "path": "x", "batches": "4:4"}}, "the first must be below"),
        ({"calibration": {"source": "training-order", "path": "x", "batches": "4"}}, "`calibration.batches`"),
        ({"calibration": {"source": "training-order"}}, "the order in which demo was trained is not on the hub"),
        ({"calibration": {"source": "training-order", "path": "x", "eos": False}}, "`eos` is for source"),
        ({"calibration": {"source": "training-order", "path": "x", "eos": True}}, "`eos` is for source"),
        ({"verify": {"source": "training-order"}}, "[verify] source = 'training-order': the order in which demo"),
        ({"calibration": {"source": "hub", "dataset": "a/b", "subsets": ["wikipedia (en)"]}}, "mean 'Wikipedia (en)'?"),
        ({"calibration": {"source": "hub", "dataset": "a/b", "subsets": ["GitHub"]}}, "did you mean 'Github'?"),
        ({"model": {"id": "401m"}}, "no model called `401m`. Did you mean pythia-410m?"),
        ({"model": {"id": "410m@step500"}}, "no step500; the nearest are"),
        ({"model": {"id": "410m@step512", "revision": "step3000"}}, "`revision` another"),
        ({"model": {"path": "x"}}, "either `id` or `path`"),
        ({"export": {"dtype": "float16"}}, "target = 'cuda'"),
        ({"verify": {"gates": {"ppl_ratio": 0.9}}}, "`verify.gates.ppl_ratio.limit`: Input should be greater than 1"),
        ({"verify": {"gates": {"ppl_ratio": {"limit": 1.1, "confidence": 95}}}}, "`verify.gates.ppl_ratio.confidence`"),
        ({"verify": {"gates": {"ppl_ratio": {"limits": 1.1}}}}, "did you mean `limit`"),
        ({"verify": {"gates": {"export_max_abs": {"limit": 1.1}}}}, "`verify.gates.export_max_abs`"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(sections, said):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(changed(**sections), "my.toml")
    assert said in str(caught.value) and str(caught.value).startswith("my.toml: ")


def test_gptq_needs_calibration_text_and_rtn_does_not():
    without = {k: v for k, v in MINIMAL.items() if k != "calibration"}
    with pytest.raises(RecipeError, match=r"\[calibration\]"):
        parse_recipe(without)
    parse_recipe(without | {"quantize": {"method": "rtn"}})
    with pytest.raises(RecipeError, match=r"\[calibration\]"):
        rule = {"pattern": "*.dense", "method": "gptq"}
        parse_recipe(without | {"quantize": {"method": "rtn", "override": [rule]}})


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "no such file"), ("[model", "not TOML"), (b"\xff", "cannot be read"), ("", "`model` is required")],
)
def test_a_file_that_is_no_recipe(text, said, tmp_path):
    path = tmp_path / "r.toml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError, match=said):
        load_recipe(str(path))


def test_the_recipe_of_the_documentation_is_planned_without_a_warning(tmp_path):
    page = ROOT / "docs" / "reference" / "recipe.md"
    (block,) = re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    (tmp_path / "r.toml").write_text(block)
    assert planning.plan(load_recipe(str(tmp_path / "r.toml"))).warnings == []


def test_a_plan_misses_a_text_that_is_not_there(tmp_path):
    recipe = parse_recipe(changed(verify={"source": "file", "path": str(tmp_path / "none.jsonl")}))
    with pytest.raises(SourceError, match=r"none\.jsonl: no such text file"):
        planning.plan(recipe)


def test_a_near_miss_of_a_shipped_name_is_guessed():
    with pytest.raises(RecipeError) as caught:
        load_recipe("pythia-410-int4")
    assert "pythia-410m-int4" in caught.value.hint


def test_paths_are_taken_from_the_recipes_own_folder(tmp_path, monkeypatch):
    (tmp_path / "r.toml").write_text(
        '[model]\npath = "m"\n[calibration]\nsource = "file"\npath = "t/a.jsonl"\n[verify]\nsource = "python-stdlib"\n'
    )
    monkeypatch.chdir("/")
    recipe = load_recipe(str(tmp_path / "r.toml"))
    assert recipe.model.path == tmp_path / "m" and recipe.calibration.path == tmp_path / "t/a.jsonl"
    monkeypatch.chdir(tmp_path)  # and stay there, wherever an artifact of it is proved again
    assert load_recipe("r.toml").calibration.path == tmp_path / "t/a.jsonl"


def test_overrides_apply_in_order_and_the_head_is_apart():
    rules = (Override(pattern="*.dense", bits=8), Override(pattern="*.layers.1.*", method="rtn", group_size=64))
    quantize = Quantize(bits=4, group_size=32, override=rules)
    assert quantize.linear("gpt_neox.layers.0.mlp.dense_h_to_4h")[1].bits == 4
    method, scheme = quantize.linear("gpt_neox.layers.1.attention.dense")
    assert (method, scheme.bits, scheme.group_size) == ("rtn", 8, 64)
    assert quantize.linear(HEAD)[1].bits == 8
    assert Quantize(method="rtn").linear(HEAD)[0] == "rtn" and Quantize(method="none").linear(HEAD)[0] == "none"


def test_a_recipe_survives_its_own_json():
    for name in recipe_names():
        recipe = load_recipe(name)
        assert parse_recipe(json.loads(recipe.model_dump_json())) == recipe
    assert "group_size" in json.dumps(Recipe.model_json_schema())
    assert Export().accuracy_level in (0, 4)


def test_a_short_name_becomes_the_hubs_id_and_revision():
    model = parse_recipe(changed(model={"id": "410m-deduped@step3000"})).model
    assert (model.id, model.revision) == ("EleutherAI/pythia-410m-deduped", "step3000")
    model = parse_recipe(changed(model={"id": "pythia-70m", "revision": "512"})).model
    assert (model.id, model.revision) == ("EleutherAI/pythia-70m", "step512")
    assert parse_recipe(changed(model={"id": "demo"})).model.revision == "main"


@pytest.mark.parametrize(
    ("model", "dataset"),
    [
        ("410m@step3000", "EleutherAI/pile-standard-pythia-preshuffled"),
        ("pythia-12b-deduped", "EleutherAI/pile-deduped-pythia-preshuffled"),
        ("410m-v0", None),
        ("160m-data-seed2", None),
        ("someone/else", None),
    ],
)
def test_the_training_order_is_the_models_own_where_it_has_one(model, dataset):
    raw = changed(model={"id": model}, calibration={"source": "training-order", "batches": "0:4"})
    if dataset is None:
        with pytest.raises(RecipeError, match="name a `dataset` or a `path`"):
            parse_recipe(raw)
        raw["calibration"]["dataset"] = "own/order"
    found = parse_recipe(raw).calibration
    assert found.dataset == dataset or found.dataset == "own/order"
    assert found.samples == 4 * 1024 and found.batch_range == (0, 4)
    assert (
        parse_recipe(changed(**raw | {"calibration": raw["calibration"] | {"samples": 64}})).calibration.samples == 64
    )


def test_a_typo_in_the_model_is_told_before_its_order():
    with pytest.raises(RecipeError, match="no model called `401m`"):
        parse_recipe(changed(model={"id": "401m"}, calibration={"source": "training-order"}))


def test_documents_end_as_they_did_in_training_unless_the_recipe_says():
    hub = {"source": "hub", "dataset": "a/b"}
    for section, eos in [({"source": "python-stdlib"}, True), (hub, False), (hub | {"eos": True}, True)]:
        recipe = parse_recipe(changed(verify=section))
        assert recipe.verify.eos is eos
        assert parse_recipe(recipe.model_dump(mode="json")) == recipe, "a record holds what was done"
    assert parse_recipe(changed(verify={"source": "wikitext2"})).verify.eos is None


def test_records_that_hold_end_tokens_for_every_source_are_read():
    before = parse_recipe(changed(verify={"source": "wikitext2"})).model_dump(mode="json")
    before["verify"]["eos"] = True
    assert parse_recipe(before).verify.eos is None
    before["verify"] |= {"source": "hub", "dataset": "a/b"}
    assert parse_recipe(before).verify.eos is True


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    recipe, sweep = tmp_path / "r.toml", tmp_path / "s.toml"
    texts = '[calibration]\nsource = "python-stdlib"\n[verify]\nsource = "python-stdlib"\n'
    recipe.write_text('[model]\nid = "demo"\n' + texts, encoding="utf-8-sig")
    sweep.write_text('[sweep]\nmodels = ["70m"]\n' + texts, encoding="utf-8-sig")
    assert load_recipe(str(recipe)).model.id == "demo" and load_sweep(sweep).sweep.models[0].name == "70m"


def test_a_plan_says_how_long_it_takes_by_rates_that_were_measured():
    from pythia_export.commands.duration import Rates, duration, measured

    config, rates = geometry("EleutherAI/pythia-70m"), Rates(products=1e11, choices=1e7, threads=2)
    default = duration(config, load_recipe("70m"), rates)
    assert default.seconds == default.quantize + default.prove and default.rates == rates
    twice = duration(config, load_recipe("70m"), Rates(products=2e11, choices=2e7, threads=2))
    assert twice.seconds == pytest.approx(default.seconds / 2)
    assert duration(config, load_recipe("70m", {"quantize.beam": 1}), rates).quantize < default.quantize
    assert duration(config, load_recipe("70m", {"quantize.method": "rtn"}), rates).quantize < default.quantize / 50
    assert duration(config, load_recipe("70m", {"verify.tokens": 131072}), rates).prove > 1.5 * default.prove
    inside = duration(config, load_recipe("70m", {"verify.inside": True}), rates)
    assert 1.05 * default.prove < inside.prove < 2 * default.prove and inside.quantize == default.quantize
    assert duration(config, load_recipe("70m", {"verify.gates.pattern_js": 0.1}), rates) == inside
    wide = duration(config, load_recipe("70m", {"verify.inside": True}), rates, 512 * 32768)
    assert inside.prove < wide.prove < 1.1 * inside.prove  # 32 places of a window read it
    short = {"calibration.samples": 32}
    assert duration(config, load_recipe("70m", short), rates).quantize < default.quantize / 2
    found = measured(config, load_recipe("70m").quantize, seconds=0.01)
    assert 1e8 < found.products < 1e14 and 1e4 < found.choices < 1e12


@pytest.mark.parametrize("size", ["14m", "410m", "12b"])
def test_the_probe_of_a_plan_is_short(size):
    """In time of the processor, whatever else runs: a block of 12b alone would be ten times as much."""
    from pythia_export.commands.duration import measured

    began = time.process_time()
    measured(geometry(f"EleutherAI/pythia-{size}"), Quantize(), seconds=0.0)
    assert time.process_time() - began < 2.0


def test_survival_of_features_needs_autoencoders():
    raw = {"model": {"id": "demo"}, "quantize": {"method": "rtn"}}
    raw["verify"] = {"source": "python-stdlib", "gates": {"feature_survival": 0.9}}
    with pytest.raises(RecipeError, match=r"`gates\.feature_survival` needs `sae`"):
        parse_recipe(raw)
    raw["verify"]["sae"] = "autoencoders"
    recipe = parse_recipe(raw)
    assert recipe.verify.look_inside and not recipe.verify.inside


def test_a_plan_looks_at_autoencoders_without_reading_them(tmp_path):
    save_autoencoder(tmp_path / "sae", "blocks.1.hook_resid_post", 512, 64)
    changes = {"verify.sae": str(tmp_path / "sae")}
    planned = planning.plan(load_recipe("70m", changes))
    assert "look inside: streams, patterns, heads, 1 autoencoders" in planned.steps
    (one,) = planning.autoencoders(tmp_path / "sae", geometry("EleutherAI/pythia-70m"), 4, weights=False)
    wide = [replace(one, name=name, d_sae=2**20, layer=layer) for name, layer in (("a", 1), ("b", 1), ("c", 2))]
    recipe, config = load_recipe("70m"), geometry("EleutherAI/pythia-70m")
    both, apart = (planning.peak_memory(config, recipe, found) for found in (wide, wide[::2]))
    assert both - apart == 4 * 2 * 512 * 2**20, "encoder and decoder in float32; those of one layer are held together"
    assert apart > planning.peak_memory(config, recipe) + 2 * 2**30
    save_autoencoder(tmp_path / "sae", "blocks.1.hook_resid_post", 768, 64)
    with pytest.raises(SourceError, match="reads 768 numbers at .*; this model has 512 there"):
        planning.plan(load_recipe("70m", changes))
