"""The catalogue against the published facts, where those lie beside the project."""

from __future__ import annotations

import dataclasses
import json

import pytest
from places import ROOT
from typer.testing import CliRunner

from pythia_export.base.errors import IntegrityError, RecipeError
from pythia_export.cli import app
from pythia_export.model.neox import NeoXConfig
from pythia_export.model.suite import (
    REVISIONS,
    find,
    former_name,
    geometry,
    known_bad,
    matching,
    named,
    notes,
    require_same_geometry,
    resolve,
    sizes,
    suite,
)

FACTS = ROOT.parent / "shared" / "data" / "pythia"
needs_facts = pytest.mark.skipif(not FACTS.is_dir(), reason="the shared test data does not lie beside the project")


def test_154_revisions_and_ten_sizes():
    assert len(REVISIONS) == 154 == len(set(REVISIONS)) and REVISIONS[:4] == ("step0", "step1", "step2", "step4")
    assert REVISIONS[-1] == "step143000" and len(sizes()) == 10


@pytest.mark.parametrize("suffix", ["", "-deduped", "-v0", "-seed3", "-deduped-v0"])
def test_every_variant_has_its_sizes_geometry(suffix):
    found = geometry(f"EleutherAI/pythia-1.4b{suffix}")
    assert found is not None and (found.hidden_size, found.num_heads, found.rotary_dim) == (2048, 16, 32)


@pytest.mark.parametrize(
    "name", ["EleutherAI/pythia-15m", "someone/pythia-14m", "demo", None, "EleutherAI/pythia-14mx"]
)
def test_other_models_have_none(name):
    assert geometry(name) is None


def test_known_bad_revisions_name_their_issue():
    wrong = known_bad("EleutherAI/pythia-2.8b", "step3000")
    assert wrong is not None and wrong.kind == "duplicate" and "(issue 205)" in wrong.reported
    assert known_bad("EleutherAI/pythia-12b-deduped", "step32000") is None, "uploaded anew: told, not refused"
    assert known_bad("EleutherAI/pythia-14m", "step0") is None
    assert known_bad("EleutherAI/pythia-2.8b", "step66000") is None
    assert known_bad("EleutherAI/pythia-160m", "step3000") is None


@needs_facts
def test_parameters_are_the_published_ones():
    for size, facts in json.loads((FACTS / "catalog.json").read_text())["models"].items():
        config = geometry(f"EleutherAI/pythia-{size}")
        assert isinstance(config, NeoXConfig) and config.parameters == facts["params_total"], size
        model = find(f"EleutherAI/pythia-{size}")
        assert model is not None and model.non_embedding_parameters == facts["params_non_embedding"], size
        assert model.to_json()["float16_bytes"] == facts["fp16_bytes_params"], size
        assert (config.head_dim, config.rotary_dim) == (facts["head_dim"], facts["rotary_ndims"])


@needs_facts
def test_models_and_revisions_are_the_published_ones():
    facts = json.loads((FACTS / "catalog.json").read_text())
    ids, listed = facts["hf_ids"], suite()
    kinds = ("v1_standard", "v1_deduped", "v0", "polypythias", "intervention_seen_in_stored_pages")
    assert set(listed) == {model for kind in kinds for model in ids[kind]}
    assert [*REVISIONS, "main"] == facts["revisions_v1"]
    for model in listed.values():
        expected = facts["revisions_v0"] if model.family == "v0" else facts["revisions_v1"]
        assert model.family == "intervention" or [*model.revisions, "main"] == expected, model.id
        assert model.formerly == facts["models"][model.size]["old_name"], model.id


@needs_facts
def test_the_list_of_wrong_revisions_is_complete():
    facts = json.loads((FACTS / "known_bad_revisions.json").read_text())
    for repo, lists in {
        "EleutherAI/pythia-2.8b": ("identical_to_main", "second_blob_462f2b960062159c"),
        "EleutherAI/pythia-12b": ("wrong_first_shard",),
        "EleutherAI/pythia-410m-seed9": ("missing_weights",),
        "EleutherAI/pythia-410m-seed6": ("missing_weights",),
        "EleutherAI/pythia-410m-seed2": ("missing_weights",),
    }.items():
        expected = {r for name in lists for r in facts[repo][name]}
        assert {r for r in REVISIONS if known_bad(repo, r)} == expected, repo


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pythia-410m", ("EleutherAI/pythia-410m", None)),
        ("410m-deduped@step3000", ("EleutherAI/pythia-410m-deduped", "step3000")),
        ("410m-seed3@step512", ("EleutherAI/pythia-410m-seed3", "step512")),
        ("160m-weight-seed2", ("EleutherAI/pythia-160m-weight-seed2", None)),
        ("EleutherAI/Pythia-1.4B@main", ("EleutherAI/pythia-1.4b", "main")),
        ("6.9B-deduped-v0@143000", ("EleutherAI/pythia-6.9b-deduped-v0", "step143000")),
        ("1b@" + "a" * 40, ("EleutherAI/pythia-1b", "a" * 40)),
        ("someone/finetuned-pythia@v2", ("someone/finetuned-pythia", "v2")),
        ("EleutherAI/pythia-intervention-70m-deduped", ("EleutherAI/pythia-intervention-70m-deduped", None)),
        ("demo@step500", ("demo", "step500")),
    ],
)
def test_a_name_stands_for_one_model_and_revision(name, expected):
    assert resolve(name) == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("401m", "pythia-410m"),
        ("pythia-160m-dedup", "pythia-160m-deduped"),
        ("350M", "EleutherAI/pythia-410m-v0"),
        ("pythia-6.7b-deduped", "EleutherAI/pythia-6.9b-deduped-v0"),
        ("gpt2", "pythia-export models"),
        ("410m@step3500", "every thousand"),
        ("70m-v0@step512", "every thousand"),
        ("410m@step144000", "every thousand"),
    ],
)
def test_a_name_of_none_is_refused_with_the_nearest(name, said):
    with pytest.raises(RecipeError) as caught:
        resolve(name)
    assert said in caught.value.hint


def test_every_model_is_found_by_its_short_name():
    for model in suite().values():
        assert resolve(model.name.removeprefix("pythia-")) == (model.id, None)
        assert named(model.id) is model


def test_words_choose_models_and_a_size_is_no_part_of_another():
    assert {m.size for m in matching("1b")} == {"1b"} == {m.size for m in matching("pythia-1b")}
    assert [m.name for m in matching("deduped v0 70m")] == ["pythia-70m-deduped-v0"]
    assert len(matching("polypythias")) == 51 and len(matching("")) == len(suite())
    assert matching("401m") == []


def test_every_former_name_is_explained_and_no_present_one_is():
    explained = {
        size: former_name(size.upper()) for size in ("19m", "125m", "350m", "800m", "1.3b", "2.7b", "6.7b", "13b")
    }
    assert all(said is not None and "January 2023" in said for said in explained.values())
    assert not any(former_name(size) for size in sizes())


def test_notes_concern_the_revisions_that_they_name():
    assert notes("EleutherAI/pythia-160m", "step3000") == [] and notes("someone/x", "step0") == []
    (note,) = notes("EleutherAI/pythia-160m", "step0")
    assert note.startswith("EleutherAI/pythia-160m step0 and step1: ") and "(issue 83)" in note
    assert any("14m-deduped until" in line for line in notes("EleutherAI/pythia-14m", "main"))
    assert notes("EleutherAI/pythia-160m-v0", "step1000") == [], "v0 has neither step0 nor step1"


def test_a_configuration_of_another_size_is_refused_by_its_field():
    require_same_geometry("EleutherAI/pythia-70m", geometry("EleutherAI/pythia-70m-deduped"), "here")
    require_same_geometry("someone/x", geometry("EleutherAI/pythia-70m"), "here")
    with pytest.raises(IntegrityError, match=r"config.json: hidden_size is 512, .* 70,426,624 .* 768 and 162,322,944"):
        require_same_geometry("EleutherAI/pythia-160m", geometry("EleutherAI/pythia-70m"), "config.json")
    padded = dataclasses.replace(geometry("EleutherAI/pythia-6.9b"), vocab_size=50304)
    with pytest.raises(IntegrityError, match="vocab_size is 50304"):
        require_same_geometry("EleutherAI/pythia-6.9b", padded, "config.json")


def models(*args: str):
    return CliRunner().invoke(app, ["models", *args])


@pytest.mark.parametrize("columns", [80, 116])
def test_the_list_of_models_fits_a_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    listed = models().stdout
    assert max(map(len, listed.splitlines())) <= columns and "…" not in listed
    assert "pythia-intervention-410m-deduped" in listed and "11,846,072,320" in listed
    assert ("11,327,027,200" in listed) == (columns == 116), "the non-embedding parameters, where there is room"


def test_models_lists_filters_and_explains():
    everything = models()
    assert everything.exit_code == 0 and "pythia-14m-seed1 ... 9" in everything.stdout
    problems = " ".join(everything.stdout.split())
    assert "pythia-2.8b: step0 ... step512, step1000 ... step53000, step55000," in problems
    one = models("2.8b").stdout
    assert "2,775,208,960" in one and "(issue 205)" in one and "Model " in one
    assert "(issue 205)" not in models("2.8b@step66000").stdout
    assert [m["id"] for m in json.loads(models("v0", "70m", "--json").stdout)] == [
        "EleutherAI/pythia-70m-v0", "EleutherAI/pythia-70m-deduped-v0",
    ]  # fmt: skip
    assert json.loads(models("410m-seed3@512", "--json").stdout)["revision"] == "step512"
    old = models("350M")
    assert old.exit_code == 0 and "January 2023" in old.stderr and "pythia-410m-v0" in old.stdout
    typo = models("401m")
    assert typo.exit_code == 2 and typo.stdout == "" and "pythia-410m" in typo.stderr
