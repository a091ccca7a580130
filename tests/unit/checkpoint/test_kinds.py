"""What people bring for a checkpoint: read where it is one under another name, said by name where it is not."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from checkpoints import configured, edit, forked, opened, split
from models import hugging_face, on_disk, save_checkpoint, small_config
from safetensors.torch import load_file, save_file
from transformers import GPTNeoXForCausalLM, GPTNeoXModel

from pythia_export.base.errors import IntegrityError, NumericsError, PythiaExportError, RecipeError, SourceError
from pythia_export.checkpoint import open_checkpoint, pull
from pythia_export.model.neox import tensors
from pythia_export.recipe import Model, Verify, load_recipe, parse_recipe
from pythia_export.records.manifest import FileEntry

CONFIG = small_config(layers=2)
LAYER = "gpt_neox.layers.0"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return save_checkpoint(hugging_face(CONFIG), CONFIG, tmp_path_factory.mktemp("made") / "model")


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "model")


@pytest.fixture
def pickled(folder, tmp_path, monkeypatch):
    """A folder in which `save(state)` is pytorch_model.bin; conversions are kept in a home of this test's."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("pythia_export.checkpoint.convert.subprocess.run", lambda command, **_: forked(command))
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()

    def save(wrap, **options):
        torch.save(wrap(whole), folder / "pytorch_model.bin", **options)
        return folder

    return save


def renamed(folder, rename) -> None:
    whole = load_file(folder / "model.safetensors")
    save_file({rename(name): x for name, x in whole.items()}, folder / "model.safetensors")


# Names

NAMES = {
    "lm_head": lambda n: n.replace("embed_out", "lm_head"),
    "compiled": lambda n: f"_orig_mod.{n}",
    "compiled by parts": lambda n: n.replace("layers.0.", "layers.0._orig_mod."),
    "data parallel": lambda n: f"module.{n}",
    "compiled within data parallel, head of transformers 5": lambda n: (
        f"module._orig_mod.{n.replace('embed_out', 'lm_head')}"
    ),
    "sharded": lambda n: f"_fsdp_wrapped_module.{n.replace('layers.0.', 'layers.0._fsdp_wrapped_module.')}",
    "a field": lambda n: f"model.{n}",
    "two fields": lambda n: f"policy.model.{n}",
    "PEFT": lambda n: f"base_model.model.{n}".replace("dense.", "dense.base_layer."),
    "value head's": lambda n: f"pretrained_model.{n}",
    "body without its name": lambda n: n.removeprefix("gpt_neox."),
    "a field's body without its name": lambda n: f"model.{n.removeprefix('gpt_neox.')}",
}


@pytest.mark.parametrize("naming", NAMES)
def test_what_wrappers_put_before_names_is_taken_off(naming, folder):
    expected = load_file(folder / "model.safetensors")
    renamed(folder, NAMES[naming])
    checkpoint = opened(folder)
    for spec in tensors(CONFIG):
        assert torch.equal(checkpoint.tensor(spec.name), expected[spec.name]), spec.name


def test_names_of_wrappers_are_taken_off_in_shards_too(folder):
    expected = load_file(folder / "model.safetensors")
    renamed(folder, NAMES["data parallel"])
    split(folder)
    assert torch.equal(opened(folder).tensor("embed_out.weight"), expected["embed_out.weight"])


def test_a_value_head_is_left_out_and_said(folder):
    edit(
        folder, lambda t: t.update({"v_head.summary.weight": torch.ones(1, 128), "v_head.summary.bias": torch.ones(1)})
    )
    said = []

    class Heard(type(pull.__globals__["SILENT"])):
        def note(self, message):
            said.append(message)

    open_checkpoint(pull(Model(path=folder)), Heard())
    assert len(said) == 1 and "a value head (v_head.summary.bias) is left out" in said[0]
    GPTNeoXForCausalLM.from_pretrained(folder)  # which leaves it out likewise


# Types


def test_float64_is_read_as_transformers_reads_it(folder):
    torch.manual_seed(0)
    edit(folder, lambda t: t.update({n: x.double() + torch.rand(x.shape).double() * 1e-3 for n, x in t.items()}))
    checkpoint = opened(folder)
    theirs = on_disk(GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32))
    assert checkpoint.dtype == "float32"
    for spec in tensors(CONFIG):
        assert torch.equal(checkpoint.tensor(spec.name), theirs[spec.name]), spec.name


def test_a_float64_beyond_float32_is_refused(folder):
    bias = f"{LAYER}.attention.dense.bias"
    edit(folder, lambda t: t.update({bias: t[bias].double().index_fill(0, torch.tensor([3]), 1e200)}))
    with pytest.raises(NumericsError, match=r"dense.bias holds 1e\+200 at \[3\], which float32 does not hold"):
        opened(folder).tensor(bias)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_of_eight_bits_are_named(dtype, folder):
    weight = f"{LAYER}.attention.dense.weight"
    edit(folder, lambda t: t.update({weight: t[weight].to(dtype)}))
    with pytest.raises(IntegrityError, match=r"dense.weight is (I8|F8_E4M3); F16") as caught:
        opened(folder)
    assert "quantised already" in caught.value.hint


# Pickles

PICKLES = {
    "before torch 1.6": (lambda t: t, {"_use_new_zipfile_serialization": False}),
    "Lightning": (lambda t: {"epoch": 3, "state_dict": {f"model.{n}": x for n, x in t.items()}}, {}),
    "a trainer's": (lambda t: {"model": t, "optimizer": {"state": {0: torch.ones(2)}, "lr": 0.1}, "step": 7}, {}),
    "DeepSpeed": (lambda t: {"module": {f"module.{n}": x for n, x in t.items()}, "global_steps": 9}, {}),
    "nested twice, before torch 1.6": (
        lambda t: {"state_dict": {"model": t}}, {"_use_new_zipfile_serialization": False}
    ),
}  # fmt: skip


@pytest.mark.parametrize("saved", PICKLES)
def test_a_state_dict_is_found_in_what_was_pickled(saved, pickled, made):
    wrap, options = PICKLES[saved]
    checkpoint, expected = opened(pickled(wrap, **options)), load_file(made / "model.safetensors")
    for spec in tensors(CONFIG):
        assert torch.equal(checkpoint.tensor(spec.name), expected[spec.name]), spec.name


def test_a_legacy_pickle_of_more_than_tensors_is_not_executed(pickled, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    with pytest.raises(IntegrityError, match="cannot be read as tensors alone"):
        opened(pickled(lambda t: t | {"bomb": Bomb()}, _use_new_zipfile_serialization=False))
    assert not (tmp_path / "executed").exists()


def test_a_pickle_quantised_already_is_said(pickled):
    packed = f"{LAYER}.attention.dense.qweight"
    with pytest.raises(SourceError, match="quantised already, by GPTQ or AWQ: it has .*dense.qweight"):
        opened(pickled(lambda t: t | {packed: torch.ones(4, 4, dtype=torch.int32)}))


# Configuration


def test_a_byte_order_mark_before_config_json_is_read_over(folder):
    path = folder / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert opened(folder).config == CONFIG


QUANTISED = {
    "gptq in 4 bits": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "awq": {"quantization_config": {"quant_method": "awq", "w_bit": 4}},
    "bitsandbytes in 4 bits": {"quantization_config": {"load_in_4bit": True}},
    "bitsandbytes in 8 bits": {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    "compressed-tensors": {"compression_config": {"quant_method": "compressed-tensors"}},
    "MLX in 4 bits": {"quantization": {"group_size": 64, "bits": 4}},
}


@pytest.mark.parametrize("method", QUANTISED)
def test_a_checkpoint_quantised_already_is_said_with_its_method(method, folder):
    configured(folder, **QUANTISED[method])
    with pytest.raises(SourceError, match=f"quantised already, by {method}"):
        opened(folder)
    configured(folder, **dict.fromkeys(QUANTISED[method]))
    assert opened(folder).config == CONFIG  # null says nothing


TENSORS = {
    "GPTQ or AWQ": "qweight",
    "bitsandbytes, 8 bits": "SCB",
    "bitsandbytes, 4 bits": "weight.absmax",
    "compressed-tensors": "weight_packed",
    "8-bit floats": "weight_scale",
    "HQQ": "W_q",
}


@pytest.mark.parametrize("method", TENSORS)
def test_tensors_of_a_quantised_model_are_recognised_without_its_config(method, folder):
    edit(folder, lambda t: t.update({f"{LAYER}.attention.dense.{TENSORS[method]}": torch.ones(2)}))
    with pytest.raises(SourceError, match=f"quantised already, by {method}"):
        opened(folder)


# Other models


def classifier(tensors_) -> None:
    del tensors_["embed_out.weight"]
    tensors_["score.weight"] = torch.ones(2, 128)


def two_models(tensors_) -> None:
    for name in list(tensors_):
        x = tensors_.pop(name)
        tensors_ |= {f"policy.{name}": x, f"reference.{name}": x.clone()}


OTHERS = {
    "a classifier": (classifier, "GPTNeoXForSequenceClassification, a classifier: it has no head"),
    "no head": (lambda t: t.pop("embed_out.weight"), "GPTNeoXModel, the body alone: it has no head"),
    "two models": (two_models, "2 models in one state dict, with 'policy.', 'reference.' before"),
    "an adapter not merged": (
        lambda t: t.update({f"{LAYER}.attention.dense.lora_A.default.weight": torch.ones(4, 128)}),
        "a PeftModel whose adapter is not merged",
    ),
    "two heads": (lambda t: t.update({"lm_head.weight": torch.ones(96, 128)}), "both stand for embed_out.weight"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_kind_of_model_is_said(other, folder):
    change, said = OTHERS[other]
    edit(folder, change)
    with pytest.raises(PythiaExportError, match=said):
        opened(folder)


def test_the_body_that_transformers_saves_is_said_to_have_no_head(folder):
    GPTNeoXModel.from_pretrained(folder).save_pretrained(folder)
    with pytest.raises(SourceError, match="GPTNeoXModel, the body alone"):
        opened(folder)


# Folders

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 4485272\n" % (b"0" * 64)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "pytorch_model.bin"])
def test_a_pointer_of_git_lfs_is_said(name, folder):
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(POINTER)
    with pytest.raises(SourceError, match=rf"{name}: a git-lfs pointer to a file of 4,485,272 bytes") as caught:
        opened(folder)
    assert f"git lfs pull` in {folder}" in caught.value.hint


def test_a_pointer_among_shards_or_for_their_index_is_said(folder):
    split(folder)
    index = folder / "model.safetensors.index.json"
    whole = index.read_bytes()
    for path in (folder / "model-00002-of-00002.safetensors", index):
        index.write_bytes(whole)
        path.write_bytes(POINTER)
        with pytest.raises(SourceError, match=f"{path.name}: a git-lfs pointer"):
            opened(folder)


ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "EleutherAI/pythia-70m"}
FOLDERS = {
    "adapter": ({"adapter_config.json": ADAPTER, "adapter_model.safetensors": ""}, "an adapter .LORA. of EleutherAI"),
    "adapters": ({"en/adapter_config.json": ADAPTER}, "a folder of adapters"),
    "Trainer": ({"checkpoint-500/config.json": {}, "checkpoint-1000/config.json": {}}, "checkpoint-1000 the last"),
    "DeepSpeed": ({"global_step9/mp_rank_00_model_states.pt": "", "zero_to_fp32.py": ""}, "a DeepSpeed checkpoint"),
    "GPT-NeoX library": ({"global_step9/layer_00-model_00-model_states.pt": ""}, "of the GPT-NeoX library"),
    "FSDP": ({"config.json": {}, "pytorch_model_fsdp_0/__0_0.distcp": ""}, "a distributed checkpoint of PyTorch"),
    "GGUF": ({"config.json": {}, "pythia.Q4_K_M.gguf": ""}, "a GGUF model"),
    "ONNX": ({"config.json": {}, "model.onnx": "", "model.onnx_data": ""}, "an ONNX export"),
    "TensorFlow": ({"config.json": {}, "tf_model.h5": ""}, "a TensorFlow checkpoint"),
    "Flax": ({"config.json": {}, "flax_model.msgpack": ""}, "a Flax checkpoint"),
    "artifact": ({"manifest.json": {}, "quantization.json": {}, "model.onnx": ""}, "an artifact of pythia-export"),
    "another name": ({"config.json": {}, "last.ckpt": ""}, r"weights of another name \(last.ckpt\)"),
    "no index": ({"config.json": {}, "model-00001-of-00002.safetensors": ""}, "shards without its index"),
    "hub's cache": ({"snapshots/abc/config.json": {}, "refs/main": ""}, "a repository's folder in the hub's cache"),
    "AutoGPTQ": ({"quantize_config.json": {}, "gptq_model-4bit-128g.safetensors": ""}, "already, by GPTQ"),
    "within": ({"v1/config.json": {}, "v2/config.json": {}}, "checkpoints in folders of their own"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_what_a_folder_is_instead_is_said_with_what_to_do(kind, made, tmp_path):
    files, said = FOLDERS[kind]
    for name, content in files.items():
        path = tmp_path / "given" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content) if isinstance(content, dict) else content
        path.write_text((made / "config.json").read_text() if name == "config.json" else text)
    with pytest.raises(SourceError, match=f"given: this is .*{said}") as caught:
        opened(tmp_path / "given")
    assert caught.value.hint


def test_a_file_is_no_folder(folder, tmp_path):
    with pytest.raises(SourceError, match="model.safetensors: a file; a checkpoint is a folder"):
        opened(folder / "model.safetensors")
    (tmp_path / "pythia.gguf").write_bytes(b"GGUF")
    with pytest.raises(SourceError, match="a GGUF model"):
        opened(tmp_path / "pythia.gguf")


def test_what_trainers_leave_beside_a_checkpoint_does_no_harm(folder, made):
    for name in ("training_args.bin", "optimizer.pt", "pytorch_model.bin"):  # the safetensors beside are taken
        (folder / name).write_bytes(b"")
    shutil.copytree(made, folder / "checkpoint-500")
    assert opened(folder).config == CONFIG


def test_a_pointer_for_a_text_or_in_an_artifact_is_said(tmp_path):
    from pythia_export.artifact.manifest import size_fault
    from pythia_export.corpus.find import find_file

    (tmp_path / "text.jsonl").write_bytes(POINTER)
    with pytest.raises(SourceError, match="text.jsonl: a git-lfs pointer"):
        find_file(Verify(source="file", path=tmp_path / "text.jsonl"))
    (tmp_path / "model.onnx_data").write_bytes(POINTER)
    said = size_fault(tmp_path, "model.onnx_data", FileEntry(size=4485272, sha256="0" * 64))
    assert said == "a git-lfs pointer (`git lfs pull` fetches the file); the manifest says 4,485,272 bytes"


def test_a_snapshot_of_the_hubs_cache_is_called_as_its_repository(made, tmp_path):
    there = tmp_path / "models--someone--small-neox" / "snapshots" / ("0" * 40)
    shutil.copytree(made, there)
    assert pull(Model(path=there)).name == "someone/small-neox"


def test_a_path_is_no_name_of_a_model(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe("model/../model").model.path and load_recipe("owner/name").model.id == "owner/name"
    for missing in ("./nothing", "../nothing", str(tmp_path / "nothing")):
        with pytest.raises(SourceError, match="no such checkpoint directory"):
            pull(load_recipe(missing).model)
    with pytest.raises(SourceError, match="a file; a checkpoint is a folder"):
        pull(load_recipe("model/config.json").model)
    with pytest.raises(RecipeError, match="'./model' is a path; a local checkpoint is given by `path`"):
        parse_recipe({"model": {"id": "./model"}, "verify": {"source": "python-stdlib"}})
