"""Each format of other quantisers, read: the codes are those that were packed, and nothing is rounded again."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from checkpoints import configured, edit
from models import hugging_face, save_checkpoint
from packers import Rounded, gptq, quantise

from pythia_export.base.errors import IntegrityError, PythiaExportError, SourceError
from pythia_export.checkpoint import Accept, pull
from pythia_export.imported import open_imported, write_imported
from pythia_export.imported.write import quantize_section
from pythia_export.model.neox import NeoXConfig
from pythia_export.recipe import Model
from pythia_export.weights.layout import layout
from pythia_export.weights.reader import WeightsReader
from pythia_export.weights.writer import WeightsWriter

DENSE = "gpt_neox.layers.0.attention.dense"


@pytest.fixture(scope="module")
def float_checkpoint(tmp_path_factory):
    # Of 160 columns the last group of 128 is short.
    config = NeoXConfig(vocab_size=96, hidden_size=64, num_layers=1, num_heads=2, intermediate_size=160)
    return save_checkpoint(hugging_face(config), config, tmp_path_factory.mktemp("float"))


@pytest.fixture
def folder(float_checkpoint, tmp_path):
    return shutil.copytree(float_checkpoint, tmp_path / "model")


def opened(folder, requantize=None):
    return open_imported(pull(Model(path=folder), accept=Accept(quantised=True)), requantize)


def stored(source, folder):
    """The weights of the artifact, read back."""
    places = layout(source.config, quantize_section(source), "float32")
    with WeightsWriter(folder / "weights", places) as writer:
        record = write_imported(source, writer)
    return WeightsReader(folder / "weights", places), record


def scattered(rng, n):
    return rng.permutation(n)


def blocks_turned(rng, n):
    """Groups of 32 in another order, each with its columns together: static groups under act-order."""
    return np.arange(n).reshape(-1, 32)[::-1].reshape(-1)


CASES = {
    "gptq": ("gptq", {}),
    "gptq, 2 bits": ("gptq", {"bits": 2}),
    "gptq, 3 bits": ("gptq", {"bits": 3}),
    "gptq, 8 bits, a scale a row": ("gptq", {"bits": 8, "size": -1}),
    "gptq v2, asymmetric": ("gptq_v2", {"symmetric": False}),
    "gptq, asymmetric": ("gptq", {"symmetric": False}),
    "gptq, groups in another order": ("gptq_v2", {"order": blocks_turned, "desc_act": True}),
    "gptq, act-order, a scale a row": ("gptq_v2", {"order": scattered, "size": -1, "desc_act": True}),
    "gptq, groups of 96": ("gptq_v2", {"size": 96, "symmetric": False}),
    "awq": ("awq", {"symmetric": False}),
    "auto-round": ("auto_gptq", {}),
    "auto-round, asymmetric": ("auto_awq", {"symmetric": False}),
    "compressed-tensors": ("compressed-tensors", {"size": 128}),
    "compressed-tensors, asymmetric": ("compressed-tensors", {"symmetric": False}),
    "compressed-tensors, 6 bits": ("compressed-tensors", {"bits": 6, "symmetric": False}),
    "compressed-tensors, 5 bits": ("compressed-tensors", {"bits": 5}),
    "compressed-tensors, 1 bit": ("compressed-tensors", {"bits": 1}),
    "compressed-tensors, the head too": ("compressed-tensors", {"head": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_stored_weights_are_those_of_the_quantiser_to_the_last_bit(folder, tmp_path, case):
    form, asked = CASES[case]
    made = quantise(folder, form, **asked)
    source = opened(folder)
    reader, record = stored(source, tmp_path)
    assert source.linears.keys() == made.keys() and len(made) == 4 + asked.get("head", False)
    for name, rounded in made.items():
        expected = rounded.dense()
        assert np.array_equal(source.tensor(f"{name}.weight").numpy(), expected), name
        assert np.array_equal(reader.tensor(f"{name}.weight").numpy(), expected), name
    for name in ("gpt_neox.embed_in.weight", "embed_out.weight", f"{DENSE}.bias", "gpt_neox.final_layer_norm.bias"):
        assert torch.equal(reader.tensor(name), source.tensor(name).float())
    assert record.method == "imported" and {x.method for x in record.linears} == {"imported"}


def test_floats_of_64_bits_beside_the_codes_are_read_in_32(folder):
    quantise(folder, "gptq")
    parts = ("qweight", "qzeros", "scales", "g_idx")
    edit(folder, lambda whole: whole.update({n: t.double() for n, t in whole.items() if not n.endswith(parts)}))
    source = opened(folder)
    assert source.dtype == "float32" == str(source.tensor("gpt_neox.embed_in.weight").dtype).removeprefix("torch.")


def test_columns_that_are_scattered_are_refused_by_name_or_rounded_again(folder, tmp_path):
    made = quantise(folder, "gptq_v2", order=scattered, desc_act=True)
    with pytest.raises(SourceError, match=r"attention\.\w+ does not fit: .*scattered.*act-order without static") as e:
        opened(folder)
    assert "--requantize 8" in e.value.hint
    source = opened(folder, requantize=8)
    reader, record = stored(source, tmp_path)
    assert {(x.method, x.bits, x.group_size) for x in record.linears} == {("rtn", 8, 32)}
    for name, rounded in made.items():
        expected, got = rounded.dense(), reader.tensor(f"{name}.weight").numpy()
        assert np.array_equal(source.tensor(f"{name}.weight").numpy(), expected)
        assert 0 < np.abs(got - expected).max() < 0.01 * np.abs(expected).max()


def test_groups_of_fewer_columns_than_a_block_do_not_fit(folder):
    quantise(folder, "gptq_v2", size=8)
    with pytest.raises(SourceError, match="does not fit: groups of 8; MatMulNBits has blocks of 16 to 256") as caught:
        opened(folder)
    assert caught.value.hint.endswith("quantise it again in groups of 32 or 128.")


def test_linears_of_other_grids_and_in_float_keep_theirs(folder, tmp_path):
    left = "gpt_neox.layers.0.mlp.dense_4h_to_h"
    extra = {DENSE: {"bits": 8}, left: {"bits": 16, "data_type": "float"}}
    made = quantise(folder, "auto_gptq", extra_config=extra)
    eight = Rounded.random(64, 64, 8, 32, True, 9)
    plain = torch.randn(64, 160).half()

    def change(tensors):
        for part in ("qweight", "qzeros", "scales"):
            del tensors[f"{left}.{part}"]
        tensors |= {f"{DENSE}.{part}": x for part, x in gptq(eight, g_idx=False).items()}
        tensors[f"{left}.weight"] = plain

    edit(folder, change)
    reader, record = stored(opened(folder), tmp_path)
    assert np.array_equal(reader.tensor(f"{DENSE}.weight").numpy(), eight.dense())
    assert torch.equal(reader.tensor(f"{left}.weight"), plain.float())
    assert {x.name: x.bits for x in record.linears} == {n: 8 if n == DENSE else 4 for n in made if n != left}


def test_autogptqs_own_file_of_settings_is_read_where_config_json_has_none(folder):
    made = quantise(folder, "gptq")
    config = json.loads((folder / "config.json").read_text())
    of = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "quantize_config.json").write_text(json.dumps({k: of[k] for k in ("bits", "group_size", "sym")}))
    assert np.array_equal(opened(folder).tensor(f"{DENSE}.weight").numpy(), made[DENSE].dense())


def test_zero_points_that_gptqmodel_borrowed_for_are_restored_and_others_are_refused(folder):
    """A zero less one: GPTQModel subtracts from whole words, so the next number lacks one; nobody else says how."""
    quantise(folder, "gptq", symmetric=False, meta={"quantizer": ["gptqmodel:5.6.12"]})
    zero = np.zeros((64, 2), np.int64) + np.arange(64)[:, None] % 15

    def change(tensors):
        word = gptq(Rounded(np.zeros((64, 64), int), zero[:, :0], zero, np.zeros(64), 4), less=0)["qzeros"]
        tensors[f"{DENSE}.qzeros"] = word - 0x11111111

    edit(folder, change)
    source = opened(folder)
    assert np.array_equal(source.stored(source.linears[DENSE]).zero_point, zero)
    configured(folder, quantization_config=source.settings | {"meta": None})
    source = opened(folder)
    with pytest.raises(IntegrityError, match=rf"{DENSE}: a zero point is stored as 15, less one"):
        source.tensor(f"{DENSE}.weight")


METHODS = {
    "bitsandbytes": (SourceError, "bitsandbytes does not fit: NF4 and FP4 are tables"),
    "aqlm": (SourceError, "aqlm does not fit: weights are numbers of a table"),
    "frobnicate": (SourceError, "quant_method is 'frobnicate', which is not known; gptq, awq, auto-round"),
    None: (SourceError, "quant_method is null, which is not known"),
}


@pytest.mark.parametrize("method", METHODS)
def test_another_method_is_refused_by_name(folder, method):
    kind, said = METHODS[method]
    configured(folder, quantization_config={"quant_method": method})
    with pytest.raises(kind, match=said) as caught:
        opened(folder)
    assert "pythia-export run" in caught.value.hint


def without_g_idx(folder):
    configured(folder, quantization_config=settings_of(folder) | {"desc_act": True})
    edit(folder, lambda whole: [whole.pop(name) for name in list(whole) if name.endswith("g_idx")])


def of_an_old_autoround(folder):
    configured(folder, quantization_config={k: v for k, v in settings_of(folder).items() if k != "packing_format"})


def settings_of(folder):
    return json.loads((folder / "config.json").read_text())["quantization_config"]


INCOMPLETE = {
    "act-order without its order": ("gptq", without_g_idx, "g_idx is missing", "set desc_act to false"),
    "bitsandbytes of old": (
        "gptq", lambda folder: configured(folder, quantization_config={"load_in_8bit": True}),
        "bitsandbytes does not fit: NF4", "dequantize"),
    "no packing": ("auto_gptq", of_an_old_autoround, "packing_format is null", "format='auto_round'"),
    "another packing of AWQ": (
        "awq", lambda folder: configured(folder, quantization_config=settings_of(folder) | {"version": "gemv"}),
        "AWQ with the version 'gemv'", "version='GEMM'"),
    "a setting of another kind": (
        "gptq", lambda folder: configured(folder, quantization_config=settings_of(folder) | {"desc_act": None}),
        "`desc_act` is null", "Save the checkpoint again"),
}  # fmt: skip


@pytest.mark.parametrize("case", INCOMPLETE)
def test_what_is_missing_is_told_with_what_to_do(folder, case):
    form, change, said, hint = INCOMPLETE[case]
    quantise(folder, form)
    change(folder)
    with pytest.raises(PythiaExportError, match=said) as caught:
        opened(folder)
    assert hint in caught.value.hint


@pytest.mark.parametrize(("form", "called"), [("gptq", "gptq_v2"), ("gptq_v2", "gptq")])
@pytest.mark.parametrize("tool", [None, "gptqmodel:5.6.12"])
def test_zero_points_of_the_other_format_are_told(folder, form, called, tool):
    quantise(folder, form, checkpoint_format=called, meta={"quantizer": [tool]} if tool else {})
    source = opened(folder)
    with pytest.raises(IntegrityError, match="a zero point is [79]; the configuration says") as caught:
        source.tensor(f"{DENSE}.weight")
    assert caught.value.hint == f"These are zero points of '{form}': set checkpoint_format to that."


def test_a_tied_head_is_stored_once_twice_or_not_as_run_reads_it(folder):
    quantise(folder, "gptq")
    configured(folder, tie_word_embeddings=True)
    head, embedding = "embed_out.weight", "gpt_neox.embed_in.weight"
    with pytest.raises(SourceError, match="ties the head to the embedding .*differs") as caught:
        opened(folder)
    assert "Set tie_word_embeddings to false" in caught.value.hint
    changes = (
        lambda whole: whole.update({head: whole[embedding].clone()}),
        lambda whole: whole.pop(embedding),
    )
    for change in changes:  # both, then one by the other's name
        edit(folder, change)
        source = opened(folder)
        assert torch.equal(source.tensor(head), source.tensor(embedding))


def test_settings_by_the_older_name_of_compressed_tensors_are_read(folder):
    made = quantise(folder, "compressed-tensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"compression_config": config.pop("quantization_config")} | config))
    assert np.array_equal(opened(folder).tensor(f"{DENSE}.weight").numpy(), made[DENSE].dense())


def test_weights_by_autogptqs_own_name_are_told_what_to_be_called(folder):
    quantise(folder, "gptq")
    (folder / "quantize_config.json").write_text("{}")
    (folder / "model.safetensors").rename(folder / "gptq_model-4bit-128g.safetensors")
    with pytest.raises(SourceError, match="weights are called gptq_model-4bit-128g.safetensors") as caught:
        opened(folder)
    assert "Rename gptq_model-4bit-128g.safetensors to model.safetensors" in caught.value.hint


def test_weights_that_are_not_quantised_are_for_run(folder):
    with pytest.raises(SourceError, match="no quantization_config: this checkpoint is not quantised") as caught:
        opened(folder)
    assert "pythia-export run" in caught.value.hint


CONTRADICTIONS = {
    "other bits": ("gptq", {"bits": 8}, None, r"qweight is I32 \[8, \d+\]; gptq of 8 bits.* makes it I32 \[16, \d+\]"),
    "other groups": ("gptq", {"group_size": 64}, None, r"qzeros is I32 \[2, \d+\]; .*groups of 64 makes it I32 \[1"),
    "no symmetry": ("gptq", {}, "qzeros", "a zero point is 1; the configuration says that the grid is symmetric"),
    "a group beyond": ("gptq", {}, "g_idx", r"a column is of group 4; groups 0 to 1 were expected"),
    "a scale that is no number": ("gptq", {}, "scales", r"dense.scales holds nan at \[0, 0\]; finite numbers were"),
    "a part missing": ("gptq", {}, "-scales", r"tensor gpt_neox.layers.0.attention.dense.scales is missing"),
    "a part too many": ("gptq", {}, "+codebook", r"dense.codebook has no place in gptq"),
    "nine bits": ("gptq", {"bits": 9}, None, "`bits` is 9; less than or equal to 8 was expected"),
    "no bits": ("awq", {"bits": "4"}, None, "`bits` is '4'"),
    "another shape told": ("compressed-tensors", {}, "weight_shape", r"weight_shape is \[1, 2\]; config.json makes it"),
    "ignored and packed": ("compressed-tensors", {"ignore": ["re:.*dense$"]}, None, "is quantised; .* leaves it in fl"),
    "float and not ignored": ("compressed-tensors", {"ignore": []}, None, "embed_out is in float; .* quantises it"),
    "no pattern": ("compressed-tensors", {"ignore": ["re:("]}, None, r"'\(' is no pattern"),
    "floats": (
        "compressed-tensors",
        {"config_groups": {"a": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}}},
        None, "weights of type 'float', 'pack-quantized'; integers were expected"),
    "not packed": (
        "compressed-tensors",
        {"config_groups": {"a": {"targets": ["Linear"], "format": "int-quantized", "weights": {"num_bits": 4}}}},
        None, "4 bits that are not packed, 'int-quantized'; 'pack-quantized' was expected"),
    "a scale for all": (
        "compressed-tensors",
        {"config_groups": {"a": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "tensor"}}}},
        None, "the strategy 'tensor'; 'group' or 'channel' was expected"),
    "activations too": (
        "compressed-tensors",
        {"config_groups": {"a": {"targets": ["Linear"], "weights": {"num_bits": 8}, "input_activations": {"a": 1}}}},
        None, "activations are rounded too"),
    "outputs too": (
        "compressed-tensors",
        {"config_groups": {"a": {"targets": ["Linear"], "weights": {"num_bits": 8}, "output_activations": {"a": 1}}}},
        None, "activations are rounded too"),
    "rotated": (
        "compressed-tensors",
        {"transform_config": {"config_groups": {"u": {"type": "hadamard", "apply": [{"location": "input"}]}}}},
        None, "transform_config: activations are rotated while it runs"),
    "rotated by AutoRound": (
        "auto_gptq", {"rotation_config": {"hadamard_type": "hadamard"}}, None, "rotation_config: activations are rota"),
    "a cache too": (
        "compressed-tensors", {"kv_cache_scheme": {"num_bits": 8}}, None, "kv_cache_scheme: keys and values are"),
    "zeros left out": (
        "compressed-tensors", {"sparsity_config": {"format": "sparse-24-bitmask"}}, None, "weights are stored without"),
    "another layout": ("gptq", {"checkpoint_format": "marlin"}, None, "GPTQ in the format 'marlin'; 'gptq' or"),
    "another packing": ("auto_gptq", {"packing_format": "auto_round:fp8"}, None, "packing_format is 'auto_round:fp8'"),
}  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"sparsity_config": {"format": "dense", "global_sparsity": 0.1, "sparsity_structure": "unstructured"}},
        {"sparsity_config": {}, "transform_config": {"config_groups": {}}, "kv_cache_scheme": None},
    ],
)
def test_settings_that_are_there_and_change_nothing_are_read(folder, settings):
    quantise(folder, "compressed-tensors")
    config = json.loads((folder / "config.json").read_text())
    configured(folder, quantization_config=config["quantization_config"] | settings)
    assert opened(folder).form.name == "pack-quantized"


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_what_contradicts_the_configuration_is_said(folder, case):
    form, changes, part, said = CONTRADICTIONS[case]
    quantise(folder, form)
    config = json.loads((folder / "config.json").read_text())
    configured(folder, quantization_config=config["quantization_config"] | changes)

    def change(tensors):
        name = f"{DENSE}.{part.lstrip('+-')}"
        if part.startswith("-"):
            del tensors[name]
        elif part.startswith("+"):
            tensors[name] = torch.zeros(4)
        else:
            filled = {"g_idx": 4, "scales": torch.nan}.get(part, 0)
            tensors[name] = torch.tensor([1, 2]) if part == "weight_shape" else tensors[name] * 0 + filled

    if part is not None:
        edit(folder, change)
    with pytest.raises(PythiaExportError, match=said) as caught:
        source = opened(folder)
        for name in source.linears:
            source.tensor(f"{name}.weight")
    assert caught.value.hint
