"""An int8 cache with fixed scales: measured on calibration text, held by the graph, recorded, and proved."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from models import hugging_face, save_checkpoint, small_config
from places import ROOT
from sessions import needs_fixed_scales

from pythia_export.artifact import Artifact
from pythia_export.base.errors import EnvironmentProblem, IntegrityError, RecipeError
from pythia_export.commands.cache_scales import MARGIN
from pythia_export.commands.export import add_taps
from pythia_export.commands.export import export as export_graph
from pythia_export.commands.plan import plan
from pythia_export.commands.quantize import quantize
from pythia_export.commands.run import run
from pythia_export.commands.verify import verify
from pythia_export.corpus import calibration_windows
from pythia_export.graph.cache_scales import scales_of, unit_scales
from pythia_export.recipe import Recipe, parse_recipe
from pythia_export.runtime import Session, TapSession

pytestmark = needs_fixed_scales
CONFIG = small_config(layers=2, vocab=4096)
TEXT = {"source": "python-stdlib", "sequence_length": 32}
INT8 = {"rotary": "gqa", "kv_cache": "int8"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(hugging_face(CONFIG), CONFIG, folder, ROOT / "demo" / "main" / "tokenizer.json")
    return {
        "model": {"path": str(folder)},
        "calibration": TEXT | {"samples": 20},
        "quantize": {"method": "rtn", "bits": 4, "group_size": 32},
        "export": INT8,
        "verify": TEXT | {"tokens": 256, "gates": {"kld_mean": 10.0, "decode_max_abs": 0.1}},
    }


@pytest.fixture(scope="module")
def artifact(recipe, tmp_path_factory) -> Artifact:
    out = tmp_path_factory.mktemp("int8") / "artifact"
    run(parse_recipe(recipe), out)
    return Artifact.open(out)


def test_scales_are_the_largest_keys_and_values_of_the_calibration_text_and_a_margin(artifact, tmp_path):
    export_graph(artifact.folder, tmp_path / "floats", kv_cache="float32")
    floats = Artifact.open(tmp_path / "floats")
    session = Session.open(floats, threads=1)
    text = calibration_windows(artifact.recipe.calibration, artifact.tokenizer(), CONFIG).ids[:16]
    peaks: dict[str, np.ndarray] = {}
    for window in text:
        cache = session.start(1, len(window))
        session.step(cache, window[None])
        for past, value in cache.values.items():
            peaks[past] = np.maximum(peaks.get(past, 0), np.abs(value.numpy()[0]).max(1))
    found = scales_of(onnx.load(artifact.file("model.onnx")), CONFIG)
    assert len(found) == 2 * CONFIG.num_layers
    for name, scale in found.items():
        past = name.replace("cache.", "past_key_values.").removesuffix("_scale")
        assert np.allclose(scale, peaks[past] * MARGIN / 127, rtol=1e-6), name
    assert "kv_scales" not in floats.manifest.layout.to_json()


def test_a_runtime_that_computes_something_else_with_them_is_refused(artifact, monkeypatch):
    """ONNX Runtime 1.27 opens such a graph, and its logits are others."""
    monkeypatch.setattr(onnxruntime, "__version__", "1.27.0")
    with pytest.raises(EnvironmentProblem, match=r"needs ONNX Runtime 1\.28 or newer; 1\.27\.0 is installed"):
        Session.open(artifact)


def test_what_they_were_measured_on_is_recorded_and_the_artifact_proved_anew(artifact):
    said = json.loads((artifact.folder / "manifest.json").read_text())["layout"]
    assert (said["kv_cache"], said["kv_dtype"]) == ("shared", "int8")
    text = calibration_windows(artifact.recipe.calibration, artifact.tokenizer(), CONFIG)
    assert said["kv_scales"] == {
        "source": text.source, "sha256": text.sha256, "windows": 16, "sequence_length": 32,
    }  # fmt: skip
    parity = verify(artifact.folder)
    assert parity.passed and {gate.name for gate in parity.gates} == {"kld_mean", "decode_max_abs"}
    (found,) = parity.export.runs
    assert found.speed == "stock" and 1e-5 < found.max_abs < 0.5, "the cache rounds"
    assert Artifact.open(artifact.folder).manifest.layout.to_json() == said


def test_onnxruntime_alone_caches_codes_and_genai_is_told_how(artifact):
    session = onnxruntime.InferenceSession(artifact.file("model.onnx"), providers=["CPUExecutionProvider"])
    kinds = {value.name: value.type for value in (*session.get_inputs(), *session.get_outputs())}
    cached = {name: kind for name, kind in kinds.items() if name.startswith(("past", "present"))}
    assert len(cached) == 4 * CONFIG.num_layers and set(cached.values()) == {"tensor(int8)"}
    genai = json.loads(artifact.file("genai_config.json").read_text())
    assert genai["search"]["past_present_share_buffer"] is True


def test_plan_counts_a_byte_a_value_and_says_what_is_measured(recipe):
    planned = plan(parse_recipe(recipe))
    assert planned.kv_cache_bytes == 2 * CONFIG.num_layers * CONFIG.max_positions * CONFIG.hidden_size
    assert "measure the scales of the KV cache on 16 x 32 tokens" in planned.steps
    assert planned.files["model.onnx"] > plan(parse_recipe(recipe | {"export": {"rotary": "gqa"}})).files["model.onnx"]


def test_taps_read_the_codes_by_their_scales(artifact, recipe, tmp_path):
    export_graph(artifact.folder, tmp_path / "tapped")
    add_taps(tmp_path / "tapped", ["attn.pattern"])
    export_graph(artifact.folder, tmp_path / "floats", kv_cache="float32", taps=["attn.pattern"])
    ids = np.arange(24).reshape(2, 12) + 5
    rounded, exact = (
        TapSession(Artifact.open(tmp_path / name), ["attn.pattern"]).read(ids) for name in ("tapped", "floats")
    )
    for hook, value in rounded.items():
        assert 0 < np.abs(value - exact[hook]).max() < 0.02, hook


def test_without_calibration_text_there_are_no_scales(recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"needs a \[calibration\] section: the scales of the cache are measured"):
        parse_recipe({name: section for name, section in recipe.items() if name != "calibration"})
    plain = {name: section for name, section in recipe.items() if name not in ("calibration", "export")}
    quantize(parse_recipe(plain), tmp_path / "plain")
    with pytest.raises(RecipeError, match=r"the recipe of these weights has no \[calibration\]") as e:
        export_graph(tmp_path / "plain", tmp_path / "int8", **INT8)
    assert "rotary = 'custom'" in e.value.hint and not (tmp_path / "int8").exists()


def test_a_named_model_gets_calibration_text_and_no_gate_that_such_a_cache_cannot_pass():
    made = Recipe.load("160m", {"quantize.method": "rtn", "export.rotary": "gqa", "export.kv_cache": "int8"})
    assert made.calibration is not None and made.calibrates and not made.uses_gptq
    assert made.verify.gates.export_max_abs is None and made.verify.gates.kld_mean is not None


def test_scales_that_a_graph_lacks_are_an_error():
    model = onnx.ModelProto()
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(array[None, :, None, :], name)
        for name, array in unit_scales(CONFIG).items()
        if name != "cache.1.value_scale"
    )
    with pytest.raises(IntegrityError, match="cache.1.value_scale: float32"):
        scales_of(model, CONFIG)
