"""What a graph may hold and which files it may name: checked by us before any ONNX Runtime opens it."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import Exported, InMemory, export_model, hugging_face, on_disk, small_config
from onnx import TensorProto, helper, parser
from pydantic import ValidationError

from pythia_export.base.errors import EnvironmentProblem, IntegrityError, NumericsError, ResourceError
from pythia_export.base.native_library import kernels_path
from pythia_export.evaluate.scores import ScoringSession, append_scores
from pythia_export.graph.browser import require_keep
from pythia_export.graph.cache_scales import unit_scales
from pythia_export.graph.decoder import build_decoder
from pythia_export.graph.trunk import build_graph
from pythia_export.model.neox import ACTIVATIONS
from pythia_export.recipe import Export, Quantize
from pythia_export.runtime import Session
from pythia_export.runtime.graph import KEEP, OPERATORS, WRITTEN, read_graph, require_files, require_ours
from pythia_export.weights.layout import layout

IDS = np.random.default_rng(0).integers(1, 96, (2, 9))


@pytest.fixture(scope="module")
def source() -> InMemory:
    config = small_config(layers=1)
    return InMemory(config, on_disk(hugging_face(config)))


@pytest.fixture
def exported(source, tmp_path) -> Exported:
    return export_model(source, tmp_path, Quantize(method="rtn", bits=4, group_size=32), Export())


def opened(exported: Exported, model: onnx.ModelProto, **options) -> Session:
    kept = {"kv_cache": "shared", "kv_dtype": exported.export.cache_dtype} | options
    return Session(model.SerializeToString(), exported.folder, exported.config, threads=1, **kept)


def forms():
    for rotary, kept, dtype, level, target in itertools.product(
        ("custom", "gqa", "onnx"), (None, "float16", "int8"), ("float32", "float16"), (0, 4), ("cpu", "web", "cuda")
    ):
        for where in ("flat", "transformers.js"):
            try:
                yield Export(
                    rotary=rotary, kv_cache=kept, dtype=dtype, accuracy_level=level, target=target, layout=where
                )
            except ValidationError:
                continue


def test_the_list_of_operators_is_what_the_exporter_writes():
    written = set()
    whole = Quantize(
        method="rtn", three_bit_field=3, head={"method": "rtn"}, override=[{"pattern": "*mlp*", "bits": 3}]
    )
    graph = build_graph(small_config(), layout(small_config(), whole, "float32"), Export(accuracy_level=4))
    contents = read_graph(graph.SerializeToString(), "here")
    require_ours(contents, "here")
    written |= {(domain, operator) for _, domain, operator in contents.nodes}
    for size, quantize in itertools.product(
        ("14m", "410m"),
        (Quantize(method="none"), Quantize(method="rtn", products=2, embedding="int4"), Quantize(embedding="int8")),
    ):
        config = small_config(layers=1, size=size)
        for export in forms():
            scales = unit_scales(config) if export.static_scales else None
            model = build_decoder(config, layout(config, quantize, export.dtype), export, scales=scales)
            contents = read_graph(model.SerializeToString(), "here")
            require_ours(contents, "here")
            written |= {(domain, operator) for _, domain, operator in contents.nodes}
    for hidden_act in ACTIVATIONS:
        config = replace(small_config(layers=1), hidden_act=hidden_act)
        model = build_decoder(config, layout(config, Quantize(method="none"), "float32"), Export())
        contents = read_graph(model.SerializeToString(), "here")
        require_ours(contents, "here")
        written |= {(domain, operator) for _, domain, operator in contents.nodes}
    assert written == WRITTEN < OPERATORS


# Files that a graph may read


def with_location(exported: Exported, **entries: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(exported.model)
    tensor = next(t for t in model.graph.initializer if t.external_data)
    places = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in places.items():
        tensor.external_data.add(key=key, value=value)
    return model


def test_weights_outside_the_folder_are_not_read(exported):
    data = exported.folder / "model.onnx_data"
    (exported.folder / "sub").mkdir()
    (exported.folder / "link").symlink_to(data)
    (exported.folder / "sub" / "away").symlink_to(exported.folder.parent)
    os.mkfifo(exported.folder / "pipe")
    first = next(t for t in exported.model.graph.initializer if t.external_data).name
    for location, says in {
        "../x": "outside the artifact's folder",
        str(data): "outside the artifact's folder",
        "sub/../model.onnx_data": "outside",
        ".": "outside|no plain file",
        "": "outside",
        "*/_ORT_MEM_ADDR_/*": "No such file",
        "link": "a symbolic link",
        f"sub/away/{exported.folder.name}/model.onnx_data": "a symbolic link",
        "pipe": "no plain file",
        "sub": "no plain file",
        "nothing": "No such file",
    }.items():
        with pytest.raises(IntegrityError, match=says) as refused:
            opened(exported, with_location(exported, location=location))
        assert first in str(refused.value), location
    with pytest.raises(IntegrityError, match="a file that manifest.json does not name"):
        opened(exported, exported.model, named={"model.onnx"})


def test_a_place_beyond_the_file_or_told_badly_is_not_read(exported):
    size = (exported.folder / "model.onnx_data").stat().st_size
    for entries, says in [
        ({"offset": str(size)}, "of a file of"),
        ({"offset": str(2**63)}, "of a file of"),
        ({"length": "1"}, "its type and shape take"),
        ({"offset": "-1"}, "a number of bytes"),
        ({"offset": "0x10"}, "a number of bytes"),
        ({"checksum": "abc"}, "its place is told by"),
    ]:
        with pytest.raises(IntegrityError, match=says):
            opened(exported, with_location(exported, **entries))
    twice = with_location(exported)
    next(t for t in twice.graph.initializer if t.external_data).external_data.add(key="location", value="../x")
    with pytest.raises(IntegrityError, match="its place is told by"):
        opened(exported, twice)
    hidden = with_location(exported, location="../x")  # in a node's attribute, in two halves that are one tensor
    tensor = next(t for t in hidden.graph.initializer if t.external_data)
    node = helper.make_node("Constant", [], ["c"], name="secret")
    node.attribute.append(onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, t=tensor))
    model = onnx.ModelProto(graph=onnx.GraphProto(node=[node]))
    with pytest.raises(IntegrityError, match=tensor.name):
        opened(exported, model)


# Operators


def grafted(exported: Exported, *nodes: onnx.NodeProto) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(exported.model)
    model.graph.node.extend(nodes)
    return model


def a_loop() -> onnx.NodeProto:
    body = parser.parse_graph("g (int64 i, bool go) => (bool on) { on = Identity (go) }")
    return helper.make_node("Loop", ["", "go"], [], name="for_ever", body=body)


def a_choice() -> onnx.NodeProto:
    branch = parser.parse_graph("g () => (float[1] y) { y = RandomNormal <shape = [1]> () }")
    return helper.make_node("If", ["go"], ["y"], name="choice", then_branch=branch, else_branch=branch)


def test_operators_that_we_do_not_write_are_refused_with_their_node(exported):
    for node, operator in [
        (a_loop(), "Loop"),
        (a_choice(), "If"),
        (helper.make_node("RandomNormal", [], ["r"], name="dice", shape=[1]), "RandomNormal"),
        (helper.make_node("Foreign", ["logits"], ["r"], name="dice", domain="ai.someone"), "ai.someone.Foreign"),
        (helper.make_node("Abs", ["logits"], ["r"], name="dice", domain="ai.onnx.ml"), "ai.onnx.ml.Abs"),
    ]:
        with pytest.raises(IntegrityError, match=f"node {node.name} is {operator}, which pythia-export") as refused:
            opened(exported, grafted(exported, node))
        assert "trust_graph" in refused.value.hint and "--trust-graph" in refused.value.hint


def test_functions_are_looked_into(exported):
    foreign = onnx.ModelProto()
    foreign.CopyFrom(exported.model)
    foreign.functions[0].node.append(helper.make_node("Multinomial", ["qkv"], ["m"], name="dice"))
    with pytest.raises(IntegrityError, match="node dice of function RotaryAttention is Multinomial"):
        opened(exported, foreign)
    taken = onnx.ModelProto()
    taken.CopyFrom(exported.model)
    add = '<opset_import: ["": 21], domain: ""> Add (x, y) => (z) {z = Sub (x, y)}'
    taken.functions.append(parser.parse_function(add))
    with pytest.raises(IntegrityError, match="defines the function Add"):
        opened(exported, taken)
    itself = onnx.ModelProto()
    itself.CopyFrom(exported.model)
    itself.functions[0].node.append(helper.make_node("RotaryAttention", ["qkv"], ["m"], domain="pythia"))
    with pytest.raises(IntegrityError, match="function RotaryAttention that calls RotaryAttention of pythia"):
        opened(exported, itself)


def test_who_trusts_a_graph_may_run_what_we_do_not_write(exported):
    model = grafted(exported, helper.make_node("Sin", ["scalar_f"], ["unread"], name="harmless"))
    model.graph.initializer.append(helper.make_tensor("scalar_f", TensorProto.FLOAT, [], [0.0]))
    with pytest.raises(IntegrityError, match="node harmless is Sin"):
        opened(exported, model)
    trusted = opened(exported, model, trust_graph=True).logits(IDS)
    assert (trusted == opened(exported, exported.model).logits(IDS)).all()
    with pytest.raises(IntegrityError, match="outside the artifact's folder"):  # files are not a matter of trust
        opened(exported, with_location(exported, location="../x"), trust_graph=True)


def test_bytes_that_are_no_graph_are_refused(exported):
    whole = exported.model.SerializeToString()
    deep = onnx.GraphProto()
    for _ in range(20):
        deep = onnx.GraphProto(
            node=[onnx.NodeProto(attribute=[onnx.AttributeProto(name="body", g=deep)], op_type="If")]
        )
    for data, says in [
        (b"", "no graph"),
        (whole[: len(whole) // 2], "bytes where"),
        (b"\0\0\0\0ORTM" + whole, "ONNX Runtime's own format"),
        (b"\x0b" + whole, "wire type"),
        (b"\xff" * 20, "does not end"),
        (onnx.ModelProto(graph=deep).SerializeToString(), "more than 8 deep"),
    ]:
        with pytest.raises(IntegrityError, match=f"not a graph that can be read: .*{says}"):
            read_graph(data, "here")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=4), st.booleans())
def test_changed_bytes_never_end_in_another_error(at, new, cut):
    data = bytearray(GRAPH)
    at %= len(data)
    data[at : at + len(new)] = new
    try:
        contents = read_graph(bytes(data[: at + 1] if cut else data), "here")
        require_ours(contents, "here")
        require_files(contents, Path("nowhere"), {"model.onnx_data"}, "here")
    except IntegrityError:
        pass


GRAPH = build_decoder(
    small_config(layers=1), layout(small_config(layers=1), Quantize(method="rtn"), "float32"), Export()
).SerializeToString()


# What consumers and tools meet


@pytest.mark.parametrize("rotary", ["custom", "gqa", "onnx"])
def test_no_runtime_warns_of_a_graph_when_it_loads(source, rotary, tmp_path, capfd):
    made = export_model(source, tmp_path, Quantize(method="rtn", bits=4, group_size=32), Export(rotary=rotary))
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    assert capfd.readouterr().err == ""
    kept = "growing" if rotary == "onnx" else "shared"
    session = Session(tmp_path / "model.onnx", tmp_path, made.config, kv_cache=kept, threads=1)
    last = session.step(session.start(2, 9), IDS, keep=1)
    assert last.shape == (2, 1, 96) and np.abs(last - session.logits(IDS)[:, -1:]).max() < 1e-4


def test_graphs_whose_count_of_logits_is_an_input_or_is_gone_run_alike(exported):
    """As artifacts were made before, as the page of `serve` has it, and as tools leave it that fold constants."""
    wanted = opened(exported, exported.model).logits(IDS)
    before, web, folded = onnx.ModelProto(), onnx.ModelProto(), onnx.ModelProto()
    for model in (before, web, folded):
        model.CopyFrom(exported.model)
    before.graph.input.append(helper.make_tensor_value_info(KEEP, TensorProto.INT64, []))
    require_keep(web)
    value = next(t for t in folded.graph.initializer if t.name == KEEP)
    value.name = "another"
    for node in folded.graph.node:
        node.input[:] = ["another" if name == KEEP else name for name in node.input]
    for model in (before, web, folded):
        session = opened(exported, model)
        assert session.keeps == (model is not folded)
        assert np.abs(session.logits(IDS) - wanted).max() < 1e-4
        last = session.step(session.start(2, 12), IDS, keep=2)
        assert last.shape == (2, 2, 96) and np.abs(last - wanted[:, -2:]).max() < 1e-4


@pytest.mark.parametrize("size", ["14m", "410m"])  # GroupQueryAttention rotates by itself, and does not
@pytest.mark.parametrize("kept", ["float32", "float16", "int8"])
def test_every_function_reads_all_its_inputs_and_has_no_bare_floats(size, kept):
    """Tools drop an input that a body does not read, and leave the calls; of a bare float they make a double."""
    config, quantize = small_config(layers=1, size=size), Quantize(method="rtn", bits=4)
    model = build_decoder(config, layout(config, quantize, "float32"), Export(kv_cache=kept, accuracy_level=4))
    for function in model.functions:
        read = {name for node in function.node for name in node.input}
        assert set(function.input) <= read, function.name
        bare = [a.name for node in function.node for a in node.attribute if a.name.startswith("value_float")]
        assert not bare
    assert "position_ids" in {name for node in model.graph.node if node.op_type == "Shape" for name in node.input}


# Numbers and memory


def test_logits_that_are_not_finite_are_an_error_of_every_call(exported):
    broken = onnx.ModelProto()
    broken.CopyFrom(exported.model)
    broken.graph.node[-1].output[0] = "before"
    broken.graph.initializer.append(helper.make_tensor("much", TensorProto.FLOAT, [], [3e38]))
    broken.graph.node.append(helper.make_node("Mul", ["before", "much"], ["logits"], name="/too/much"))
    session = opened(exported, broken)
    with pytest.raises(NumericsError, match=r"of 1,728 logits are not finite, the first that of token \d+ at") as told:
        session.logits(IDS)
    assert "float16" in told.value.hint and "pythia-export verify" not in told.value.hint, "which says the same"
    with pytest.raises(NumericsError, match="at place 0 of row 0"):
        session.step(session.start(2, 9), IDS, keep=1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_eval_sees_one_logit_that_is_not_finite(exported, value):
    broken = onnx.ModelProto()
    broken.CopyFrom(exported.model)
    broken.graph.node[-1].output[0] = "before"
    added = np.zeros(96, "f4")
    added[50] = value
    broken.graph.initializer.append(onnx.numpy_helper.from_array(added, "added"))
    broken.graph.node.append(helper.make_node("Add", ["before", "added"], ["logits"], name="/one"))
    append_scores(broken.graph, 96)
    session = ScoringSession(broken.SerializeToString(), exported.folder, exported.config, kv_cache="shared", threads=1)
    with pytest.raises(NumericsError, match="the logits of 4 tokens are not finite, first at place 0 of row 0"):
        session.score(IDS, np.ones_like(IDS), np.zeros((2, 2, 3), np.int64))


def test_large_logits_whose_sum_overflows_are_finite(exported):
    large = onnx.ModelProto()
    large.CopyFrom(exported.model)
    large.graph.node[-1].output[0] = "before"
    for name, value in (("less", 1e-30), ("much", 1e38)):
        large.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [], [value]))
    large.graph.node.append(helper.make_node("Mul", ["before", "less"], ["small"], name="/small"))
    large.graph.node.append(helper.make_node("Add", ["small", "much"], ["logits"], name="/large"))
    assert np.isfinite(opened(exported, large).logits(IDS)).all()


def test_a_node_that_fails_at_run_time_is_a_fault_of_the_artifact(exported):
    wrong = onnx.ModelProto()
    wrong.CopyFrom(exported.model)
    wrong.graph.initializer.append(helper.make_tensor("to", TensorProto.INT64, [2], [7, 11]))
    wrong.graph.node.append(helper.make_node("Reshape", ["logits", "to"], ["unread"], name="/wrong/Reshape"))
    with pytest.raises(IntegrityError, match=r"cannot run it: .*/wrong/Reshape"):
        opened(exported, wrong).logits(IDS)


def test_memory_that_runs_out_names_the_knob(exported, monkeypatch):
    session = opened(exported, exported.model)

    def short(*_: object, **__: object) -> None:
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(onnxruntime, "InferenceSession", short)
    with pytest.raises(ResourceError, match="no memory to open the graph") as refused:
        opened(exported, exported.model)
    assert "fewer bits" in refused.value.hint
    monkeypatch.setattr(type(session._session), "run_with_iobinding", short)
    with pytest.raises(ResourceError, match="no memory to run 2 rows of 9 tokens") as refused:
        session.logits(IDS)
    assert "fewer rows" in refused.value.hint


@pytest.mark.skipif(kernels_path() is None, reason="the kernels are not built")
def test_a_library_that_registers_nothing_is_told(exported, tmp_path, monkeypatch):
    import shutil
    import subprocess

    compiler = shutil.which("cc") or pytest.skip("no C compiler")
    empty = tmp_path / "libpythia_kernels.so"
    (tmp_path / "empty.c").write_text("void *RegisterCustomOps(void *options, void *base) { return 0; }\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(empty), str(tmp_path / "empty.c")], check=True)
    monkeypatch.setattr("pythia_export.runtime.speed.kernels_path", lambda provider: empty)
    with pytest.raises(EnvironmentProblem, match=r"libpythia_kernels\.so registers no operator of ours") as refused:
        opened(exported, exported.model)
    assert "make kernels" in refused.value.hint
    cut = tmp_path / "cut.so"
    whole = kernels_path()
    assert whole is not None
    monkeypatch.setattr("pythia_export.runtime.speed.kernels_path", lambda provider: cut)
    size = whole.stat().st_size
    for kept in (0, 40, 100_000, size // 2, size - 1):
        cut.write_bytes(whole.read_bytes()[:kept])
        with pytest.raises(EnvironmentProblem, match=r"cut\.so cannot be loaded"):
            opened(exported, exported.model)
