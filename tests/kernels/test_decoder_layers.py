"""pythia.Decoder in ONNX Runtime: the kernel against Hugging Face, and against the function in its place. And
pythia.DecoderLayers, which older artifacts have."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from models import GEOMETRIES, Exported, InMemory, export_model, hugging_face, on_disk, small_config
from native import LIBRARY, needs_library
from onnx import TensorProto, helper
from oracles import relative

from pythia_export.graph.decoder import build_decoder
from pythia_export.graph.levels import with_accuracy_level
from pythia_export.graph.trunk import MASK as MASK_NODE
from pythia_export.graph.trunk import TRUNK, TRUNKS, build_graph, without_trunk
from pythia_export.recipe import Export, Quantize
from pythia_export.runtime import Session
from pythia_export.weights.layout import layout

pytestmark = needs_library
CACHES = ("float32", "float16", "int8")
LEVEL_4 = Export(accuracy_level=4)
BATCH, LENGTH, PROMPT = 3, 14, 9
MASK = np.ones((BATCH, LENGTH), np.int64)
MASK[1, :3] = MASK[2, :7] = 0  # padding on the left


def exported(
    tmp_path: Path, quantize: Quantize, size: str = "14m", **config
) -> tuple[Exported, np.ndarray, np.ndarray]:
    """An artifact of random weights, a padded batch, and Hugging Face's logits by the weights that were stored."""
    of = replace(small_config(layers=2, size=size, ff=200), **config)
    source = InMemory(of, on_disk(hugging_face(of)))
    graph = export_model(source, tmp_path, quantize, Export())
    model, reader = hugging_face(of), graph.reader()
    ids = np.random.default_rng(0).integers(0, of.vocab_size, (BATCH, LENGTH))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(reader.tensor(name.replace("lm_head", "embed_out")))
        inputs = {"input_ids": ids, "attention_mask": MASK, "position_ids": np.clip(MASK.cumsum(1) - 1, 0, None)}
        logits = model(**{k: torch.from_numpy(v) for k, v in inputs.items()}).logits.numpy()
    return graph, ids, logits


def trunk_node(model: onnx.ModelProto) -> onnx.NodeProto | None:
    """Return the node that is all layers."""
    return next((node for node in model.graph.node if node.op_type in TRUNKS), None)


def older(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph as it was when the layers' node had not the final normalisation in it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    node = trunk_node(copy)
    function = next(f for f in copy.functions if f.name == TRUNK)
    ending = [each for each in function.node if each.name.startswith(("/last/", "/final_layer_norm/"))]
    kept = [each for each in function.node if each not in ending]
    copy.graph.initializer.extend(each.attribute[0].t for each in ending if each.op_type == "Constant")
    node.op_type = function.name = TRUNKS[1]
    node.output[0] = function.output[0] = kept[-1].output[0]
    del node.input[-4:], function.input[-4:], function.node[:]
    function.node.extend(kept)
    nodes = list(copy.graph.node)
    at = nodes.index(node) + 1
    del copy.graph.node[:]
    copy.graph.node.extend([*nodes[:at], *(each for each in ending if each.op_type != "Constant"), *nodes[at:]])
    return copy


def opened(
    graph: Exported, export: Export, native: bool = True, threads: int = 1, plain: bool = False, old: bool = False
) -> Session:
    served = export.model_copy(update={"accuracy_level": 4})
    model = build_decoder(graph.config, graph.places, export)
    if not plain:
        model = with_accuracy_level(build_graph(graph.config, graph.places, served), export.accuracy_level)
        model = older(model) if old else model
        assert trunk_node(model).op_type == TRUNKS[old]
    return Session(
        model.SerializeToString(),
        graph.folder,
        graph.config,
        kv_cache="shared",
        kv_dtype=export.cache_dtype,
        native=native,
        threads=threads,
    )


def logits_of(session: Session, ids: np.ndarray) -> np.ndarray:
    """Of a prompt in one pass, and then token by token."""
    cache = session.start(len(ids), LENGTH + 2)
    steps = [session.step(cache, ids[:, :PROMPT], MASK[:, :PROMPT])]
    steps += [session.step(cache, ids[:, t : t + 1], MASK[:, t : t + 1]) for t in range(PROMPT, LENGTH)]
    return np.concatenate(steps, 1)


@pytest.mark.parametrize("size", [x for x, (hidden, _) in GEOMETRIES.items() if hidden <= 1024])
def test_logits_are_those_of_hugging_face_to_float32s_rounding(size, tmp_path):
    scheme = {"bits": 4, "group_size": 32}
    graph, ids, wanted = exported(tmp_path, Quantize(method="rtn", **scheme, head={"method": "rtn", **scheme}), size)
    got = logits_of(opened(graph, Export()), ids)
    assert relative(got, wanted, MASK) <= 1e-5


@pytest.mark.parametrize(
    ("scheme", "config"),
    [
        ({"bits": 8, "group_size": 16, "symmetric": False}, {}),
        ({"bits": 8, "group_size": 64}, {"hidden_act": "mish"}),
        ({"bits": 3, "group_size": -1}, {"hidden_act": "gelu_new"}),
        ({"bits": 4, "group_size": 128}, {"parallel_residual": False}),
        ({"bits": 4, "group_size": 256}, {"hidden_act": "relu", "attention_bias": False}),
        ({"bits": 4, "override": [{"pattern": "*layers.1.mlp*", "bits": 8, "group_size": 16}]}, {"hidden_act": "silu"}),
    ],
)
def test_every_form_of_weights_and_residual_and_activation(scheme, config, tmp_path):
    graph, ids, wanted = exported(tmp_path, Quantize(method="rtn", **scheme), **config)
    assert relative(logits_of(opened(graph, Export()), ids), wanted, MASK) <= 1e-5


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("level", [0, 4])
def test_the_kernel_gives_what_the_function_gives(level, cache, tmp_path):
    graph, ids, _ = exported(tmp_path, Quantize(method="rtn", group_size=32))
    export = Export(accuracy_level=level, kv_cache=cache)
    got, wanted = (logits_of(opened(graph, export, native), ids) for native in (True, False))
    # A code of int8, in the cache or of an activation, may fall the other way where a float is near the middle.
    assert relative(got, wanted, MASK) <= (1e-5 if level == 0 and cache == "float32" else 2e-2)
    assert relative(got, logits_of(opened(graph, export, plain=True), ids), MASK) <= 2e-2


@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("native", [True, False])
def test_an_older_artifacts_node_without_the_final_normalisation_runs_as_before(native, level, tmp_path):
    graph, ids, _ = exported(tmp_path, Quantize(method="rtn", group_size=32))
    export = Export(accuracy_level=level)
    old, new = (opened(graph, export, native, old=old) for old in (True, False))
    assert old.speed == ("native" if native else "function")
    assert relative(logits_of(old, ids), logits_of(new, ids), MASK) <= (1e-5 if level == 0 else 2e-2)
    served = build_graph(graph.config, graph.places, LEVEL_4)
    assert list(without_trunk(older(served)).graph.node) == list(without_trunk(served).graph.node)


@pytest.mark.parametrize("config", [{}, {"parallel_residual": False}])
@pytest.mark.parametrize("level", [0, 4])
def test_the_last_tokens_alone_get_the_logits_that_they_get_among_all(level, config, tmp_path):
    """For the others nothing is computed behind the last layer's attention; what is cached is the same."""
    graph, ids, _ = exported(tmp_path, Quantize(method="rtn", group_size=32), **config)
    export = Export(accuracy_level=level)
    session, function = (opened(graph, export, native) for native in (True, False))
    near = 1e-5 if level == 0 else 2e-2
    for keep in (1, 3, PROMPT, PROMPT + 5):
        cache, whole, by_function = (x.start(BATCH, LENGTH) for x in (session, session, function))
        got = session.step(cache, ids[:, :PROMPT], MASK[:, :PROMPT], keep=keep)
        wanted = session.step(whole, ids[:, :PROMPT], MASK[:, :PROMPT])
        kept = min(keep, PROMPT)
        assert got.shape == (BATCH, kept, graph.config.vocab_size)
        assert relative(got, wanted[:, -kept:], MASK[:, :PROMPT][:, -kept:]) <= near
        other = function.step(by_function, ids[:, :PROMPT], MASK[:, :PROMPT], keep=keep)
        assert relative(got, other, MASK[:, :PROMPT][:, -kept:]) <= near
        steps = [session.step(x, ids[:, PROMPT:], MASK[:, PROMPT:]) for x in (cache, whole)]
        assert np.array_equal(*steps), "keys and values are those of all tokens"


@pytest.mark.parametrize("level", [0, 4])
def test_threads_change_nothing(level, tmp_path):
    graph, ids, _ = exported(tmp_path, Quantize(method="rtn"), size="410m")
    export = Export(accuracy_level=level)
    one, two = (opened(graph, export, threads=threads) for threads in (1, 2))
    long = np.tile(ids, (1, 4))[:, :40]
    most = 0 if level == 4 else 1e-5  # at level 0 the head is ONNX Runtime's, which shares sums out by threads
    assert np.abs(one.logits(long) - two.logits(long)).max() <= most
    assert np.abs(logits_of(one, ids) - logits_of(two, ids)).max() <= most


def test_a_growing_cache_is_copied_and_a_shared_one_is_not(tmp_path):
    graph, ids, _ = exported(tmp_path, Quantize(method="rtn"))
    wanted = logits_of(opened(graph, LEVEL_4), ids)
    session = node_session(build_graph(graph.config, graph.places, LEVEL_4), graph.folder)
    first = session.run(None, graph.feeds(ids[:, :PROMPT], MASK[:, :PROMPT]))
    second = session.run(None, graph.feeds(ids[:, PROMPT:], MASK, first[1:]))
    assert relative(np.concatenate([first[0], second[0]], 1), wanted, MASK) <= 2e-2  # rounding, as above


def node_session(model: onnx.ModelProto, folder: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    options.register_custom_ops_library(str(LIBRARY))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def test_without_it_the_graph_is_the_one_operator_by_operator():
    config = small_config(layers=3)
    for export in (LEVEL_4, Export(accuracy_level=4, kv_cache="int8")):
        places = layout(config, Quantize(method="rtn"), "float32")
        plain, folded = build_decoder(config, places, export), build_graph(config, places, export)
        assert len(folded.graph.node) <= 6 < len(plain.graph.node)
        back = without_trunk(folded)
        assert list(back.graph.node) == list(plain.graph.node) and list(back.functions) == list(plain.functions)
        names = [sorted(tensor.name for tensor in m.graph.initializer) for m in (back, plain)]
        assert names[0] == names[1]
        values = [sorted(value.SerializeToString() for value in m.graph.value_info) for m in (back, plain)]
        assert values[0] == values[1]
        assert without_trunk(plain) == plain


@pytest.mark.parametrize(
    ("quantize", "export"),
    [
        (Quantize(method="rtn"), Export()),
        (Quantize(method="none"), Export(accuracy_level=4)),
        (Quantize(method="rtn", bits=2, group_size=16), Export(accuracy_level=4)),
        (Quantize(method="rtn", products=2), Export(accuracy_level=4)),
        (Quantize(method="rtn"), Export(accuracy_level=4, rotary="gqa")),
        (Quantize(method="rtn"), Export(target="web")),
        (Quantize(method="rtn"), Export(target="cuda", dtype="float16")),
    ],
)
def test_what_the_kernel_does_not_serve_is_called_operator_by_operator(quantize, export):
    config = small_config()
    places = layout(config, quantize, export.dtype)
    assert build_graph(config, places, export) == build_decoder(config, places, export)


def test_another_level_is_the_same_graph_at_it(tmp_path):
    graph, ids, wanted = exported(tmp_path, Quantize(method="rtn", group_size=32))
    model = with_accuracy_level(build_graph(graph.config, graph.places, Export(accuracy_level=4)), 0)
    session = Session(model.SerializeToString(), graph.folder, graph.config, kv_cache="shared")
    assert session.speed == "native" and relative(logits_of(session, ids), wanted, MASK) <= 1e-5


def broken(tmp_path: Path, change) -> onnxruntime.InferenceSession:
    config = small_config(layers=2)
    source = InMemory(config, on_disk(hugging_face(config)))
    graph = export_model(source, tmp_path, Quantize(method="rtn", symmetric=False), Export())
    model = build_graph(config, graph.places, LEVEL_4)
    change(model, {a.name: a for a in trunk_node(model).attribute})
    return node_session(model, graph.folder)


def reshaped(name: str, dims: list[int]):
    def change(model, _):
        tensor = next(x for x in model.graph.initializer if x.name == name)
        tensor.dims[:] = dims

    return change


def attribute(name: str, **fields):
    def change(_, attributes):
        for field, value in fields.items():
            if field == "ints":
                del attributes[name].ints[:]
                attributes[name].ints.extend(value)
            else:
                setattr(attributes[name], field, value)

    return change


LAYER = "gpt_neox.layers.1"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (attribute("num_heads", i=3), "the width is 128; a multiple of num_heads 3 was expected"),
        (attribute("rotary_dim", i=7), "rotary_dim is 7; an even number was expected"),
        (attribute("accuracy_level", i=2), "accuracy_level is 2; 0 or 4 was expected"),
        (attribute("activation", s=b"tanh"), "activation is tanh; gelu, for example, was expected"),
        (attribute("bits", ints=[4] * 7), "bits, zero_points and biases have 7, 8 and 8 numbers; 4 for each layer"),
        (attribute("bits", ints=[4] * 6 + [5, 4]), "bits is 5 for dense_h_to_4h of layer 1; 2, 3, 4 or 8 was expected"),
        (attribute("biases", ints=[0] + [1] * 7), "it has 55 inputs; 50 and 2 or 4 caches for each of 2 layers"),
        (
            reshaped(f"{LAYER}.post_attention_layernorm.weight", [64, 2]),
            "post_attention_layernorm.weight of layer 1 is [64, 2]; [128] was expected",
        ),
        (
            reshaped(f"{LAYER}.mlp.dense_4h_to_h.qweight", [128, 128, 1]),
            "dense_4h_to_h.qweight of layer 1 is [128, 128, 1]; blocks of 16, 32, 64, 128 or 256 codes of 4 bits for",
        ),
        (
            reshaped(f"{LAYER}.attention.dense.scales", [1, 128]),
            "dense.scales of layer 1 is [1, 128]; [128, 1] was expected",
        ),
    ],
)
def test_a_node_that_makes_no_sense_is_refused_when_the_session_opens(change, words, tmp_path):
    with pytest.raises(Exception, match=re.escape(f"pythia::{TRUNK} /layers: {words}")):
        broken(tmp_path, change)


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("position_ids", lambda x: x * 0 - 1, "position_ids holds -1; cos has 64 positions"),
        (
            "past_key_values.1.value",
            lambda x: x[:, :, :3],
            "past_key_values.1.value is [3, 4, 3, 32]; [3, 4, 9, 32] was",
        ),
        (
            "past_key_values.0.key",
            lambda x: x[:2],
            "past_key_values.0.key is [2, 4, 9, 32]; [3, 4, ?, 32] was expected",
        ),
    ],
)
def test_bad_input_is_an_error_that_names_node_input_found_and_expected(name, make, words, tmp_path):
    graph, ids, _ = exported(tmp_path, Quantize(method="rtn"))
    session = node_session(build_graph(graph.config, graph.places, LEVEL_4), graph.folder)
    first = session.run(None, graph.feeds(ids[:, :PROMPT], MASK[:, :PROMPT]))
    feeds = graph.feeds(ids[:, PROMPT:], MASK, first[1:])
    session.run(None, feeds)
    with pytest.raises(Exception, match=re.escape(f"pythia::{TRUNK} /layers: {words}")):
        session.run(None, feeds | {name: make(feeds[name])})


@pytest.mark.parametrize(
    ("keep", "new", "words"),
    [
        (-1, LENGTH - PROMPT, "num_logits_to_keep is -1; 0 or more was expected"),
        (-(2**63), LENGTH - PROMPT, f"num_logits_to_keep is {-(2**63)}; 0 or more was expected"),
        (1, LENGTH, f"the number of new tokens is {LENGTH} and x has {LENGTH - PROMPT}; the same number was expected"),
    ],
)
def test_an_ending_that_makes_no_sense_is_an_error(keep, new, words, tmp_path):
    graph, ids, _ = exported(tmp_path, Quantize(method="rtn"))
    model = build_graph(graph.config, graph.places, LEVEL_4)
    next(x for x in model.graph.initializer if x.name == "num_logits_to_keep").int64_data[:] = [keep]
    model.graph.initializer.append(helper.make_tensor("told", TensorProto.INT64, [1], [new]))
    trunk_node(model).input[-3] = "told"
    session = node_session(model, graph.folder)
    with pytest.raises(Exception, match=re.escape(f"pythia::{TRUNK} /layers: {words}")):
        session.run(None, graph.feeds(ids[:, PROMPT:], MASK[:, PROMPT:]))


def mask_session(native: bool) -> onnxruntime.InferenceSession:
    """The mask's node by itself: with our kernel, or by its function."""
    config = small_config()
    whole = build_graph(config, layout(config, Quantize(method="rtn"), "float32"), LEVEL_4)
    node = next(node for node in whole.graph.node if node.op_type == MASK_NODE)
    value, kinds = helper.make_tensor_value_info, (TensorProto.INT32, TensorProto.INT32, TensorProto.FLOAT)
    inputs = [value(node.input[0], TensorProto.INT64, ["b", "t"]), value(node.input[1], TensorProto.INT64, [1])]
    outputs = [value(name, kind, None) for name, kind in zip(node.output, kinds, strict=True)]
    whole.graph.CopyFrom(helper.make_graph([node], "mask", inputs, outputs))
    if native:
        return node_session(whole, Path())
    return onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])


def test_the_masks_node_gives_what_its_function_gives():
    kernel, function, rng = mask_session(True), mask_session(False), np.random.default_rng(0)
    for batch, total in [(1, 1), (1, 130), *rng.integers(1, 40, (20, 2))]:
        feeds = {"attention_mask": rng.integers(0, 2, (batch, total)) * rng.choice([1, -3, 2**40], (batch, total))}
        feeds["/mask/new/out0"] = rng.integers(1, total + 1, 1)
        got, wanted = kernel.run(None, feeds), function.run(None, feeds)
        assert all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in zip(got, wanted, strict=True))


@pytest.mark.parametrize(
    ("shape", "new", "words"),
    [
        ((2, 3), 4, "attention_mask is [2, 3] and 4 tokens are new; at least as many columns as new tokens were"),
        ((2, 3), 0, "attention_mask is [2, 3] and 0 tokens are new; at least as many columns as new tokens were"),
        ((0, 3), 1, "attention_mask is [0, 3]; at least one row and one token were expected"),
    ],
)
def test_a_mask_that_makes_no_sense_is_an_error_that_says_what_was_expected(shape, new, words):
    feeds = {"attention_mask": np.ones(shape, np.int64), "/mask/new/out0": np.array([new])}
    with pytest.raises(Exception, match=re.escape(f"pythia::{MASK_NODE} /mask: {words}")):
        mask_session(True).run(None, feeds)
