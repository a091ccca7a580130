"""The catalogue against the published facts, where those lie beside the project."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pythia_export.neox import NeoXConfig
from pythia_export.suite import MODELS, REVISIONS, SIZES, geometry, known_bad

FACTS = Path(__file__).parent.parent.parent / "shared" / "data" / "pythia"
needs_facts = pytest.mark.skipif(not FACTS.is_dir(), reason="the shared test data does not lie beside the project")


def test_154_revisions_and_ten_sizes():
    assert len(REVISIONS) == 154 == len(set(REVISIONS)) and REVISIONS[:4] == ("step0", "step1", "step2", "step4")
    assert REVISIONS[-1] == "step143000" and len(SIZES) == 10


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
    assert "205" in (known_bad("EleutherAI/pythia-2.8b", "step3000") or "")
    assert known_bad("EleutherAI/pythia-2.8b", "step66000") is None
    assert known_bad("EleutherAI/pythia-160m", "step3000") is None


@needs_facts
def test_parameters_are_the_published_ones():
    for size, facts in json.loads((FACTS / "catalog.json").read_text())["models"].items():
        config = geometry(f"EleutherAI/pythia-{size}")
        assert isinstance(config, NeoXConfig) and config.parameters == facts["params_total"], size
        assert (config.head_dim, config.rotary_dim) == (facts["head_dim"], facts["rotary_ndims"])


@needs_facts
def test_models_and_revisions_are_the_published_ones():
    facts = json.loads((FACTS / "catalog.json").read_text())
    assert list(MODELS) == facts["hf_ids"]["v1_standard"] + facts["hf_ids"]["v1_deduped"]
    assert [*REVISIONS, "main"] == facts["revisions_v1"]
    assert all(geometry(model) for kind in ("v0", "polypythias") for model in facts["hf_ids"][kind])


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
