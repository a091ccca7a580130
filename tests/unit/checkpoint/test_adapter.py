"""LoRA adapters merged while the checkpoint is read: by the formula, and in the form that PEFT 0.21 writes.

What PEFT itself writes and merges was compared once, by hand, for fifteen of its settings: equal to the last bit.
"""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from adapters import DENSE, QKV, UP, adapter, lora
from checkpoints import forked
from models import hugging_face, save_checkpoint, small_config
from safetensors.torch import load_file, save_file

from pythia_export.base.errors import IntegrityError, PythiaExportError, SourceError
from pythia_export.checkpoint import open_checkpoint, pull
from pythia_export.checkpoint.pull import Accept
from pythia_export.model.neox import tensors
from pythia_export.recipe import Model

CONFIG = small_config(layers=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_checkpoint(hugging_face(CONFIG), CONFIG, tmp_path_factory.mktemp("made") / "base")


def merged(base, folder):
    return open_checkpoint(pull(Model(path=base, adapter=folder)))


def expected(base, stored, scale) -> dict[str, torch.Tensor]:
    """W + s B A by hand; `scale` of a module's name."""
    whole = {name: x.float() for name, x in load_file(base / "model.safetensors").items()}
    for name, A in stored.items():
        if name.endswith("lora_A.weight"):
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            B = stored[name.replace("lora_A", "lora_B")]
            whole[f"{module}.weight"] += scale(module) * (B.double() @ A.double()).float()
    return whole


FORMS = {
    "plain": ({}, lambda m: 2.0),
    "rank-stabilised": ({"use_rslora": True}, lambda m: 8 / math.sqrt(4)),
    "of GPT-2's transposed layers, which PEFT sets aside": ({"fan_in_fan_out": True}, lambda m: 2.0),
    "alpha by the end of a name": ({"alpha_pattern": {DENSE: 20}}, lambda m: 5.0 if m.endswith(DENSE) else 2.0),
    "alpha by an expression": (
        {"alpha_pattern": {r"^gpt_neox\.layers\.1\.mlp.*": 2, "ense": 100}},
        lambda m: 0.5 if ".1.mlp" in m else 2.0,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_is_merged_while_the_checkpoint_is_read(form, base, tmp_path):
    settings, scale = FORMS[form]
    stored = lora((DENSE, QKV, UP))
    checkpoint = merged(base, adapter(tmp_path / "mine", stored, **settings))
    whole = expected(base, stored, scale)
    for spec in tensors(CONFIG):
        torch.testing.assert_close(checkpoint.tensor(spec.name).float(), whole[spec.name], rtol=1e-5, atol=1e-5)
    assert checkpoint.dtype == "float32"


def test_a_rank_of_its_own_scales_by_it(base, tmp_path):
    stored = lora((DENSE,)) | lora((UP,), rank=2)
    folder = adapter(tmp_path / "mine", stored, rank_pattern={"dense_h_to_4h": 2})
    whole = expected(base, stored, lambda module: 4.0 if module.endswith(UP) else 2.0)
    name = f"gpt_neox.layers.1.{UP}.weight"
    torch.testing.assert_close(merged(base, folder).tensor(name), whole[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", ["embed_out", "lm_head"])  # of transformers 4 and 5
def test_what_was_trained_whole_takes_the_place_of_the_bases(head, base, tmp_path):
    prefix = "base_model.model"
    whole = {
        f"{prefix}.{head}.weight": torch.randn(96, 128),
        f"{prefix}.gpt_neox.embed_in.weight": torch.randn(96, 128),
        f"{prefix}.gpt_neox.layers.0.{DENSE}.base_layer.bias": torch.randn(128),
        f"{prefix}.gpt_neox.final_layer_norm.weight": torch.randn(128),
    }
    checkpoint = merged(base, adapter(tmp_path / "mine", lora() | whole, bias="all", modules_to_save=[head]))
    for name, x in whole.items():
        table = name.removeprefix(f"{prefix}.").replace("base_layer.", "").replace("lm_head", "embed_out")
        assert torch.equal(checkpoint.tensor(table), x), table


@pytest.mark.parametrize("head", ["embed_out", "lm_head"])
def test_a_lora_of_the_head_alone_is_found_by_either_name(head, base, tmp_path):
    A, B = torch.randn(4, 128), torch.randn(96, 4)
    stored = {
        f"base_model.model.{head}.lora_A.default.weight": A,
        f"base_model.model.{head}.lora_B.default.weight": B,
    }
    folder = adapter(tmp_path / "mine", stored, alpha_pattern={head: 4})
    W = load_file(base / "model.safetensors")["embed_out.weight"].float()
    torch.testing.assert_close(merged(base, folder).tensor("embed_out.weight"), W + B @ A, rtol=1e-5, atol=1e-5)


def test_an_adapter_in_a_pickle_is_read_in_a_process_of_its_own(base, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("pythia_export.checkpoint.convert.subprocess.run", lambda command, **_: forked(command))
    folder, stored = adapter(tmp_path / "mine", lora(), pickled=True), lora()
    name = f"gpt_neox.layers.0.{DENSE}.weight"
    torch.testing.assert_close(
        merged(base, folder).tensor(name), expected(base, stored, lambda m: 2.0)[name], rtol=1e-5, atol=1e-5
    )
    with pytest.raises(SourceError, match=r"only adapter_model.bin, and --no-pickle"):
        pull(Model(path=base, adapter=folder), accept=Accept(pickles=False))


def test_an_adapter_is_part_of_what_the_checkpoint_is(base, tmp_path):
    plain, one = pull(Model(path=base)), pull(Model(path=base, adapter=adapter(tmp_path / "one", lora())))
    other = pull(Model(path=base, adapter=adapter(tmp_path / "other", lora(), lora_alpha=9)))
    assert len({plain.commit, one.commit, other.commit}) == 3 and one.commit.startswith(f"{plain.commit}+sha256:")
    assert one.name == "base + one" and one.record.adapter.base == "someone/base"
    assert set(one.record.adapter.files) == {"adapter_config.json", "adapter_model.safetensors"}
    elsewhere = adapter(tmp_path / "elsewhere", lora(), base_model_name_or_path="/data/lovelace/base")
    assert "lovelace" not in str(pull(Model(path=base, adapter=elsewhere)).record)


def without(name):
    return {n: x for n, x in lora().items() if not n.endswith(name)}


REFUSED = {
    "IA3": (lora(), {"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "AdaLoRA": (lora(), {"peft_type": "ADALORA"}, "peft_type is 'ADALORA'"),
    "VeRA": (lora(), {"peft_type": "VERA"}, "peft_type is 'VERA'"),
    "DoRA": (lora(), {"use_dora": True}, "use_dora is True"),
    "DoRA without its setting": (
        lora() | {f"base_model.model.gpt_neox.layers.0.{DENSE}.lora_magnitude_vector": torch.ones(128)},
        {}, "lora_magnitude_vector, which is not merged",
    ),
    "of the embedding": (
        lora() | {"base_model.model.gpt_neox.embed_in.lora_embedding_A": torch.ones(4, 96)},
        {}, "lora_embedding_A, which is not merged",
    ),
    "a bias of its own": (lora(), {"lora_bias": True}, "lora_bias is True"),
    "PiSSA": (lora(), {"init_lora_weights": "pissa_niter_4"}, "changes the base's weights as well"),
    "what comes next": (lora(), {"use_novel": True}, "use_novel is True, which is not merged"),
    "single tokens": (lora(), {"trainable_token_indices": [1]}, r"trainable_token_indices is \[1\]"),
    "layers repeated": (lora(), {"layer_replication": [[0, 2]]}, "layer_replication"),
    "another base": (lora((UP,)) | {
        f"base_model.model.gpt_neox.layers.0.{DENSE}.lora_A.weight": torch.ones(4, 512),
        f"base_model.model.gpt_neox.layers.0.{DENSE}.lora_B.weight": torch.ones(512, 4),
    }, {}, r"makes \[512, 512\]; the base's weight is \[128, 128\]"),
    "another vocabulary": (
        lora() | {"base_model.model.embed_out.weight": torch.ones(100, 128)}, {}, r"is \[100, 128\]; the base's is",
    ),
    "more layers": (
        {n.replace("layers.1", "layers.7"): x for n, x in lora().items()}, {}, "layers.7.attention.dense has a LoRA",
    ),
    "half a pair": (without("layers.1.attention.dense.lora_B.weight"), {}, "has lora_A alone"),
    "another rank": (lora(), {"r": 8}, "has rank 4; adapter_config.json says 8"),
    "no rank": (lora(), {"r": "8"}, "a rank is '8'"),
    "no alpha": (lora(), {"lora_alpha": None}, "lora_alpha is None"),
    "an expression without end": (lora(), {"alpha_pattern": {"(a+)+b": 3}}, "no pattern of names"),
    "two adapters of PEFT's in one file": (
        {n.replace(".weight", f".{x}.weight"): t for x in ("default", "tuned") for n, t in lora().items()}, {},
        r"2 adapters in one file \(default, tuned\)",
    ),
    "nothing": ({"base_model.model.gpt_neox.layers.0.attention.bias": torch.ones(1)}, {}, "no tensor that changes"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_merged_is_refused_by_name(kind, base, tmp_path):
    stored, settings, said = REFUSED[kind]
    folder = adapter(tmp_path / "mine", stored, **settings)
    with pytest.raises(PythiaExportError, match=said) as caught:
        merged(base, folder)
    assert isinstance(caught.value, SourceError | IntegrityError)


def test_a_head_tied_to_the_embedding_is_not_parted_from_it(base, tmp_path):
    tied = shutil.copytree(base, tmp_path / "tied")
    config = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    whole = load_file(tied / "model.safetensors")
    save_file({n: x for n, x in whole.items() if not n.startswith("embed_out")}, tied / "model.safetensors")
    checkpoint = merged(tied, adapter(tmp_path / "dense", lora()))
    assert torch.equal(checkpoint.tensor("embed_out.weight"), whole["gpt_neox.embed_in.weight"])
    of_embedding = {"base_model.model.gpt_neox.embed_in.weight": torch.ones(96, 128)}
    with pytest.raises(SourceError, match="whose head is tied to the base's embedding"):
        merged(tied, adapter(tmp_path / "embedding", lora() | of_embedding))
    A, B = torch.ones(4, 128), torch.ones(96, 4)
    of_head = {"base_model.model.embed_out.lora_A.weight": A, "base_model.model.embed_out.lora_B.weight": B}
    with pytest.raises(SourceError, match="embed_out has a LoRA; it is no linear layer of the base"):
        merged(tied, adapter(tmp_path / "head", of_head))


def test_a_folder_without_an_adapter_is_said(base, tmp_path):
    with pytest.raises(SourceError, match="no such adapter directory"):
        merged(base, tmp_path / "none")
    with pytest.raises(SourceError, match=r"no adapter_config.json, so no adapter of PEFT's"):
        merged(base, base)
    adapter(tmp_path / "outer", lora()).rename(tmp_path / "inner")
    (tmp_path / "outer").mkdir()
    (tmp_path / "inner").rename(tmp_path / "outer" / "inner")
    with pytest.raises(SourceError, match="no adapter_config.json") as caught:
        merged(base, tmp_path / "outer")
    assert f"There is one in {tmp_path / 'outer' / 'inner'}" in caught.value.hint
    (tmp_path / "outer" / "inner" / "adapter_model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"
    )
    with pytest.raises(SourceError, match="a git-lfs pointer to a file of 12 bytes"):
        merged(base, tmp_path / "outer" / "inner")
