"""What a quantiser gives does not depend on the units that a checkpoint's channels happen to have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import Exported, InMemory, export_model, hugging_face, on_disk
from rescaled import rescaled

from pythia_export.base.errors import NumericsError
from pythia_export.calibrate import quantize_together
from pythia_export.calibrate.balance import Balanced, canonical
from pythia_export.model.block import Block, Rotary, final_norm, head
from pythia_export.model.likelihood import log_softmax
from pythia_export.model.neox import EMBEDDING, HEAD, NORMS, QKV, NeoXConfig, layer_tensors, tensors
from pythia_export.recipe import Export, Quantize
from pythia_export.weights.layout import layout
from pythia_export.weights.writer import WeightsWriter

TINY = NeoXConfig(96, 64, 2, 2, 128, max_positions=64)
FAMILY = {
    "pythia": TINY,
    "sequential": replace(TINY, parallel_residual=False),
    "no biases": replace(TINY, attention_bias=False),
    "all turned": replace(TINY, rotary_pct=1.0),
    "an odd dimension": replace(TINY, rotary_pct=0.22),
}
WINDOWS = np.random.default_rng(0).integers(0, 96, (48, 32))
HELD_OUT = np.random.default_rng(1).integers(0, 96, (24, 32))


def source(config: NeoXConfig = TINY) -> InMemory:
    return InMemory(config, on_disk(hugging_face(config)))


def logits(model, config: NeoXConfig, ids: np.ndarray = HELD_OUT) -> np.ndarray:
    """In torch, from anything that has the tensors of a checkpoint."""
    rotary = Rotary.of(config, ids.shape[1], torch.float32)
    with torch.inference_mode():
        x = model.tensor(f"{EMBEDDING}.weight")[torch.from_numpy(ids)].float()
        for layer in range(config.num_layers):
            weights = {spec.name: model.tensor(spec.name).float() for spec in layer_tensors(config, layer)}
            x = Block(config, layer, weights.__getitem__)(x, rotary)
        return head(final_norm(x, config, model.tensor), model.tensor).numpy()


def divergence(original: np.ndarray, got: np.ndarray) -> float:
    """Mean KL divergence in nats a token."""
    p, q = log_softmax(original), log_softmax(got)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def at_level(exported: Exported, ids: np.ndarray = HELD_OUT) -> np.ndarray:
    """The graph's own logits, at the accuracy level that it was made for."""
    return exported.session().run(["logits"], exported.feeds(ids, np.ones_like(ids)))[0]


@pytest.mark.parametrize("config", FAMILY.values(), ids=FAMILY)
def test_a_canonical_model_is_an_equal_one_and_the_same_of_every_rescaled_copy(config):
    original = source(config)
    one, wanted = Balanced(original, head=True), logits(original, config)
    assert np.abs(logits(one, config) - wanted).max() < 2e-5
    for seed in range(2):
        other = Balanced(rescaled(original, outliers=1e4, spread=3.0, seed=seed), head=True)
        for spec in tensors(config):
            assert torch.allclose(one.tensor(spec.name), other.tensor(spec.name), rtol=2e-6, atol=2e-6), spec.name


@pytest.mark.parametrize("settings", [{}, {"products": 2}, {"error_correction": False}], ids=str)
def test_a_rescaled_copy_is_quantised_as_well_as_the_original(settings, tmp_path):
    """At level 0 within a tenth of the KL divergence, with activations of int8 within a fifth."""
    original, found = source(), {}
    wanted = logits(original, TINY)
    for name, model in (("original", original), ("copy", rescaled(original))):
        (tmp_path / name).mkdir()
        quantize = Quantize(group_size=32, **settings)
        exported = export_model(model, tmp_path / name, quantize, Export(accuracy_level=4), WINDOWS)
        levels = logits(exported.reader(), TINY), at_level(exported)
        found[name] = [divergence(wanted, got) for got in levels]
    assert found["copy"][0] == pytest.approx(found["original"][0], rel=0.1)
    assert found["copy"][1] == pytest.approx(found["original"][1], rel=0.2)


def test_what_was_found_without_it_is_what_it_is_for(tmp_path):
    """Switched off, four channels in 64 that are 50 times as large cost more than half again."""
    original, found = source(), []
    for name, model in (("original", original), ("copy", rescaled(original, spread=0.0))):
        (tmp_path / name).mkdir()
        quantize = Quantize(group_size=32, balance=False, beam=1, error_correction=False)
        exported = export_model(model, tmp_path / name, quantize, Export(), WINDOWS)
        found.append(divergence(logits(original, TINY), logits(exported.reader(), TINY)))
    assert found[1] > 1.5 * found[0], found


def test_round_to_nearest_and_float_keep_the_checkpoints_units():
    original = source()
    for quantize in (Quantize(method="rtn"), Quantize(method="none"), Quantize(balance=False)):
        assert canonical(original, quantize) is original
    kept = canonical(original, Quantize(head={"method": "none"}))
    assert kept.tensor(f"{HEAD}.weight") is original.tensor(f"{HEAD}.weight")


def test_a_gain_that_float16_cannot_hold_needs_no_float32(tmp_path):
    sick = rescaled(source(), outliers=1e7, spread=0.0)
    assert sick.tensor(f"gpt_neox.layers.0.{NORMS[0]}.weight").abs().max() > 65504
    exported = export_model(sick, tmp_path, Quantize(group_size=32), Export(target="cuda", dtype="float16"), WINDOWS)
    cost = divergence(logits(source(), TINY), logits(exported.reader(), TINY))
    assert cost < 0.05, cost


@pytest.mark.parametrize("biased", [True, False])
def test_gains_of_zero_columns_of_zero_and_values_that_nothing_reads_stay_what_they_are(biased):
    config = replace(TINY, attention_bias=biased)
    original = source(config)
    prefix = "gpt_neox.layers.0"
    original.tensors[f"{prefix}.{NORMS[0]}.weight"][:3] = 0
    original.tensors[f"{prefix}.{NORMS[0]}.bias"][1:4] = 0
    original.tensors[f"{prefix}.{NORMS[1]}.weight"][:] = 0  # what h_to_4h reads is constant
    original.tensors[f"{prefix}.{QKV}.weight"][:, 5] = 0
    original.tensors[f"{prefix}.{QKV}.weight"][70] = 0  # a row of k
    original.tensors[f"{prefix}.attention.dense.weight"][:, :2] = 0
    original.tensors["gpt_neox.final_layer_norm.weight"][0] = 0
    one = Balanced(original, head=True)
    assert np.abs(logits(one, config) - logits(original, config)).max() < 2e-5
    assert all(torch.isfinite(one.tensor(spec.name)).all() for spec in tensors(config))


def test_a_constant_channel_is_quantised(tmp_path):
    original = source()
    original.tensors[f"gpt_neox.layers.1.{NORMS[1]}.weight"][:] = 0
    exported = export_model(original, tmp_path, Quantize(group_size=32, beam=1), Export(), WINDOWS)
    assert divergence(logits(original, TINY), logits(exported.reader(), TINY)) < 0.05


@pytest.mark.parametrize("linear", ["attention.dense.weight", f"{QKV}.weight", f"{NORMS[1]}.weight", f"{QKV}.bias"])
def test_what_is_not_finite_spreads_to_no_other_tensor(linear):
    """So that the error names the tensor that it is in."""
    sick, name = source(), f"gpt_neox.layers.1.{linear}"
    sick.tensor(name).view(-1)[70 % sick.tensor(name).numel()] = float("nan")
    one = Balanced(sick, head=True)
    assert not torch.isfinite(one.tensor(name)).all()
    assert all(torch.isfinite(one.tensor(spec.name)).all() for spec in tensors(TINY) if spec.name != name)


def test_quantisations_of_several_forms_do_not_go_together(tmp_path):
    asked = {"group_size": 32, "hessian": "original", "error_correction": False}
    with pytest.raises(ValueError, match="of one form"):
        writers = [
            WeightsWriter(tmp_path / str(b), layout(TINY, Quantize(balance=b, **asked), "float32")) for b in (0, 1)
        ]
        quantize_together(source(), writers, WINDOWS)


def test_a_shift_that_the_stored_type_cannot_hold_names_the_bias(tmp_path):
    """The shift goes into the bias: where the function itself needs more than float16 holds, it is refused by name."""
    sick = source()
    sick.tensors[f"gpt_neox.layers.0.{NORMS[1]}.bias"][:] = 1e6
    with pytest.raises(NumericsError, match=r"layers\.0\.mlp\.dense_h_to_4h\.bias has a value of .* float16"):
        export_model(sick, tmp_path, Quantize(group_size=32, beam=1), Export(target="cuda", dtype="float16"), WINDOWS)


def massive(size: float) -> InMemory:
    """A model with a neuron that fires at the first token alone, as much as `size` says, and that nothing reads."""
    found = source()
    t = {name: tensor.double() for name, tensor in found.tensors.items()}
    prefix, n = "gpt_neox.layers.0", 17
    z = torch.nn.functional.layer_norm(t[f"{EMBEDDING}.weight"], (TINY.hidden_size,))
    row = z[0] / z[0].norm() / t[f"{prefix}.{NORMS[1]}.weight"]
    at_others = float((z[1:] @ (z[0] / z[0].norm())).max())
    middle = (float(z[0].norm()) + at_others) / 2 + float(row @ t[f"{prefix}.{NORMS[1]}.bias"])
    steep = 20 / (float(z[0].norm()) - at_others)  # 10 at the first token, -10 at the next likest
    t[f"{prefix}.mlp.dense_h_to_4h.weight"][n] = steep * size * row
    t[f"{prefix}.mlp.dense_h_to_4h.bias"][n] = -steep * size * middle
    t[f"{prefix}.mlp.dense_4h_to_h.weight"][:, n] = 0
    return InMemory(TINY, {name: tensor.float() for name, tensor in t.items()})


def test_a_massive_activation_of_the_first_token_costs_the_others_nothing(tmp_path):
    """It took the mean of the Hessian's diagonal with it, and so damped all else away."""
    first = np.zeros((len(WINDOWS), 1), int)
    windows, held_out = (np.concatenate((first[: len(x)], x % 95 + 1), 1) for x in (WINDOWS, HELD_OUT))
    found, wanted = {}, logits(massive(1), TINY, held_out)
    for size in (1.0, 1e4):
        model = massive(size)
        assert np.abs(logits(model, TINY, held_out) - wanted).max() < 1e-4
        (tmp_path / str(size)).mkdir()
        exported = export_model(model, tmp_path / str(size), Quantize(group_size=32), Export(), windows)
        found[size] = divergence(wanted, logits(exported.reader(), TINY, held_out))
    assert found[1e4] == pytest.approx(found[1.0], rel=0.1), found


def _one_token(t: dict[str, torch.Tensor]) -> None:
    """All tokens look alike: no input of any linear varies."""
    t[f"{EMBEDDING}.weight"][:] = t[f"{EMBEDDING}.weight"][0]


def _no_gains(t: dict[str, torch.Tensor]) -> None:
    for layer in range(TINY.num_layers):
        for norm in NORMS:
            t[f"gpt_neox.layers.{layer}.{norm}.weight"][:] = 0


def _no_weights(t: dict[str, torch.Tensor]) -> None:
    for name, tensor in t.items():
        if "layers" in name and tensor.ndim == 2:
            tensor[:] = 0


def _huge_units(t: dict[str, torch.Tensor]) -> None:
    """Products that float32 holds, of numbers near either end of it: a LayerNorm's channel, v, q against k."""
    prefix, d = "gpt_neox.layers.0", TINY.head_dim
    t[f"{prefix}.{NORMS[0]}.weight"][3] *= 1e30
    t[f"{prefix}.{NORMS[0]}.bias"][3] *= 1e30
    t[f"{prefix}.{QKV}.weight"][:, 3] *= 1e-30
    for rows, by in ((slice(0, d), 1e18), (slice(d, 2 * d), 1e-18), (slice(2 * d, 3 * d), 1e18)):
        t[f"{prefix}.{QKV}.weight"][rows] *= by
        t[f"{prefix}.{QKV}.bias"][rows] *= by
    t[f"{prefix}.attention.dense.weight"][:, :d] *= 1e-18


@pytest.mark.parametrize("export", [Export(), Export(target="cuda", dtype="float16")], ids=["float32", "float16"])
@pytest.mark.parametrize("damage", [_one_token, _no_gains, _no_weights, _huge_units])
def test_inputs_that_do_not_vary_and_units_at_the_ends_of_float32_cost_no_more_than_rounding_does(
    damage, export, tmp_path
):
    sick = source()
    damage(sick.tensors)
    exported = export_model(sick, tmp_path, Quantize(group_size=32), export, WINDOWS)
    assert divergence(logits(sick, TINY), logits(exported.reader(), TINY)) < 0.02
