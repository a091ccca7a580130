"""One artifact, two speeds: a session with the native kernels and without, and each type of cache."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from native import LIBRARY, needs_library

from pythia_export.base.errors import EnvironmentProblem, IntegrityError
from pythia_export.graph.decoder import build_decoder
from pythia_export.graph.trunk import build_graph
from pythia_export.model.neox import cache_parts
from pythia_export.recipe import Export, Quantize
from pythia_export.runtime import Session, speed_here


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    from models import InMemory, export_model, hugging_face, on_disk, small_config

    config = small_config(size="2.8b", layers=2)
    original = InMemory(config, on_disk(hugging_face(config)))
    return export_model(original, tmp_path_factory.mktemp("custom"), Quantize(method="rtn"), Export())


def open_session(exported, **settings) -> Session:
    graph = (exported.folder / "model.onnx").read_bytes()
    return Session(graph, exported.folder, exported.config, kv_cache="shared", **settings)


@needs_library
def test_one_graph_runs_at_two_speeds_that_agree(exported):
    native, function = open_session(exported), open_session(exported, native=False)
    assert (native.speed, function.speed) == ("native", "function") and "not wanted" in function.why
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(0, 96, (2, 12)), np.ones((2, 12), np.int64)
    mask[1, :5] = 0
    outputs = []
    for opened in (native, function):
        cache = opened.start(2, 16)
        first = opened.step(cache, ids, mask)
        outputs.append(np.concatenate([first, opened.step(cache, ids[:, :1]), opened.step(cache, ids[:, 1:2])], 1))
    seen = np.concatenate([mask, np.ones((2, 2))], 1) > 0
    assert np.abs(outputs[0] - outputs[1])[seen].max() <= 1e-5 * np.abs(outputs[1][seen]).max()
    assert not np.array_equal(*outputs)  # two computations indeed


@needs_library
def test_products_of_int8_activations_agree_at_both_speeds(exported):
    places, rng = exported.places, np.random.default_rng(0)
    exact = build_decoder(exported.config, places, Export()).SerializeToString()
    graph = build_decoder(exported.config, places, Export(accuracy_level=4)).SerializeToString()
    ids = rng.integers(0, 96, (24, 1))  # alone: a code that is turned over would be seen by all tokens behind it
    wanted, native, function = (
        Session(g, exported.folder, exported.config, kv_cache="shared", native=n).logits(ids)
        for g, n in ((exact, False), (graph, True), (graph, False))
    )
    apart, cost = np.abs(native - function).max(-1), np.abs(function - wanted).max(-1)  # by token
    assert np.median(apart) <= 1e-5 < np.median(cost) and apart.max() < cost.max()


@pytest.mark.parametrize("rotary_16", [True, False])
@pytest.mark.parametrize("cache", ["float16", "int8"])
def test_a_converted_cache_is_the_same_at_both_speeds_and_from_call_to_call(cache, rotary_16, tmp_path):
    """Keys and values as stored, codes of int8 included, bit for bit; in one pass, in parts, shared or growing."""
    from models import InMemory, export_model, hugging_face, on_disk, small_config

    config = small_config(size="70m" if rotary_16 else "14m", layers=2)
    original = InMemory(config, on_disk(hugging_face(config)))
    export_model(original, tmp_path, Quantize(method="none", embedding="float32"), Export(kv_cache=cache))
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(0, 96, (2, 12)), np.ones((2, 12), np.int64)
    mask[1, :5] = 0
    seen = mask > 0
    found = {}
    for native in (False, *([True] if LIBRARY else [])):
        graph = (tmp_path / "model.onnx").read_bytes()
        for kv_cache in ("shared", "growing"):
            opened = Session(graph, tmp_path, config, kv_cache=kv_cache, kv_dtype=cache, native=native)
            for parts in ([12], [7, 1, 4]):
                held, logits, at = opened.start(2, 16), [], 0
                for n in parts:
                    logits.append(opened.step(held, ids[:, at : at + n], mask[:, at : at + n]))
                    at += n
                codes = {name: value.numpy()[:, :, :12].copy() for name, value in held.values.items()}
                found[native, kv_cache, len(parts)] = np.concatenate(logits, 1), codes
    first, first_codes = found[False, "shared", 1]
    assert set(first_codes) == {f"past_key_values.{i}.{part}" for i in range(2) for part in cache_parts(cache)}
    assert (
        first_codes["past_key_values.0.key"].dtype == cache and np.abs(first_codes["past_key_values.0.key"]).max() > 1
    )
    for case, (logits, codes) in found.items():
        assert np.abs(logits - first)[seen].max() <= 2e-3 * np.abs(first[seen]).max(), case
        for name, value in codes.items():
            if ".0." in name:  # of later layers the inputs differ in the last bit already
                assert (np.moveaxis(value, 2, 1)[seen] == np.moveaxis(first_codes[name], 2, 1)[seen]).all(), (
                    case,
                    name,
                )
    with torch.no_grad():
        positions = np.clip(mask.cumsum(1) - 1, 0, None)
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        wanted = hugging_face(config)(**{k: torch.from_numpy(v) for k, v in given.items()}).logits.numpy()
    error = np.abs(first - wanted)[seen].max() / np.abs(wanted[seen]).max()
    assert 1e-6 < error < (1e-3 if cache == "float16" else 3e-2)


@pytest.mark.parametrize(
    "settings",
    [
        {"rotary": "onnx"}, {"target": "web"}, {"target": "cuda", "dtype": "float16"},
        {"rotary": "gqa", "target": "web"}, {"rotary": "gqa", "target": "cuda", "dtype": "float16"},
    ],
)  # fmt: skip
def test_a_converted_cache_is_refused_where_it_would_be_slow_or_unknown(settings):
    with pytest.raises(ValueError, match="kv_cache = 'int8' .* needs rotary = 'custom' or 'gqa'"):
        Export(kv_cache="int8", **settings)
    with pytest.raises(ValueError, match="kv_cache = 'float16' .* needs rotary = 'custom' and"):
        Export(kv_cache="float16", rotary="gqa")
    with pytest.raises(ValueError, match="transformers.js makes a cache of floats"):
        Export(kv_cache="int8", rotary="gqa", layout="transformers.js")
    assert (
        Export(kv_cache="float32").cache_dtype == "float32"
        and Export(dtype="float16", target="cuda").cache_dtype == "float16"
    )


def test_a_graph_without_our_operator_says_so(exported, tmp_path):
    plain = build_decoder(exported.config, exported.places, Export(rotary="gqa")).SerializeToString()
    opened = Session(plain, exported.folder, exported.config, kv_cache="shared")
    assert opened.speed == "stock"


@needs_library
def test_the_kernels_say_for_which_instructions_they_run(exported, monkeypatch):
    monkeypatch.setenv("PYTHIA_KERNELS_ISA", "reference")
    opened = open_session(exported)
    assert (opened.speed, opened.why) == ("native", f"{LIBRARY.name}, reference")


@needs_library
def test_instructions_that_are_not_to_be_had_are_told_before_and_after(exported, monkeypatch):
    monkeypatch.setenv("PYTHIA_KERNELS_ISA", "mmx")
    with pytest.raises(EnvironmentProblem, match="PYTHIA_KERNELS_ISA names a version") as caught:
        open_session(exported)
    assert "without the variable" in caught.value.hint
    here = SimpleNamespace(recipe=SimpleNamespace(export=Export()), file=lambda name: exported.folder / name)
    assert "which will not run: PYTHIA_KERNELS_ISA is 'mmx'" in speed_here(here)[1], "inspect says so too"


@needs_library
@pytest.mark.parametrize("lacking", ["Decoder", "DecoderMask", "LinearNBits"])
def test_a_library_older_than_the_artifact_is_told_and_not_called_native(exported, lacking, tmp_path, monkeypatch):
    """It registers that operator under another name, so that ONNX Runtime has the function alone."""
    name, other = lacking.encode() + b"\0", lacking[:-1].encode() + b"_\0"
    old = tmp_path / LIBRARY.name
    old.write_bytes(LIBRARY.read_bytes().replace(name, other))
    monkeypatch.setattr("pythia_export.runtime.speed.kernels_path", lambda provider: old)
    export, ids = Export(accuracy_level=4), np.arange(24).reshape(2, 12)
    graph = build_graph(exported.config, exported.places, export).SerializeToString()
    opened, function = (
        Session(graph, exported.folder, exported.config, kv_cache="shared", native=native) for native in (True, False)
    )
    assert opened.speed == "function"
    assert opened.why.startswith(f"{LIBRARY.name} is older than the artifact: it lacks {lacking}. It was not used. ")
    assert "make kernels" in opened.why and "pip install --force-reinstall" in opened.why
    assert np.array_equal(opened.logits(ids), function.logits(ids))
    before = build_decoder(exported.config, exported.places, Export()).SerializeToString()  # as older artifacts are
    assert Session(before, exported.folder, exported.config, kv_cache="shared").speed == "native"


@needs_library
def test_what_a_librarys_operator_refuses_is_no_fault_of_the_artifact(exported):
    """As a library from before 2 bits refuses them: here bits are those that this library does not know."""
    model = build_decoder(exported.config, exported.places, Export(accuracy_level=4))
    changed = [
        a for node in model.graph.node if node.op_type == "LinearNBits" for a in node.attribute if a.name == "bits"
    ]
    for attribute in changed:
        attribute.i = 5
    with pytest.raises(
        EnvironmentProblem, match=r"does not run the graph.*: pythia::LinearNBits.* bits is 5; "
    ) as refused:
        Session(model.SerializeToString(), exported.folder, exported.config, kv_cache="shared")
    assert changed and "older than the artifact" in refused.value.hint and "make kernels" in refused.value.hint


def test_a_library_that_does_not_load_is_an_error_and_not_a_slower_run(exported, tmp_path, monkeypatch):
    broken = tmp_path / "libpythia_kernels.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr("pythia_export.runtime.speed.kernels_path", lambda provider: broken)
    with pytest.raises(EnvironmentProblem, match="cannot be loaded") as refused:
        open_session(exported)
    assert "make kernels" in refused.value.hint
    here = SimpleNamespace(recipe=SimpleNamespace(export=Export()), file=lambda name: exported.folder / name)
    assert "which cannot be loaded" in speed_here(here)[1], "inspect, which opens no session, says so too"
    assert open_session(exported, native=False).speed == "function"


def test_where_they_are_not_built_the_function_runs_and_says_why(exported, monkeypatch):
    monkeypatch.setattr("pythia_export.runtime.speed.kernels_path", lambda provider: None)
    opened = open_session(exported)
    assert opened.speed == "function" and "not built" in opened.why


def test_a_manifest_that_names_another_type_of_cache_is_refused(exported):
    with pytest.raises(IntegrityError, match=r"caches tensor\(float\), its manifest says tensor\(float16\)"):
        open_session(exported, kv_dtype="float16")


@pytest.mark.parametrize("native", [False, pytest.param(True, marks=needs_library)])
@pytest.mark.parametrize("rotary", ["custom", "gqa", "onnx", "int8 cache"])
@pytest.mark.parametrize("size", ["14m", "70m"])  # rotary_dim 8 and 16
def test_padding_between_tokens_is_right_or_refused(size, rotary, native, tmp_path):
    from models import InMemory, export_model, hugging_face, on_disk, small_config

    config = small_config(size=size, layers=2)
    original = InMemory(config, on_disk(hugging_face(config)))
    chosen = Export(kv_cache="int8") if rotary == "int8 cache" else Export(rotary=rotary)
    export_model(original, tmp_path, Quantize(method="none", embedding="float32"), chosen)
    kept = {"kv_cache": "growing" if rotary == "onnx" else "shared", "kv_dtype": chosen.cache_dtype}
    opened = Session((tmp_path / "model.onnx").read_bytes(), tmp_path, config, native=native, **kept)
    ids, pad = np.random.default_rng(0).integers(1, 96, (1, 12)), np.zeros((1, 5), np.int64)
    plain = opened.start(1, 32)
    before, wanted = opened.step(plain, ids), opened.step(plain, ids[:, :1])
    padded = opened.start(1, 32)
    mask = np.concatenate([np.ones_like(ids), pad], 1)
    got = opened.step(padded, np.concatenate([ids, pad], 1), mask)  # behind all tokens it does no harm
    assert np.abs(got[:, :12] - before).max() <= 1e-4
    if size == "70m" and (rotary == "gqa" or (rotary == "custom" and not native)):
        with pytest.raises(
            EnvironmentProblem, match=r"row 0 has padding between its tokens; at (stock|function) speed"
        ):
            opened.step(padded, ids[:, :1])
        assert padded.length == 17
    else:
        assert np.abs(opened.step(padded, ids[:, :1]) - wanted).max() <= 1e-4
