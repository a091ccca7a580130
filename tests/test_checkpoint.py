"""Checkpoints on disk: read by on-disk names, lazily, and refused by name when something is off."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from models import hugging_face, on_disk, save_checkpoint, small_config
from safetensors.torch import load_file, save_file

from pythia_export.checkpoint import demo_folder, open_checkpoint, pull
from pythia_export.errors import IntegrityError, NumericsError, PythiaExportError, SourceError
from pythia_export.neox import tensors
from pythia_export.recipe import Model

NORM = "gpt_neox.layers.1.input_layernorm.bias"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    config = small_config(layers=2)
    return save_checkpoint(hugging_face(config), config, tmp_path_factory.mktemp("made") / "model")


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "model")


def opened(folder):
    return open_checkpoint(pull(Model(path=folder)))


def split(folder) -> None:
    """The same checkpoint in two shards."""
    whole = load_file(folder / "model.safetensors")
    names = sorted(whole)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, part in halves.items():
        save_file({n: whole[n] for n in part}, folder / shard)
    index = {"weight_map": {n: shard for shard, part in halves.items() for n in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


def test_every_tensor_is_read_by_its_on_disk_name(folder):
    checkpoint, expected = opened(folder), on_disk(hugging_face(small_config(layers=2)))
    assert checkpoint.dtype == "float16" and checkpoint.config == small_config(layers=2)
    for spec in tensors(checkpoint.config):
        assert torch.equal(checkpoint.tensor(spec.name).float(), expected[spec.name]), spec.name


def test_shards_read_as_the_single_file_does(folder):
    single = opened(folder).tensor(NORM)
    split(folder)
    assert torch.equal(opened(folder).tensor(NORM), single)


def test_stored_buffers_are_ignored(folder):
    whole = load_file(folder / "model.safetensors")
    for layer in range(2):
        whole[f"gpt_neox.layers.{layer}.attention.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool)
        whole[f"gpt_neox.layers.{layer}.attention.masked_bias"] = torch.tensor(-1e9)
        whole[f"gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq"] = torch.rand(4)
    save_file(whole, folder / "model.safetensors")
    assert torch.equal(opened(folder).tensor(NORM), whole[NORM])


def test_the_commit_of_a_directory_is_its_content(folder):
    first = pull(Model(path=folder)).commit
    assert first.startswith("sha256:") and pull(Model(path=folder)).commit == first
    edit(folder, lambda t: t[NORM].add_(1))
    assert pull(Model(path=folder)).commit != first


def edit(folder, change) -> None:
    whole = load_file(folder / "model.safetensors")
    change(whole)
    save_file(whole, folder / "model.safetensors")


def cut(folder) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def header_beyond_the_end(folder) -> None:
    path = folder / "model.safetensors"
    path.write_bytes((10**12).to_bytes(8, "little") + path.read_bytes()[8:])


def missing_shard(folder) -> None:
    split(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def index_to_elsewhere(folder) -> None:
    split(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))


def configured(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


FAULTS = {
    "no directory": (shutil.rmtree, SourceError, "no such checkpoint directory"),
    "no config": (lambda f: (f / "config.json").unlink(), SourceError, "no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), SourceError, "neither model.safetensors"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), IntegrityError, "not JSON"),
    "another model": (lambda f: configured(f, model_type="llama"), SourceError, "'llama'"),
    "sequential residual": (lambda f: configured(f, use_parallel_residual=False), SourceError, "use_parallel_residual"),
    "heads do not divide": (lambda f: configured(f, num_attention_heads=5), SourceError, "not a multiple"),
    "missing tensor": (lambda f: edit(f, lambda t: t.pop(NORM)), SourceError, NORM),
    "extra tensor": (lambda f: edit(f, lambda t: t.update(extra=torch.ones(1))), IntegrityError, "extra"),
    "too many layers": (lambda f: configured(f, num_hidden_layers=1), IntegrityError, "layers.1"),
    "wrong shape": (lambda f: edit(f, lambda t: t.update({NORM: torch.ones(5)})), IntegrityError, NORM),
    "wrong dtype": (lambda f: edit(f, lambda t: t.update({NORM: t[NORM].int()})), IntegrityError, "I32"),
    "truncated": (cut, IntegrityError, "model.safetensors"),
    "header beyond the end": (header_beyond_the_end, IntegrityError, "truncated"),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), IntegrityError, "truncated"),
    "missing shard": (missing_shard, SourceError, "model-00002-of-00002.safetensors"),
    "index to elsewhere": (index_to_elsewhere, IntegrityError, "not a file beside it"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_checkpoint_is_refused_by_name(fault, folder):
    make, kind, said = FAULTS[fault]
    make(folder)
    with pytest.raises(PythiaExportError) as caught:
        opened(folder)
    assert type(caught.value) is kind and said in str(caught.value)


def test_pickled_weights_alone_are_named(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"neither .*, only pytorch_model.bin"):
        opened(folder)


def test_a_tensor_that_two_shards_hold_is_refused(folder):
    split(folder)
    second = load_file(folder / "model-00002-of-00002.safetensors")
    first = load_file(folder / "model-00001-of-00002.safetensors")
    twice = next(iter(first))
    save_file(second | {twice: first[twice]}, folder / "model-00002-of-00002.safetensors")
    with pytest.raises(IntegrityError, match=f"{twice} is in .*00001.* and again in .*00002"):
        opened(folder)


@pytest.mark.parametrize(
    ("stored", "said"), [(torch.bfloat16, "bfloat16"), (torch.float32, "float32"), (None, "float32")]
)
def test_the_stored_dtype_is_kept(folder, stored, said):
    def cast(whole):
        for name in whole:
            whole[name] = whole[name].to(stored or (torch.float32 if name == NORM else torch.float16))

    edit(folder, cast)
    checkpoint = opened(folder)
    assert checkpoint.dtype == said and checkpoint.tensor(NORM).dtype == (stored or torch.float32)


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="resident memory is read from /proc")
def test_reading_every_tensor_keeps_none_of_them(tmp_path):
    config = small_config(layers=24, size="31m", ff=1024)  # 38 MB of blocks
    whole = {spec.name: torch.zeros(spec.shape, dtype=torch.float16) for spec in tensors(config)}
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    save_file(whole, tmp_path / "model.safetensors")
    del whole
    checkpoint = opened(tmp_path)
    before = resident()
    for spec in tensors(config):
        checkpoint.tensor(spec.name)
    assert resident() - before < 10e6 < (tmp_path / "model.safetensors").stat().st_size / 3


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_missing_tokenizer_is_said_when_it_is_needed(folder):
    checkpoint = opened(folder)
    assert checkpoint.tokenizer_files() == []
    with pytest.raises(SourceError, match="no tokenizer.json"):
        checkpoint.tokenizer()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(IntegrityError, match="not a tokenizer"):
        checkpoint.tokenizer()


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_nan_is_found_when_the_tensor_is_read(folder, value):
    edit(folder, lambda t: t[NORM].__setitem__(7, value))
    checkpoint = opened(folder)
    checkpoint.tensor("embed_out.weight")
    with pytest.raises(NumericsError, match=rf"{NORM} holds .* at \[7\]"):
        checkpoint.tensor(NORM)


def test_the_demo_lists_its_revisions():
    assert pull(Model(id="demo")).folder == demo_folder() / "main"
    with pytest.raises(SourceError, match="it has main, step2000, step500"):
        pull(Model(id="demo", revision="step7"))
