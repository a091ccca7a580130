"""The exported graph against Hugging Face's GPTNeoXForCausalLM, through stock ONNX Runtime."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from models import GEOMETRIES, InMemory, export_model, hugging_face, on_disk, small_config
from oracles import relative

from pythia_export.base.errors import RecipeError
from pythia_export.graph.cache_scales import unit_scales
from pythia_export.graph.decoder import PACKED, build_decoder, kv_cache
from pythia_export.graph.levels import with_accuracy_level
from pythia_export.graph.ops import rotary_attention
from pythia_export.graph.targets import WEB_BYTES, require_fit, warnings
from pythia_export.model.neox import NeoXConfig
from pythia_export.recipe import Export, Quantize, load_recipe, recipe_names
from pythia_export.runtime import Session
from pythia_export.weights.layout import layout, require_overrides_match
from pythia_export.weights.names import DATA_FILE

BATCH, LENGTH = 3, 11


LARGE = {size for size, (hidden, _) in GEOMETRIES.items() if hidden >= 2048}


@pytest.fixture(
    scope="module", params=[pytest.param(x, marks=pytest.mark.slow if x in LARGE else ()) for x in GEOMETRIES]
)
def oracle(request, tmp_path_factory):
    """One geometry: its float weights, exported, a left-padded batch, and Hugging Face's logits."""
    wide = GEOMETRIES[request.param][0] >= 2048
    config = small_config(layers=1 if wide else 2, size=request.param)
    model = hugging_face(config)
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(0, config.vocab_size, (BATCH, LENGTH)), np.ones((BATCH, LENGTH), np.int64)
    mask[1, :3] = mask[2, :7] = 0
    positions = np.clip(mask.cumsum(1) - 1, 0, None)
    with torch.no_grad():
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        logits = model(**{k: torch.from_numpy(v) for k, v in inputs.items()}).logits.numpy()
    graph = export_model(
        InMemory(config, on_disk(model)), tmp_path_factory.mktemp(request.param), Quantize(method="none"), Export()
    )
    yield graph, ids, mask, logits
    (graph.folder / DATA_FILE).unlink()  # up to half a gigabyte


@pytest.mark.parametrize("rotary", ["custom", "gqa", "onnx"])
def test_prefill_decode_and_left_padding_agree_with_hugging_face(oracle, rotary):
    graph, ids, mask, logits = oracle
    export = Export(rotary=rotary)
    graph = replace(graph, model=build_decoder(graph.config, graph.places, export), export=export)  # the same weights
    (graph.folder / "model.onnx").write_bytes(graph.model.SerializeToString())
    onnx.checker.check_model(str(graph.folder / "model.onnx"), full_check=True)
    session = graph.session()

    prefill = session.run(None, graph.feeds(ids, mask))
    assert relative(prefill[0], logits, mask) <= 1e-5

    past, steps = None, []
    for t in range(LENGTH):
        out = session.run(None, graph.feeds(ids[:, t : t + 1], mask[:, : t + 1], past))
        past = out[1:]
        steps.append(out[0])
    assert relative(np.concatenate(steps, 1), logits, mask) <= 1e-5
    for grown, at_once in zip(past, prefill[1:], strict=True):
        seen = np.broadcast_to(mask[:, None, :, None].astype(bool), grown.shape)
        assert np.abs(grown - at_once)[seen].max() <= 1e-5 * np.abs(at_once[seen]).max()

    # A prompt in two parts: the second sees the cache of the first.
    first = session.run(None, graph.feeds(ids[:1, :6], mask[:1, :6]))
    second = session.run(None, graph.feeds(ids[:1, 6:], mask[:1], first[1:]))
    assert relative(second[0], logits[:1, 6:], mask[:1, 6:]) <= 1e-5


def test_onnx_reference_evaluator_runs_the_standard_body(tmp_path):
    """No ONNX Runtime at all: the standard graph means what ONNX says it means."""
    from onnx.reference import ReferenceEvaluator

    config = small_config(layers=1)
    source = InMemory(config, on_disk(hugging_face(config)))
    graph = export_model(source, tmp_path, Quantize(method="none"), Export(rotary="onnx"))
    ids, mask = np.arange(10).reshape(2, 5), np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    expected = graph.session().run(None, graph.feeds(ids, mask))[0]
    got = ReferenceEvaluator(str(tmp_path / "model.onnx")).run(None, graph.feeds(ids, mask))[0]
    assert relative(got, expected, mask) <= 1e-5


@pytest.mark.parametrize("export", [Export(), Export(target="web"), Export(layout="transformers.js")])
@pytest.mark.parametrize("embedding", ["float32", "float16", "int8", "int4"])
def test_embedding_is_read_as_stored(embedding, export, tmp_path):
    config = small_config(layers=1)
    source = InMemory(config, on_disk(hugging_face(config)))
    graph = export_model(source, tmp_path, Quantize(method="none", embedding=embedding), export)
    fused = any(node.op_type == "GatherBlockQuantized" for node in graph.model.graph.node)
    assert fused == (embedding in ("int8", "int4") and export == Export()), "browsers do not have it"
    model = hugging_face(config)
    with torch.no_grad():
        model.gpt_neox.embed_in.weight.copy_(graph.reader().tensor("gpt_neox.embed_in.weight"))
        ids = torch.arange(96)[None, :60]
        expected = model(ids).logits.numpy()
    got = graph.session().run(None, graph.feeds(ids.numpy(), np.ones((1, 60), np.int64)))[0]
    assert relative(got, expected, np.ones((1, 60))) <= 1e-5
    stored = graph.reader().tensor("gpt_neox.embed_in.weight") - source.tensor("gpt_neox.embed_in.weight")
    assert (stored.abs().max() > 0) == (embedding in ("int8", "int4"))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("group_size", "symmetric"), [(32, True), (64, False), (-1, True)])
def test_quantised_graph_computes_with_the_weights_the_reader_gives_back(bits, group_size, symmetric, tmp_path):
    config = small_config(layers=2)
    source = InMemory(config, on_disk(hugging_face(config)))
    scheme = {"bits": bits, "group_size": group_size, "symmetric": symmetric}
    quantize = Quantize(method="rtn", **scheme, head={"method": "rtn", **scheme})
    graph = export_model(source, tmp_path, quantize, Export())
    model, reader = hugging_face(config), graph.reader()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(reader.tensor(name.replace("lm_head", "embed_out")))
        ids = torch.arange(60)[None]
        expected = model(ids).logits.numpy()
    got = graph.session().run(None, graph.feeds(ids.numpy(), np.ones((1, 60), np.int64)))[0]
    assert relative(got, expected, np.ones((1, 60))) <= 1e-5


def test_the_custom_op_is_carried_as_a_function_and_only_where_asked():
    config = small_config()
    quantize = Quantize(method="rtn")
    graphs = {r: build_decoder(config, layout(config, quantize, "float32"), Export(rotary=r)) for r in ROTARIES}
    ops = {r: {n.op_type for n in m.graph.node} for r, m in graphs.items()}
    assert [f.name for f in graphs["custom"].functions] == ["RotaryAttention"]
    assert "RotaryAttention" in ops["custom"] and "GroupQueryAttention" not in ops["custom"]
    assert not graphs["gqa"].functions and "GroupQueryAttention" in ops["gqa"]
    assert not graphs["onnx"].functions and "GroupQueryAttention" not in ops["onnx"] and "Softmax" in ops["onnx"]


ROTARIES = ("custom", "gqa", "onnx")


@pytest.mark.parametrize(("dtype", "last"), [("float32", "MatMulNBits"), ("float16", "Cast")])
def test_logits_are_what_the_head_computed_not_a_copy(dtype, last):
    export = Export(dtype=dtype, target="cpu" if dtype == "float32" else "cuda")
    made = build_decoder(small_config(), layout(small_config(), Quantize(method="rtn"), dtype), export)
    (node,) = (node for node in made.graph.node if "logits" in node.output)
    assert node.op_type == last


@pytest.mark.parametrize("rotary", ROTARIES)
def test_node_names_are_unique_and_tell_the_place(rotary):
    config = small_config(layers=3)
    model = build_decoder(config, layout(config, Quantize(method="rtn"), "float32"), Export(rotary=rotary))
    names = [n.name for n in model.graph.node]
    assert len(names) == len(set(names)) and all(n.startswith("/") for n in names)
    products = [n.name for n in model.graph.node if n.op_type == "MatMulNBits"]
    assert "/layers.2/mlp/dense_h_to_4h/MatMul" in products and len(products) == 3 * 4 + 1
    attention = [n for n in model.graph.node if n.output and n.output[-1].startswith("present.1.")]
    assert attention and all(n.name.startswith("/layers.1/attention/") for n in attention)


def test_accuracy_level_can_be_lowered_without_touching_the_original():
    config = small_config()
    model = build_decoder(config, layout(config, Quantize(method="rtn"), "float32"), Export(accuracy_level=4))
    before = model.SerializeToString()

    def products(m):
        found = [n for n in m.graph.node if n.op_type in PACKED]
        return {(n.domain, *(a.i for a in n.attribute if a.name == "accuracy_level")) for n in found}

    exact = with_accuracy_level(model, 0)
    assert products(exact) == {("com.microsoft", 0)} and [f.name for f in exact.functions] == ["RotaryAttention"]
    assert products(model) == {("pythia",)} and model.SerializeToString() == before


@pytest.mark.parametrize(
    ("quantize", "export", "ours"),
    [
        (Quantize(bits=4), Export(accuracy_level=4), True),
        (Quantize(bits=8), Export(accuracy_level=4), True),
        (Quantize(bits=3), Export(accuracy_level=4), True),  # stored in 4, as artifacts were that say nothing of it
        (Quantize(bits=2), Export(accuracy_level=4), True),
        (Quantize(bits=2, group_size=16), Export(accuracy_level=4), False),  # ONNX Runtime's keeps activations in float
        (Quantize(bits=4), Export(accuracy_level=0), False),
        (Quantize(bits=4), Export(accuracy_level=4, rotary="gqa"), False),
        (Quantize(bits=4), Export(accuracy_level=4, target="web"), False),
    ],
)
def test_products_of_int8_activations_are_called_where_a_kernel_of_ours_may_compute_them(quantize, export, ours):
    config = small_config()
    places = layout(config, quantize, "float32")
    model = build_decoder(config, places, export)
    layers = [n for n in model.graph.node if n.op_type in PACKED and n.name.startswith("/layers.")]
    called = ("pythia", "LinearNBits") if ours else ("com.microsoft", "MatMulNBits")
    assert {(n.domain, n.op_type) for n in layers} == {called}
    assert ours <= ("LinearNBits" in {f.name for f in model.functions})


def test_layout_aligns_and_never_overlaps():
    config = small_config(layers=3)
    slots = sorted(layout(config, Quantize(symmetric=False), "float32").slots.values(), key=lambda s: s.offset)
    for a, b in zip(slots, slots[1:], strict=False):
        assert a.offset + a.nbytes <= b.offset
    assert all(s.offset % (4096 if s.nbytes >= 4096 else 64) == 0 for s in slots)


@pytest.mark.parametrize(
    ("rotary", "kv_cache"),
    [*((rotary, None) for rotary in ROTARIES), ("custom", "float16"), ("custom", "int8"), ("gqa", "int8")],
)
@pytest.mark.parametrize("products", [4, 2])
def test_every_value_has_a_type_and_a_shape_and_a_name_of_its_own(rotary, kv_cache, products):
    config, quantize = small_config(layers=2), Quantize(method="rtn", products=products)
    export = Export(rotary=rotary, kv_cache=kv_cache)
    scales = unit_scales(config) if export.static_scales else None
    model = build_decoder(config, layout(config, quantize, "float32"), export, scales=scales)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    known = {
        v.name: v.type.tensor_type
        for v in (*inferred.input, *inferred.value_info, *inferred.output)
        if v.type.tensor_type.elem_type and v.type.tensor_type.HasField("shape")
    }
    values = [name for node in model.graph.node for name in node.output if name]
    assert not [name for name in values if name not in known]
    defaults = {x.name for x in model.graph.input} & {x.name for x in model.graph.initializer}
    assert not defaults  # every runtime warns of an input that has one
    given = [x.name for x in (*model.graph.input, *model.graph.initializer) if x.name not in defaults]
    assert len(given + values) == len({*given, *values})
    read = {name for node in model.graph.node for name in node.input}
    assert not [x.name for x in (*model.graph.input, *model.graph.initializer) if x.name not in read | {"position_ids"}]
    declared = [v.name for v in model.graph.value_info]
    assert len(declared) == len(set(declared))


@pytest.mark.parametrize("rotary", ROTARIES)
def test_a_graph_for_browsers_stays_within_what_they_run(rotary):
    """Opset 21; weights in one file beside a small graph, and a model that no browser could load is refused."""
    from pythia_export.model.suite import geometry

    config, quantize = geometry("EleutherAI/pythia-160m"), Quantize(method="rtn")
    places, export = layout(config, quantize, "float32"), Export(target="web", rotary=rotary)
    require_fit(config, places, export)
    model = build_decoder(config, places, export)
    assert {o.domain: o.version for o in model.opset_import}[""] == 21
    assert {o.domain for f in model.functions for o in f.opset_import} <= {"", "com.microsoft"}
    assert model.ByteSize() < 4e6 and places.nbytes <= WEB_BYTES
    locations = {e.value for x in model.graph.initializer for e in x.external_data if e.key == "location"}
    assert locations == {DATA_FILE}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch_size"
    too_large = layout(geometry("EleutherAI/pythia-6.9b"), quantize, "float32")
    with pytest.raises(RecipeError, match="at most 2.1 GB"):
        require_fit(config, too_large, export)
    require_fit(config, too_large, Export())


@pytest.mark.parametrize(
    ("hidden", "heads", "export", "embedding", "said"),
    [
        (80, 4, {}, "float16", "rotary = 'custom': heads of 20 dimensions; .* multiples of 8"),
        (80, 4, {"rotary": "gqa"}, "float16", "rotary = 'gqa': heads of 20 dimensions"),
        (80, 4, {"rotary": "onnx"}, "float16", None),
        (80, 4, {"kv_cache": "int8"}, "float16", None),
        (80, 2, {"target": "web"}, "int4", "with rows of 80; multiples of 32 were expected for target = 'web'"),
        (80, 2, {"layout": "transformers.js"}, "int8", "multiples of 32 were expected .* layout = 'transformers.js'"),
        (80, 2, {}, "int8", None),
        (96, 2, {"target": "web"}, "int4", None),
    ],
)
def test_a_geometry_that_no_operator_takes_is_refused_before_anything_is_quantised(
    hidden, heads, export, embedding, said, tmp_path
):
    config, quantize = (
        NeoXConfig(96, hidden, 1, heads, 256, max_positions=64, rotary_pct=1.0),
        Quantize(method="rtn", embedding=embedding),
    )
    chosen = Export(**export)
    places = layout(config, quantize, "float32")
    if said is not None:
        with pytest.raises(RecipeError, match=said):
            require_fit(config, places, chosen)
        return
    require_fit(config, places, chosen)
    export_model(InMemory(config, on_disk(hugging_face(config))), tmp_path, quantize, chosen)
    kept = {"kv_cache": kv_cache(chosen), "kv_dtype": chosen.cache_dtype, "native": False}
    opened = Session((tmp_path / "model.onnx").read_bytes(), tmp_path, config, **kept)
    assert np.isfinite(opened.logits(np.ones((1, 5), np.int64))).all()


def test_an_override_that_matches_nothing_is_an_error_that_names_what_there_is():
    config = small_config()
    require_overrides_match(config, Quantize(override=[{"pattern": "*.layers.1.*", "bits": 8}]))
    wrong = Quantize(override=[{"pattern": "*", "bits": 8}, {"pattern": "gpt_neox.layer.0.mlp.*", "bits": 8}])
    with pytest.raises(
        RecipeError, match=r"override.1: the pattern 'gpt_neox.layer.0.mlp.*' matches no linear .*layers.0.mlp"
    ):
        require_overrides_match(config, wrong)


@pytest.mark.parametrize(
    ("quantize", "export", "said"),
    [
        (
            {"bits": 8},
            {},
            "5 linears, gpt_neox.layers.0.attention.query_key_value first, of 8 bits",
        ),
        ({"bits": 4}, {}, "embed_out of 8 bits"),
        ({"bits": 2}, {}, "of 2 and 8 bits"),
        ({"bits": 4, "head": {"bits": 4}}, {}, None),
        ({"bits": 3, "head": {"method": "none"}}, {}, None),
        ({"bits": 8}, {"accuracy_level": 4}, None),
        ({"bits": 2, "group_size": 64}, {"accuracy_level": 4}, None),
        (
            {"bits": 2, "group_size": 16},
            {"accuracy_level": 4},
            "4 linears, .* of 2 bits in blocks of 16: accuracy_level",
        ),
        (
            {"bits": 2, "group_size": 256},
            {"accuracy_level": 4},
            "4 linears, .* of 2 bits in blocks of 256: accuracy_level",
        ),
        ({"bits": 2, "group_size": 16}, {"accuracy_level": 4, "target": "web"}, None),
        ({"bits": 8}, {"target": "cuda", "dtype": "float16"}, None),
        ({"method": "none"}, {}, None),
    ],
)
def test_what_onnx_runtime_has_no_fast_kernel_for_is_warned_of(quantize, export, said):
    config, chosen = small_config(layers=1, vocab=50304, size="410m", ff=4096), Export(**export)
    found = warnings(layout(config, Quantize(**({"method": "rtn"} | quantize)), chosen.dtype), chosen)
    assert len(found) == (said is not None) and re.search(said or "", "".join(found))


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_builds_a_valid_graph_without_weights(name, tmp_path):
    from pythia_export.model.suite import geometry

    recipe = load_recipe(name)
    config = geometry(recipe.model.id) or small_config()
    places = layout(config, recipe.quantize, recipe.export.dtype)
    model = build_decoder(config, places, recipe.export)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with (tmp_path / DATA_FILE).open("wb") as f:
        f.truncate(places.nbytes)  # a hole: the checker wants the file, nobody wants its bytes
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    assert model.ByteSize() < 4e6
    elements = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    expected = onnx.TensorProto.FLOAT16 if recipe.export.dtype == "float16" else onnx.TensorProto.FLOAT
    assert elements["past_key_values.0.key"] == expected


def test_attention_of_a_function_reads_what_the_function_is_given():
    """Of a computed shape ONNX Runtime before 1.31 infers another width, and opens no graph (make test-ranges)."""
    body = rotary_attention(small_config(size="70m"), standard=False)
    (attention,) = (node for node in body.node if node.op_type == "GroupQueryAttention")
    assert attention.input[0] == body.input[0] == "qkv"
    read = {name for node in body.node for name in node.input}
    assert set(body.input) <= read, "onnxslim removes what a body does not read"
