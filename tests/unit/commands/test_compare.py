"""`compare`: the figures of each artifact are those of its own proof, and pairs are their differences on one text."""

from __future__ import annotations

import json
import shutil

import pytest
from models import hugging_face, save_checkpoint
from packers import quantise
from places import ROOT
from typer.testing import CliRunner

from pythia_export.artifact import Artifact
from pythia_export.cli import app
from pythia_export.model.neox import NeoXConfig

DEMO = ROOT / "demo" / "main"
TEXT = ["--set", "verify.source=python-stdlib", "--set", "verify.sequence_length=32", "--tokens", "1024"]


def run(*arguments, code=0):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A float checkpoint, and artifacts of two quantised forms of it; of one a second, imported without it."""
    folder = tmp_path_factory.mktemp("made")
    config = NeoXConfig(4096, 64, 1, 2, 128, max_positions=64)
    original = save_checkpoint(hugging_face(config), config, folder / "float", DEMO / "tokenizer.json")
    for name, form in (("a", "gptq"), ("b", "compressed-tensors")):
        quantise(shutil.copytree(original, folder / f"{name}-checkpoint"), form, bits=8 if name == "b" else 4)
        run("import", folder / f"{name}-checkpoint", "--original", original, "--out", folder / name, *TEXT)
    run("import", folder / "a-checkpoint", "--out", folder / "alone", *TEXT)
    wider = NeoXConfig(4112, 64, 1, 2, 128, max_positions=64)
    quantise(save_checkpoint(hugging_face(wider), wider, folder / "wider-checkpoint", DEMO / "tokenizer.json"), "gptq")
    run("import", folder / "wider-checkpoint", "--out", folder / "wider", *TEXT[:-1], "128")
    return folder


def test_each_has_the_figures_of_its_own_proof_and_pairs_are_their_differences(made, tmp_path):
    page = tmp_path / "page.html"
    found = json.loads(run("compare", made / "a", made / "b", "--html", page, "--json").stdout)
    proofs = {name: Artifact.open(made / name).parity for name in "ab"}
    assert found["baseline"] == "original" and found["baseline_name"] == "float at main"
    assert found["corpus"]["sha256"] == proofs["a"].corpus.sha256
    for x in found["contenders"]:
        cost = proofs[x["name"]].cost
        assert x["delta_nll"]["mean"] == pytest.approx(cost.delta_nll.mean, abs=1e-9)
        assert x["kld"]["low"] == pytest.approx(cost.kld.low, rel=1e-6)
        assert x["same_top"]["value"] == cost.same_top.value
    (pair,) = found["pairs"]
    a, b = found["contenders"]
    assert (pair["name"], pair["less"]) == ("b", "a")
    assert pair["kld"]["mean"] == pytest.approx(b["kld"]["mean"] - a["kld"]["mean"], abs=1e-12)
    assert pair["delta_nll"]["low"] < b["delta_nll"]["mean"] - a["delta_nll"]["mean"] < pair["delta_nll"]["high"]
    assert "float at main" in page.read_text() and "<script" not in page.read_text()


def test_the_table_is_aligned_and_a_text_of_ones_own_is_read(made, tmp_path):
    text = tmp_path / "mine.jsonl"
    text.write_text(
        "\n".join(json.dumps({"text": f"def f{i}(x):\n    return x * {i} + len(str(x))\n"}) for i in range(99))
    )
    done = run("compare", made / "a", made / "b", "--text", text, "--tokens", "512")
    lines = done.stdout.splitlines()
    each = [line for line in lines if line.startswith(("a ", "b ")) and "MB" in line]
    assert len(each) == 2 and len({line.rindex(".") for line in each}) == 1 and "±" not in done.stdout
    assert "b − a" in done.stdout and "closest to the original" in done.stdout.replace("\n", " ")


def test_the_first_takes_the_originals_place_where_there_is_none_for_all(made):
    done = run("compare", made / "a", made / "alone", code=3)
    assert "alone was imported without its original" in done.output and "--first" in done.output
    found = json.loads(run("compare", made / "a", made / "alone", "--first", "--json").stdout)
    assert found["baseline"] == "first" and [x["name"] for x in found["contenders"]] == ["alone"]
    assert found["contenders"][0]["kld"]["mean"] < 1e-9 and not found["pairs"]  # the same codes
    found = json.loads(run("compare", made / "a", made / "alone", "--original", made / "float", "--json").stdout)
    assert found["contenders"][0]["kld"]["mean"] == pytest.approx(found["contenders"][1]["kld"]["mean"], rel=1e-6)


REFUSED = {
    "one": (["a"], 2, "two artifacts or more"),
    "one twice": (["a", "a"], 2, "is named twice"),
    "another original": (
        ["a", "b", "--original", "demo"],
        3,
        "a is not of demo: hidden_size is 64, in the original 128",
    ),
    "another vocabulary": (["a", "wider", "--first"], 3, "wider gives logits of 4,112 tokens, a of 4,096"),
    "both baselines": (["a", "b", "--first", "--original", "demo"], 2, "contradict each other"),
    "a page inside": (["a", "b", "--html", "a/page.html"], 8, "lies in the artifact"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_compared_is_said(made, case):
    given, code, said = REFUSED[case]
    done = run("compare", *(word if word[0] == "-" or word == "demo" else made / word for word in given), code=code)
    assert said in done.output.replace("\n", " ")
