"""Records that lie: what an artifact's records lack, or hold instead, is told by file and field, with exit code 4."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
from fuzz import RECORDS, WRITTEN, fuzz
from onnx import TensorProto, helper
from typer.testing import CliRunner

from pythia_export.artifact import Artifact, Staging
from pythia_export.base.errors import IntegrityError, RecipeError, SourceError
from pythia_export.checkpoint import demo_folder, pull
from pythia_export.checkpoint.pull import read_config
from pythia_export.cli import app
from pythia_export.proof.against import comparable
from pythia_export.recipe import Model, load_recipe
from pythia_export.records.manifest import Origin
from pythia_export.sweep.schema import load as load_sweep


def written(name: str):
    return json.loads((WRITTEN / name).read_text())


def published(folder: Path, **changes) -> Path:
    """An artifact with the records that production wrote, but for some; hashes and sizes are right."""
    records = {name: written(name) for name in RECORDS}
    manifest = {k: v for k, v in records.pop("manifest.json").items() if k not in ("files", "schema", "created")}
    with Staging(folder) as staging:
        for name, value in records.items():
            change = changes.get(name.partition(".")[0])
            changed = value if change is None else change(value)
            (staging.folder / name).write_text(changed if isinstance(changed, str) else json.dumps(changed))
        with (staging.folder / "model.onnx_data").open("wb") as file:
            file.truncate(written("manifest.json")["files"]["model.onnx_data"]["size"])
        staging.publish(Origin.model_validate(manifest))
    if "manifest" in changes:
        whole = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(changes["manifest"](whole)))
    return folder


def at(*place, **changes):
    """A change of the object at a place; what is None is taken away."""

    def change(value):
        inner = value
        for key in place:
            inner = inner[key]
        for key, new in changes.items():
            inner.pop(key) if new is None else inner.update({key: new})
        return value

    return change


def test_records_that_production_wrote_are_read_whole(tmp_path):
    opened = Artifact.open(published(tmp_path / "artifact"))
    assert opened.parity.to_json() == written("parity.json")
    assert opened.quantization.to_json() == written("quantization.json")
    done = CliRunner().invoke(app, ["inspect", str(opened.folder)])
    assert done.exit_code == 0 and "Quantised by gptq, 6.00 bits a weight" in done.stdout


def test_what_generate_would_refuse_is_told_by_inspect_and_push(tmp_path):
    folder = published(tmp_path / "artifact")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Sinh", ["x"], ["y"], name="harmless")], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    Artifact.open(folder).replace_files({"model.onnx": model.SerializeToString()})
    refused(folder, "node harmless is Sinh")


def test_a_tokenizer_that_is_none_is_told_by_inspect_and_push(tmp_path):
    folder = published(tmp_path / "artifact")
    artifact = Artifact.open(folder)
    artifact.replace_files({"model.onnx": empty_graph(), "tokenizer.json": b'{"version": "1.0"}'})
    refused(folder, "tokenizer.json: not a tokenizer")


def empty_graph() -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([], "g", [x], [x])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def refused(folder: Path, said: str) -> None:
    for command in (["inspect", str(folder)], ["push", str(folder), "me/artifact", "--dry-run"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 4 and said in done.stderr, done


@pytest.mark.parametrize("wrong", [-1, 10**6, "0"])
def test_an_end_token_that_the_model_lacks_is_the_artifacts_fault(wrong, tmp_path):
    folder = published(tmp_path / "artifact")
    Artifact.open(folder).replace_files({"generation_config.json": json.dumps({"eos_token_id": wrong}).encode()})
    Artifact.open(folder).replace_files({"model.onnx": empty_graph()})
    refused(folder, "generation_config.json: eos_token_id is")


UNTRUE = {
    "a linear without its loss": ({"quantization": at("linears", 0, loss=None)}, "no `linears.0.loss`"),
    "a loss in words": ({"quantization": at("linears", 3, loss="small")}, "`linears.3.loss` is 'small'; a valid"),
    "a count that is true": ({"quantization": at("linears", 0, tokens=True)}, "`linears.0.tokens` is true"),
    "linears that are none": ({"quantization": at(linears={})}, "`linears` is an object of 0 keys"),
    "a linear without its kind": ({"quantization": at("linears", 0, name="gpt_neox.layers.0")}, "`linears.0.name`"),
    "a layer that is not the name's": ({"quantization": at("linears", 0, layer=3)}, "`layer` is 3, the name gpt_neox"),
    "a layer beyond all": ({"quantization": at("linears", 0, layer=10**9)}, "`linears.0.layer` is 1000000000"),
    "two parts of a head": ({"quantization": at("linears", 0, heads=[[1.0, 2.0]])}, "`linears.0.heads.0`"),
    "fewer layers": ({"quantization": lambda q: q | {"layers": q["layers"][:-1]}}, "5 layers; config.json has 6"),
    "a schema in words": ({"quantization": at(schema="2")}, "a number `schema` was expected"),
    "nesting": ({"quantization": lambda q: "[" * 100_000}, "nested deeper than 64"),
    "half of a character": ({"quantization": at(device="\ud800")}, "half of a character"),
    "an infinity": ({"parity": lambda p: json.dumps(p).replace('"seconds":', '"more": 1e999, "seconds":')}, "1e999"),
    "a NaN": ({"parity": lambda p: json.dumps(p).replace('"seconds":', '"more": NaN, "seconds":')}, "NaN is no number"),
    "a proof without its cost": ({"parity": at(cost=None)}, "no `cost`"),
    "a proof without an inner figure": ({"parity": at("cost", "kld", p99=None)}, "no `cost.kld.p99`"),
    "no gated run": ({"parity": lambda p: at("export", runs=[r | {"gated": False} for r in p["export"]["runs"]])(p)},
                     "no run is gated"),
    "a run without its cuts": ({"parity": at("export", "runs", 1, splits=[])}, "cut at different tokens"),
    "gates that did not pass": ({"parity": at("gates", 0, passed=False, outcome="failed")}, "its gates say otherwise"),
    "a ratio beyond measure": ({"parity": at("cost", "ppl_ratio", high=1.7e308)}, "`cost.ppl_ratio.high` is 1.7e"),
    "a limit of nothing": ({"parity": at("gates", 0, limit=0)}, "`gates.0.limit` is 0; greater than 0"),
    "an outcome of nobody": ({"parity": at("gates", 0, outcome="perhaps")}, "`gates.0.outcome` is 'perhaps'"),
    "sums of different lengths": ({"parity": at("cost", "sums", kld=[1.0])}, "lists of different lengths"),
    "very many layers": ({"config": at(num_hidden_layers=9_999)}, "9,999 layers of these sizes have"),
    "a configuration in words": ({"config": at(hidden_size="128")}, "`hidden_size` is '128'"),
    "no configuration": ({"config": lambda c: []}, "an array of 0; an object was expected"),
    "a source that is nobody's": ({"manifest": at("source", revision=None)}, "no `source.revision`"),
    "versions without their package": ({"manifest": at(versions=["1.0"])}, "`versions` is an array of 1"),
    "a cache of no type": ({"manifest": at("layout", kv_dtype="float8")}, "`layout.kv_dtype` is 'float8'"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNTRUE)
def test_an_untrue_record_is_told_by_file_and_field(name, tmp_path):
    changes, said = UNTRUE[name]
    folder = published(tmp_path / "artifact", **changes)
    done = CliRunner().invoke(app, ["inspect", str(folder)])
    assert done.exit_code == 4, (done.output, done.exception)
    (record,) = changes
    told = " ".join(done.stderr.split())
    assert f"{record}.json" in told and said in told, told


def test_a_manifest_with_names_that_no_file_system_takes_is_refused(tmp_path):
    folder = published(tmp_path / "artifact")
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest["files"]["config.json"]
    for name in ("a" * 201, "a/" * 600 + "b"):
        (folder / "manifest.json").write_text(json.dumps(manifest | {"files": manifest["files"] | {name: entry}}))
        with pytest.raises(IntegrityError, match="longer than file systems take"):
            Artifact.open(folder)
    with pytest.raises(SourceError, match="File name too long|no such directory"):
        Artifact.open("a" * 300)  # from Python 3.14 on such a folder is none, without an error


def test_a_proof_to_compare_with_is_held_to_the_same(tmp_path):
    comparable(written("parity.json"), "there.json")
    with pytest.raises(SourceError, match=r"there.json: no `export.runs.0.max_abs`"):
        comparable(at("export", "runs", 0, max_abs=None)(written("parity.json")), "there.json")


def test_a_checkpoints_configuration_stays_the_sources_fault(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(written("config.json") | {"rope_parameters": "many"}))
    with pytest.raises(SourceError, match="`rope_parameters` is 'many'; an object was expected"):
        read_config(tmp_path / "config.json")


def test_a_header_is_read_before_its_gigabytes_are_hashed(tmp_path, monkeypatch):
    shutil.copytree(demo_folder() / "main", tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    monkeypatch.setattr(
        sys.modules["pythia_export.checkpoint.pull"], "sha256_of", lambda path: pytest.fail("hashed first")
    )
    with pytest.raises(IntegrityError, match="The file is truncated"):
        pull(Model(path=tmp_path / "model"))


RECIPES = {
    "nesting": ("a = " + "[" * 5000, "nested"),
    "thousands of digits": ("a = " + "9" * 5000, "not TOML"),
    "thousands of digits, unread": (
        '[model]\nid = "demo"\nrevision = 0x' + "f" * 6000,
        "thousands of digits",
    ),
    "a path longer than any": (f'[model]\npath = "{"a" * 300}"', "longer than file systems take"),
    "a path that ends early": ('[model]\npath = "a\\u0000b"', "NUL character"),
    "a megabyte": ("#" * 1_000_001, "are the most that is read"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_an_untrue_recipe_is_a_recipe_error(name, tmp_path):
    text, said = RECIPES[name]
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(RecipeError, match=said) as raised:
        load_recipe(str(tmp_path / "recipe.toml"))
    assert len(str(raised.value)) < 1500
    with pytest.raises(RecipeError, match=r"no recipe, model or folder called 'aaa.*\(300 characters\)"):
        load_recipe("a" * 300)


def test_a_sweep_over_too_much_is_refused(tmp_path):
    from fuzz import SWEEP

    lists = "\n".join(f"{key} = {list(range(1, 60))}" for key in ("beam", "damp", "max_damp"))
    (tmp_path / "sweep.toml").write_text(SWEEP.replace("bits = [2, 3, 4]", f"bits = [2, 3, 4]\n{lists}"))
    with pytest.raises(RecipeError, match="combinations; 10,000 are the most"):
        load_sweep(tmp_path / "sweep.toml")


def test_no_damaged_input_escapes():
    """A thousandth of `make test-fuzz`."""
    outcomes, escapes = Counter(), {}
    fuzz(1000, 12345, outcomes, escapes)
    assert not escapes, next(iter(escapes.items()))
    assert sum(outcomes.values()) == 1000 and sum(n for (_, o), n in outcomes.items() if o == "accepted") > 50
