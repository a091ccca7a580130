"""Two matrix products a layer: the same model, in other matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import InMemory, export_model, hugging_face, on_disk, small_config
from oracles import relative

from pythia_export.base.errors import RecipeError
from pythia_export.calibrate import allocate
from pythia_export.model.block import Block, Rotary, final_norm, head
from pythia_export.model.neox import EMBEDDING, LINEARS, QKV, layer_tensors
from pythia_export.recipe import Export, Override, Quantize
from pythia_export.weights.layout import layout

WINDOWS = np.random.default_rng(0).integers(0, 96, (40, 32))
IDS = np.random.default_rng(1).integers(0, 96, (2, 9))
ALL = np.ones_like(IDS)


def source(size: str = "14m", layers: int = 2) -> InMemory:
    config = small_config(layers=layers, size=size)
    return InMemory(config, on_disk(hugging_face(config)))


def stream(tensors, config, ids: np.ndarray) -> torch.Tensor:
    """The last layer's output in torch, from anything that has the tensors of a checkpoint."""
    x, rotary = (
        tensors.tensor(f"{EMBEDDING}.weight")[torch.from_numpy(ids)],
        Rotary.of(config, ids.shape[1], torch.float32),
    )
    with torch.inference_mode():
        for layer in range(config.num_layers):
            names = [spec.name for spec in layer_tensors(config, layer)]
            x = Block(config, layer, {name: tensors.tensor(name) for name in names}.__getitem__)(x, rotary)
    return x


def logits(tensors, config) -> np.ndarray:
    return head(final_norm(stream(tensors, config, IDS), config, tensors.tensor), tensors.tensor).numpy()


@pytest.mark.parametrize("size", ["14m", "70m", "160m", "2.8b"])
def test_in_float_it_is_the_original_model(size, tmp_path):
    original = source(size, layers=1)
    quantize = Quantize(method="none", embedding="float32", products=2)
    graph = export_model(original, tmp_path, quantize, Export())
    with torch.no_grad():
        wanted = hugging_face(original.config)(torch.from_numpy(IDS)).logits.numpy()
    session = graph.session()
    assert relative(session.run(None, graph.feeds(IDS, ALL))[0], wanted, ALL) <= 1e-5
    past = None
    for t in range(IDS.shape[1]):
        out, *past = session.run(None, graph.feeds(IDS[:, t : t + 1], ALL[:, : t + 1], past))
    assert relative(out, wanted[:, -1:], ALL[:, -1:]) <= 1e-5


@pytest.mark.parametrize("rotary", ["custom", "gqa", "onnx"])
@pytest.mark.parametrize(
    "scheme",
    [{"group_size": -1}, {"group_size": 32}, {"group_size": 32, "symmetric": False}, {"bits": 3}, {"bits": 8}],
    ids=str,
)
def test_the_graph_computes_what_the_stored_weights_stand_for(scheme, rotary, tmp_path):
    graph = export_model(source(), tmp_path, Quantize(products=2, **scheme), Export(rotary=rotary), WINDOWS)
    products = [n for n in graph.model.graph.node if n.op_type == "MatMulNBits" and n.name.startswith("/layers.0/")]
    assert [n.name for n in products] == ["/layers.0/fused_in/MatMul", "/layers.0/fused_out/MatMul"]
    wanted = logits(graph.reader(), graph.config)
    assert relative(graph.session().run(None, graph.feeds(IDS, ALL))[0], wanted, ALL) <= 1e-5


def test_each_linear_is_rounded_as_in_a_layer_of_four_products(tmp_path):
    """Seen from the quantiser, an equal model with other norms: nothing else may differ."""
    from pythia_export.calibrate.fold_norms import Folded

    folded = Folded(source())
    assert np.abs(logits(folded, folded.config) - logits(source(), folded.config)).max() < 1e-5
    plain = InMemory(folded.config, {name: folded.tensor(name) for name in source().tensors})
    (tmp_path / "two").mkdir()
    settings = {"group_size": 32, "error_correction": False, "balance": False}
    four = export_model(plain, tmp_path, Quantize(**settings), Export(), WINDOWS)
    two = export_model(source(), tmp_path / "two", Quantize(products=2, **settings), Export(), WINDOWS)
    for layer in range(2):
        for linear in LINEARS:
            name = f"gpt_neox.layers.{layer}.{linear}.weight"
            assert torch.equal(two.reader().tensor(name), four.reader().tensor(name)), name
    assert two.places.bits_per_weight == four.places.bits_per_weight


def test_the_norms_scale_is_shared_and_moves_little_into_the_weights(tmp_path):
    graph = export_model(source(), tmp_path, Quantize(method="none", products=2), Export())
    scales = [
        graph.reader().tensor(f"gpt_neox.layers.1.{n}.weight") for n in ("input_layernorm", "post_attention_layernorm")
    ]
    assert torch.equal(*scales) and 0.7 < float(scales[0].mean()) < 1.3
    assert not any(name.endswith("layernorm.bias") for name in graph.places.slots if ".layers." in name)


def test_the_error_that_is_recorded_is_that_of_the_stored_weights(tmp_path):
    """dense has no bias to take its mean: 4h_to_h's does, and nothing that is not stored is counted on."""
    original = source()
    two = export_model(
        original, tmp_path, Quantize(bits=2, group_size=32, embedding="float32", products=2), Export(), WINDOWS
    )
    wanted, got = (stream(tensors, original.config, WINDOWS).double() for tensors in (original, two.reader()))
    error = float((got - wanted).square().sum() / wanted.square().sum())
    assert two.record["layers"][-1]["residual_error"] == pytest.approx(error, rel=1e-4)
    assert not two.reader().tensor("gpt_neox.layers.0.attention.dense.bias").any()


@pytest.mark.parametrize(
    ("settings", "size", "words"),
    [
        ({"override": (Override(pattern="*.attention.dense", bits=8),)}, "14m", "attention.dense .*4h_to_h"),
        ({"override": (Override(pattern=f"*.{QKV}", method="none"),)}, "14m", "query_key_value .*h_to_4h"),
        ({"group_size": 256}, "14m", "128 columns .* block of 256"),
        ({"group_size": 128, "symmetric": False}, "14m", "byte of zero points"),
    ],
)
def test_what_cannot_share_a_matrix_is_refused_by_name(settings, size, words):
    with pytest.raises(RecipeError, match=words):
        layout(small_config(size=size), Quantize(products=2, **settings), "float32")


def test_a_budget_raises_both_linears_of_a_matrix(tmp_path):
    original, quantize = source(), Quantize(group_size=32, products=2, bits_per_weight=7.0)
    found, allocation = allocate(original, quantize, "float32", WINDOWS)
    assert 0 < len(allocation.raised) < 8 and len(allocation.raised) % 2 == 0
    places = layout(original.config, found, "float32")  # refuses halves
    assert places.bits_per_weight <= 7.0
