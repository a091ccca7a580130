"""The layer loop: what GPTQ observes, what is written, and what is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import InMemory, export_model, hugging_face, on_disk, small_config

from pythia_export.base.errors import IntegrityError, NumericsError
from pythia_export.recipe import Export, Override, Quantize, Scheme
from pythia_export.rounding.gptq import factor, gptq, row_errors
from pythia_export.weights.layout import layout
from pythia_export.weights.reader import WeightsReader
from pythia_export.weights.writer import WeightsWriter

WINDOWS = np.random.default_rng(0).integers(0, 96, (40, 32))


def source(layers: int = 3) -> InMemory:
    config = small_config(layers=layers)
    return InMemory(config, on_disk(hugging_face(config)))


@pytest.mark.parametrize("beam", [1, 8])
def test_each_linear_is_calibrated_on_what_the_quantised_layers_before_it_give(tmp_path, beam):
    """The oracle is Hugging Face's model, fully quantised, with a hook on every linear.

    Inputs of a linear depend on nothing behind it, so they are those that GPTQ must have observed.
    """
    original = source()
    quantize = Quantize(bits=3, group_size=32, beam=beam, error_correction=False, fisher=False, balance=False)
    exported = export_model(original, tmp_path, quantize, Export(), WINDOWS)
    reader, model = exported.reader(), hugging_face(original.config)
    inputs: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(reader.tensor(name.replace("lm_head", "embed_out")))
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear):
                name = name.replace("lm_head", "embed_out")
                module.register_forward_pre_hook(lambda m, x, name=name: inputs.update({name: x[0].double()}))
        model(torch.from_numpy(WINDOWS))

    records = {r["name"]: r for r in exported.record["linears"]}
    assert list(records) == list(exported.places.linears) and len(records) == 3 * 4 + 1
    for name, record in records.items():
        X = inputs[name].flatten(0, 1)
        H, W = X.T @ X / len(X), original.tensor(f"{name}.weight")
        scheme = Scheme(bits=record["bits"], group_size=record["group_size"])
        expected = gptq(W, factor(H, quantize), scheme, quantize)
        got = reader.tensor(f"{name}.weight")
        assert torch.isclose(got, expected.dequantize(), atol=1e-6).float().mean() > 0.98, name
        E = (W - got).double()
        loss = float(((E @ H) * E).sum() / ((W.double() @ H) * W.double()).sum())
        assert record["loss"] == pytest.approx(loss, rel=1e-3)
        assert record["loss"] < record["rtn_loss"] and record["damp"] == 0.01
        assert record["tokens"] == WINDOWS.size


def test_qkv_rows_are_written_packed_and_read_back_as_on_disk(tmp_path):
    original = source(1)
    exported = export_model(original, tmp_path, Quantize(method="none", embedding="float32"), Export())
    reader = exported.reader()
    for name, tensor in original.tensors.items():
        if not name.endswith(("masked_bias", "inv_freq", "attention.bias")):
            assert torch.equal(reader.tensor(name), tensor), name
    config, name = original.config, "gpt_neox.layers.0.attention.query_key_value"
    packed = reader.stored(f"{name}.weight").T.reshape(3, config.num_heads, config.head_dim, -1)
    disk = original.tensor(f"{name}.weight").reshape(config.num_heads, 3, config.head_dim, -1).numpy()
    assert (packed == disk.transpose(1, 0, 2, 3)).all()


def test_overrides_choose_method_and_bits_by_pattern(tmp_path):
    rules = (
        Override(pattern="*.attention.dense", method="rtn", bits=8),
        Override(pattern="*.layers.1.mlp.*", method="none"),
    )
    exported = export_model(source(2), tmp_path, Quantize(bits=4, override=rules), Export(), WINDOWS)
    records = {r["name"].removeprefix("gpt_neox."): r for r in exported.record["linears"]}
    assert "layers.1.mlp.dense_h_to_4h" not in records
    assert records["layers.0.attention.dense"]["method"] == "rtn"
    assert records["layers.0.attention.dense"]["bits"] == 8 and records["layers.0.attention.dense"]["damp"] is None
    assert records["layers.0.mlp.dense_h_to_4h"]["method"] == "gptq"


def test_rtn_needs_no_text_and_claims_no_loss(tmp_path):
    record = export_model(source(1), tmp_path, Quantize(method="rtn"), Export()).record
    assert {r["method"] for r in record["linears"]} == {"rtn"}
    assert all(r["loss"] is None and r["tokens"] == 0 for r in record["linears"])


def test_a_nan_weight_is_refused_by_name(tmp_path):
    sick = source(2)
    sick.tensor("gpt_neox.layers.1.mlp.dense_4h_to_h.weight")[3, 4] = float("nan")
    with pytest.raises(NumericsError, match=r"layers\.1\.mlp\.dense_4h_to_h"):
        export_model(sick, tmp_path, Quantize(), Export(), WINDOWS)


@pytest.mark.parametrize("method", ["gptq", "rtn"])
@pytest.mark.parametrize(
    ("name", "export"),
    [
        ("gpt_neox.embed_in.weight", {}),  # float16 by default
        ("embed_out.weight", {"dtype": "float16", "target": "cuda"}),
        ("gpt_neox.layers.0.attention.dense.bias", {"dtype": "float16", "target": "cuda"}),
    ],
)
def test_a_value_beyond_the_type_it_is_stored_in_is_refused_by_name(name, export, method, tmp_path):
    sick = source(1)
    sick.tensor(name).view(-1)[7] = 1e5
    quantize = Quantize(method=method, head={"method": "none"}, group_size=32)
    with pytest.raises(NumericsError, match=rf"{name} has a value of 1e\+05, which float16 does not hold"):
        export_model(sick, tmp_path, quantize, Export(**export), WINDOWS if method == "gptq" else None)


def test_an_activation_that_overflows_is_refused_by_layer(tmp_path):
    sick = source(3)
    sick.tensor("gpt_neox.layers.1.mlp.dense_4h_to_h.bias")[:] = 3e38
    sick.tensor("gpt_neox.layers.1.attention.dense.bias")[:] = 3e38
    with pytest.raises(NumericsError, match="layer 1: its output"):
        export_model(sick, tmp_path, Quantize(), Export(), WINDOWS)


def test_a_hessian_beyond_the_ladder_names_the_linear(tmp_path, monkeypatch):
    monkeypatch.setattr("pythia_export.calibrate.problem.Moments.centred", lambda self: -self._sum)
    with pytest.raises(NumericsError, match=r"layers\.0\.attention\.query_key_value: the Hessian is not positive"):
        export_model(source(1), tmp_path, Quantize(), Export(), WINDOWS)


def test_the_writer_takes_each_tensor_once_whole_and_of_its_shape(tmp_path):
    places = layout(small_config(), Quantize(), "float32")
    name = "gpt_neox.final_layer_norm.bias"
    with pytest.raises(ValueError, match="were not written"), WeightsWriter(tmp_path / "a", places) as writer:
        writer.put(name, np.zeros(128, np.float32))
    writer = WeightsWriter(tmp_path / "b", places)
    for bad in (np.zeros(127, np.float32), np.zeros(128, np.float64)):
        with pytest.raises(ValueError, match="the layout has float32"):
            writer.put(name, bad)
    writer.put(name, np.zeros(128, np.float32))
    with pytest.raises(ValueError, match="written twice"):
        writer.put(name, np.zeros(128, np.float32))


def test_a_truncated_weights_file_is_refused(tmp_path):
    exported = export_model(source(1), tmp_path, Quantize(method="rtn"), Export())
    path = tmp_path / "model.onnx_data"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="its recipe lays out"):
        WeightsReader(path, exported.places)


def test_row_errors_are_the_squared_errors_of_the_outputs():
    torch.manual_seed(0)
    E, X = torch.randn(5, 8), torch.randn(50, 8)
    assert torch.allclose(row_errors(E, X.T @ X / 50), ((X @ E.T) ** 2).mean(0).double(), rtol=1e-5)
