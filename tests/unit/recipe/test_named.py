"""A recipe file, a model's name, a folder: one argument; its keys changed; what is left out, by size."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from models import small_config

from pythia_export.base.errors import RecipeError, SourceError
from pythia_export.checkpoint import demo_folder, pull
from pythia_export.commands.plan import plan
from pythia_export.recipe import Recipe, as_toml, changes_called, load_recipe, parse_recipe, recipe_keys, recipe_names
from pythia_export.recipe.named import names_texts

SHIPPED = json.loads(Path(__file__).with_name("shipped.json").read_text())  # as 24 files had them


@pytest.mark.parametrize("name", SHIPPED)
def test_a_name_that_was_a_file_is_the_same_recipe(name):
    assert load_recipe(name).model_dump(mode="json") == parse_recipe(SHIPPED[name]).model_dump(mode="json")


def test_the_names_that_were_files_are_listed():
    assert recipe_names() == sorted(SHIPPED)


def test_a_model_is_a_recipe_at_4_bits_and_its_last_word_says_otherwise():
    assert load_recipe("410m") == load_recipe("pythia-410m-int4") == load_recipe("EleutherAI/pythia-410m")
    assert load_recipe("410m-int8") == load_recipe("pythia-410m-int8")
    of_step = load_recipe("160m-seed3-web@step512")
    assert (of_step.model.id, of_step.model.revision) == ("EleutherAI/pythia-160m-seed3", "step512")
    assert of_step.export == load_recipe("pythia-160m-web").export
    assert load_recipe("410m@3000", {"quantize.bits": 4}).model.revision == "step3000"


def test_bits_and_target_bring_what_belongs_to_them():
    assert load_recipe("410m", {"quantize.bits": 8}) == load_recipe("410m-int8")
    assert load_recipe("410m", {"export.target": "cuda"}) == load_recipe("410m-cuda")
    assert load_recipe("160m-int8", {"export.target": "web"}).quantize.bits == 8
    assert load_recipe("410m-cuda", {"export.target": "cpu"}) == load_recipe("410m")
    assert load_recipe("410m-cuda", {"quantize.bits": 8}).export.dtype == "float16"
    rounded = load_recipe("410m", {"quantize.method": "rtn"})
    assert rounded.calibration is None and rounded.verify.gates.ppl_ratio.limit == 1.18


def test_gates_follow_the_bits():
    of = {bits: load_recipe("70m", {"quantize.bits": bits}).verify.gates for bits in (2, 3, 4, 8)}
    assert of[3].ppl_ratio.limit > of[4].ppl_ratio.limit > of[8].ppl_ratio.limit
    assert of[2].ppl_ratio is None and of[2].export_max_abs == 1e-3
    assert load_recipe("70m", {"verify.tokens": 1024}).verify.gates.min_tokens == 1024


def test_a_files_gates_on_the_cost_are_those_of_its_bits(tmp_path):
    heard: list[str] = []
    file = load_recipe("demo", note=heard.append).verify.gates
    same = load_recipe("demo", {"quantize.bits": 4, "quantize.method": "rtn"}, note=heard.append).verify.gates
    assert same == file and not heard
    other = load_recipe("demo", {"quantize.bits": 3}, note=heard.append).verify.gates
    assert (other.ppl_ratio, other.kld_mean, other.same_top) == (None, None, None)
    assert (other.export_max_abs, other.min_tokens) == (file.export_max_abs, file.min_tokens)
    assert heard == [
        "The gates ppl_ratio, kld_mean, same_top are of 4 bits and do not count at 3 bits. In their place: none; set "
        "some by --set verify.gates."
    ]
    mine = tmp_path / "mine.toml"
    mine.write_text('model.id = "70m"\n[verify]\nsource = "hub"\ndataset = "a/b"\n[verify.gates]\nppl_ratio = 9\n')
    table = load_recipe("70m", {"quantize.bits": 8}).verify.gates
    assert load_recipe(mine, {"quantize.bits": 8}).verify.gates.ppl_ratio == table.ppl_ratio
    chosen = {"quantize.bits": 8, "verify.gates.ppl_ratio": 7.0}
    assert load_recipe(mine, chosen).verify.gates.ppl_ratio.limit == 7


def test_a_revision_after_an_at_is_of_a_recipes_model_too():
    for name in ("demo", "demo-int8"):
        assert load_recipe(f"{name}@step500") == load_recipe(name, {"model.revision": "step500"})
        assert load_recipe(f"{name}@main") == load_recipe(name)
    assert names_texts("demo@step500")
    with pytest.raises(SourceError, match="no revision `step900`; it has main, step2000, step500") as caught:
        pull(load_recipe("demo@step900").model)
    assert "`demo@main`" in caught.value.hint


def test_an_at_without_a_revision_is_refused():
    for name in ("410m@", "410m@ ", "someone/model@", "demo@"):
        with pytest.raises(RecipeError, match="names no revision after the @"):
            load_recipe(name)


def test_a_folder_is_a_recipe_and_its_size_says_what_it_gets(tmp_path, monkeypatch):
    demo = load_recipe(str(demo_folder() / "main"))
    assert demo.model.path == demo_folder() / "main"
    assert demo.verify.sequence_length == 512 and demo.quantize.group_size == 32  # 512 positions; 14m's geometry
    assert demo.verify.gates == load_recipe("14m").verify.gates
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text(json.dumps(small_config(layers=3).to_dict()))
    monkeypatch.chdir(tmp_path)
    other = load_recipe("other")
    assert other.model.path == tmp_path / "other" and other.verify.sequence_length == 64
    assert other.verify.gates.ppl_ratio is None and other.verify.gates.export_max_abs == 1e-3
    told = "export_max_abs, decode_max_abs, min_tokens; none limits what quantisation costs"
    bare = load_recipe(str(demo_folder() / "main"), {"verify.gates.ppl_ratio": None, "verify.gates.kld_mean": None})
    assert told in plan(bare).steps[-1] and "ppl_ratio, kld_mean, min_tokens" in plan(demo).steps[-1]
    assert load_recipe("someone/else").verify.gates.export_max_abs == 5e-3  # its size is not known before it is pulled


def test_a_folder_does_not_hide_a_model_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "410m").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_recipe("410m").model.id and load_recipe("./410m").model.path == tmp_path / "410m"


def test_a_file_may_leave_out_texts_and_gates(tmp_path):
    (tmp_path / "r.toml").write_text('[model]\nid = "410m"\n')
    found, by_name = load_recipe(str(tmp_path / "r.toml")), load_recipe("410m")
    assert (found.calibration, found.verify) == (by_name.calibration, by_name.verify)
    (tmp_path / "r.toml").write_text('[model]\nid = "410m"\n[quantize]\nmethod = "rtn"\n[export]\ntarget = "cuda"\n')
    assert load_recipe(str(tmp_path / "r.toml")).calibration is None
    (tmp_path / "r.toml").write_text('[model]\nid = "410m"\n[verify]\nsource = "python-stdlib"\n')
    assert load_recipe(str(tmp_path / "r.toml")).verify.gates.ppl_ratio is None, "what is there is not added to"


def test_another_source_leaves_the_one_before_behind(tmp_path, monkeypatch):
    (tmp_path / "of-the-recipe").mkdir()
    (tmp_path / "of-the-recipe/r.toml").write_text('[model]\npath = "m"\n[verify]\nsource = "file"\npath = "t.jsonl"\n')
    monkeypatch.chdir(tmp_path)
    changes = {"calibration.source": "file", "calibration.path": "train.jsonl", "calibration.samples": 8}
    found = load_recipe("of-the-recipe/r.toml", changes)
    assert found.calibration.path == tmp_path / "train.jsonl", "a path of the command line begins where the command is"
    assert found.verify.path == tmp_path / "of-the-recipe/t.jsonl" and found.model.path == tmp_path / "of-the-recipe/m"
    assert found.calibration.samples == 8 and found.calibration.dataset is None
    assert load_recipe("of-the-recipe/r.toml", {"model.id": "410m"}).model.path is None


def test_values_are_toml_a_bare_word_is_text_and_nothing_takes_a_key_out():
    keys = recipe_keys()
    assert {"quantize.beam", "quantize.head.bits", "verify.gates.ppl_ratio", "quantize.override"} <= set(keys)
    texts = ["quantize.beam=1", "quantize.method = rtn", 'model.id="a/b"', "quantize.clip=false", "export.kv_cache="]
    assert changes_called([*texts, 'quantize.override=[{pattern="*.dense", bits=8}]'], keys) == {
        "quantize.beam": 1, "quantize.method": "rtn", "model.id": "a/b", "quantize.clip": False,
        "export.kv_cache": None, "quantize.override": [{"pattern": "*.dense", "bits": 8}],
    }  # fmt: skip
    without = load_recipe("410m", {"verify.gates.kld_mean": None})
    assert without.verify.gates.kld_mean is None and without.verify.gates.ppl_ratio is not None
    confident = load_recipe("410m", {"verify.gates.ppl_ratio.limit": 1.2, "verify.gates.ppl_ratio.confidence": 0.99})
    assert confident.verify.gates.ppl_ratio.confidence == 0.99
    assert load_recipe("410m", {"quantize.head.bits": 4}).quantize.head.bits == 4


@pytest.mark.parametrize(
    ("given", "said", "hint"),
    [
        ("beam=1", "SECTION.KEY=VALUE was expected", "Did you mean quantize.beam=1?"),
        ("quantize.beam", "SECTION.KEY=VALUE was expected", "quantize.beam="),
        ("group_size=64", "SECTION.KEY=VALUE was expected", "quantize.group_size=64"),
        ("quantize.override=[{", "is not TOML", ""),
    ],
)
def test_what_is_no_change_is_refused_with_a_guess(given, said, hint):
    with pytest.raises(RecipeError, match=said) as caught:
        changes_called([given], recipe_keys())
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"quantize.beem": 1}, "said quantize.beem: unknown key `quantize.beem`; did you mean `beam`?"),
        ({"exprot.target": "cpu"}, "said exprot.target: unknown key `exprot`; did you mean `export`?"),
        ({"quantize.bits": 5}, "said quantize.bits: `quantize.bits`: Input should be 2, 3, 4 or 8 (found 5)"),
        ({"quantize": 3}, "said quantize: `quantize`: a table was expected (found 3)"),
        ({"verify.tokens": "many"}, "said verify.tokens: `verify.tokens`"),
        ({"quantize.bits": 4, "quantize.bits.x": 4}, "are both given"),
    ],
)
def test_a_change_that_does_not_fit_is_reported_as_the_change(changes, said):
    with pytest.raises(RecipeError) as caught:
        load_recipe("410m", changes, said=lambda key: f"said {key}")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("410mm", "pythia-410m-int4"), ("pythia-410-int8", "pythia-410m-int8"), ("demoo", "demo"),
        ("410mm@step3000", "pythia-410m-int4@step3000"), ("350m", "350M is what 410m was called"),
        ("nothing-like-it", "`pythia-export recipes` lists recipes"),
    ],
)  # fmt: skip
def test_a_near_miss_is_guessed_the_likeliest_first(name, first):
    with pytest.raises(RecipeError, match="no recipe, model or folder called") as caught:
        load_recipe(name)
    assert caught.value.hint.removeprefix("Did you mean ").startswith(first)


def test_a_step_that_a_model_lacks_is_named_with_its_neighbours():
    with pytest.raises(RecipeError, match="no step500; the nearest are step512 and"):
        load_recipe("410m-int8@step500")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in ("demo", "demo-int8", "12b", "14m-int8", "410m-cuda", "160m-web@step512")),
        ("410m", {"quantize.override": [{"pattern": "*.dense", "bits": 8}, {"pattern": 'a"b\\c\x7fé\n😀'}]}),
        ("14m", {"quantize.group_size": 128, "quantize.beam": 16, "calibration.subsets": ["Github", "Wikipedia (en)"]}),
        ("410m", {"verify.gates.same_top": {"limit": 0.9, "confidence": 0.99}, "quantize.head.dtype": "float32"}),
        ("410m", {"quantize.method": "rtn", "verify.source": "wikitext2", "quantize.damp": 1e-5}),
        ("410m", {"calibration.source": "training-order", "calibration.batches": "0:4"}),
    ],
)
def test_a_recipe_that_is_shown_is_read_as_the_same(name, changes, tmp_path):
    recipe = load_recipe(name, changes)
    (tmp_path / "kept.toml").write_text(as_toml(recipe))
    assert load_recipe(str(tmp_path / "kept.toml")) == recipe


def test_a_recipe_is_shown_in_the_order_of_its_schema_and_says_what_it_is():
    text = as_toml(load_recipe("410m"))
    assert list(tomllib.loads(text)) == list(Recipe.model_fields)
    assert '[quantize]\nmethod = "gptq"\nbits = 4\ngroup_size = 128\n' in text and "null" not in text
