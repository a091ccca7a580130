"""Checkpoints on disk: read by on-disk names, lazily, and refused by name when something is off."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoints import configured, edit, opened, split
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import hugging_face, on_disk, save_checkpoint, small_config
from processes import script
from safetensors import deserialize
from safetensors.torch import load_file, save_file

from pythia_export.base.errors import IntegrityError, NumericsError, PythiaExportError, SourceError
from pythia_export.checkpoint import Accept, demo_folder, pull
from pythia_export.checkpoint.header import read_header
from pythia_export.model.neox import tensors
from pythia_export.model.suite import geometry
from pythia_export.recipe import Model

NORM = "gpt_neox.layers.1.input_layernorm.bias"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    config = small_config(layers=2)
    return save_checkpoint(hugging_face(config), config, tmp_path_factory.mktemp("made") / "model")


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "model")


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


def indexed(folder, weight_map) -> None:
    split(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def tensor_in_another_shard(folder) -> None:
    split(folder)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first, second = sorted(set(index["weight_map"].values()))
    index["weight_map"] = {n: second if s == first else first for n, s in index["weight_map"].items()}
    path.write_text(json.dumps(index))


def shards_of_two_sets(folder) -> None:
    split(folder)
    (folder / "model-00002-of-00002.safetensors").rename(folder / "model-00002-of-00003.safetensors")
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text().replace("model-00002-of-00002", "model-00002-of-00003"))


def link_to_itself(folder) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("model.safetensors")


def flipped(folder, at: int) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def header_of(data: bytes) -> tuple[dict, bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(text: bytes, body: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + body


def overlapping(folder) -> None:
    path = folder / "model.safetensors"
    header, body = header_of(path.read_bytes())
    layer = "gpt_neox.layers.0.input_layernorm"
    header[f"{layer}.weight"]["data_offsets"] = header[f"{layer}.bias"]["data_offsets"]
    path.write_bytes(with_header(json.dumps(header).encode(), body))


def named_twice(folder) -> None:
    path = folder / "model.safetensors"
    header, body = header_of(path.read_bytes())
    text = json.dumps(header)
    path.write_bytes(with_header((text[:-1] + f', "{NORM}": {json.dumps(header[NORM])}}}').encode(), body))


FAULTS = {
    "no directory": (shutil.rmtree, SourceError, "no such checkpoint directory"),
    "no config": (lambda f: (f / "config.json").unlink(), SourceError, "no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), SourceError, "neither model.safetensors"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), IntegrityError, "not JSON"),
    "another model": (lambda f: configured(f, model_type="llama"), SourceError, "'llama'"),
    "no residual": (lambda f: configured(f, use_parallel_residual=None), SourceError, "true or false"),
    "learned activation": (lambda f: configured(f, hidden_act="prelu"), SourceError, "'prelu', which is not supported"),
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
    "index of nothing": (lambda f: indexed(f, {}), IntegrityError, "not an index of shards"),
    "index of a list": (lambda f: indexed(f, [1]), IntegrityError, "not an index of shards"),
    "index of numbers": (lambda f: indexed(f, {"a": 1}), IntegrityError, "not a file beside it"),
    "index with the wrong shard": (tensor_in_another_shard, IntegrityError, "; it is in model-"),
    "shards of two sets": (shards_of_two_sets, IntegrityError, "different sets"),
    "link to itself": (link_to_itself, SourceError, "a link that leads nowhere"),
    "config nested too deeply": (lambda f: (f / "config.json").write_text("[" * 10**5), IntegrityError, "not JSON"),
    "rotary spelt twice": (lambda f: configured(f, rotary_pct=0.5), SourceError, "two spellings of one thing"),
    "rotary base spelt twice": (lambda f: configured(f, rope_theta=1e6), SourceError, "two spellings of one thing"),
    "scaled rotary without a type": (lambda f: configured(f, rope_scaling={"factor": 2}), SourceError, "no rope_type"),
    "linear without a factor": (
        lambda f: configured(f, rope_scaling={"type": "linear"}, rope_parameters=None),
        SourceError,
        "needs `factor`",
    ),
    "longrope": (
        lambda f: configured(f, rope_scaling={"rope_type": "longrope", "factor": 2.0}, rope_parameters=None),
        SourceError,
        "'longrope' is not supported",
    ),
    "scaled in one spelling": (
        lambda f: configured(f, rope_scaling={"rope_type": "linear", "factor": 2.0}),
        SourceError,
        "two spellings",
    ),
    "rope of the wrong kind": (lambda f: configured(f, rope_scaling="linear"), SourceError, "an object was expected"),
    "factor of no number": (
        lambda f: configured(f, rope_scaling={"type": "linear", "factor": True}, rope_parameters=None),
        SourceError,
        "factor is true; a positive number",
    ),
    "a head_dim of its own": (lambda f: configured(f, head_dim=5), SourceError, "head_dim is 5"),
    "a share in the spelling that nobody reads": (
        lambda f: configured(f, rotary_pct=None, rope_parameters=None, partial_rotary_factor=1.0),
        SourceError,
        "rotary_pct (left out) is 0.25, partial_rotary_factor is 1",
    ),
    "two heads": (lambda f: configured(f, tie_word_embeddings=True), SourceError, "ties the head to the embedding"),
    "header no JSON": (lambda f: flipped(f, 8), IntegrityError, "not JSON"),
    "two tensors on one place": (overlapping, IntegrityError, "overlaps"),
    "a tensor twice": (named_twice, IntegrityError, "twice"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_checkpoint_is_refused_by_name(fault, folder):
    make, kind, said = FAULTS[fault]
    make(folder)
    with pytest.raises(PythiaExportError) as caught:
        opened(folder)
    assert type(caught.value) is kind and said in str(caught.value)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """HF_HOME, where conversions are kept."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def forks(monkeypatch):
    """The process that converts is forked from one in which torch is imported; elsewhere it starts from nothing."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        python, file, *args = command
        assert python == sys.executable and Path(file).is_absolute()
        return script(Path(file), *args)

    monkeypatch.setattr("pythia_export.checkpoint.convert.subprocess", SimpleNamespace(run=run))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_a_pickle_reads_as_the_safetensors_file_does(folder, home, forks, stored):
    edit(folder, lambda t: t.update({n: x.to(stored) for n, x in t.items()}))
    expected = {spec.name: opened(folder).tensor(spec.name) for spec in tensors(small_config(layers=2))}
    whole = load_file(folder / "model.safetensors")
    whole["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    whole["embed_out.weight"] = torch.cat([whole["embed_out.weight"]] * 2)[: len(whole["embed_out.weight"])]  # a view
    torch.save(whole, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    checkpoint = opened(folder)
    assert checkpoint.dtype == str(stored).removeprefix("torch.") and checkpoint.pulled.record.format == "pickle"
    for name, tensor in expected.items():
        assert tensor.dtype == stored and torch.equal(checkpoint.tensor(name), tensor), name
    with pytest.raises(SourceError, match=r"only pickled weights \(pytorch_model.bin\), and --no-pickle"):
        pull(Model(path=folder), accept=Accept(pickles=False))


PICKLES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-4000]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("weights"),
    "a list": lambda path: torch.save([torch.ones(2)], path),
    "numbers": lambda path: torch.save({"a": 1}, path),
    "complex": lambda path: torch.save({"a": torch.ones(2, dtype=torch.complex64)}, path),
    "sparse": lambda path: torch.save({"a": torch.eye(3).to_sparse()}, path),
}


@pytest.mark.parametrize("fault", PICKLES)
def test_a_faulty_pickle_is_refused_and_leaves_nothing(folder, home, forks, fault):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    PICKLES[fault](folder / "pytorch_model.bin")
    with pytest.raises(IntegrityError, match="cannot be read as tensors alone"):
        opened(folder)
    assert [p for p in home.rglob("*") if p.is_file()] == []


def test_a_damaged_conversion_is_made_again(folder, home):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (made,) = opened(folder).pulled.weights
    made.write_bytes(made.read_bytes()[:-100])
    assert opened(folder).tensor(NORM).shape == (128,)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A well-formed file of three tensors, one of them empty."""
    path = tmp_path_factory.mktemp("sample") / "sample.safetensors"
    made = {"a": torch.arange(6, dtype=torch.float16).reshape(2, 3), "b": torch.ones(4), "c": torch.zeros(0, 5)}
    save_file(made, path, metadata={"format": "pt"})
    return path


def test_a_header_says_where_each_tensor_lies(sample):
    found = read_header(sample)
    data = sample.read_bytes()
    assert found["a"].dtype == "F16" and found["a"].shape == (2, 3) and found["c"].nbytes == 0
    a = np.frombuffer(data[found["a"].offset :][: found["a"].nbytes], np.float16)
    assert a.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_shape_whose_product_overflows_before_its_nought_is_refused(sample, tmp_path):
    header, body = header_of(sample.read_bytes())
    header["c"]["shape"] = [1 << 32, 1 << 32, 0]
    path = tmp_path / "large"
    path.write_bytes(with_header(json.dumps(header).encode(), body))
    with pytest.raises(IntegrityError, match=r"c has shape \[4294967296, 4294967296, 0\]"):
        read_header(path)
    header["c"]["shape"] = [0, 1 << 32, 1 << 32]
    path.write_bytes(with_header(json.dumps(header).encode(), body))
    assert read_header(path)["c"].nbytes == 0 and len(deserialize(path.read_bytes())) == 3


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def with_other_json(draw, sample: bytes) -> bytes:
    """A header of any JSON, or with any JSON or a wrong number at one place."""
    header, body = header_of(sample)
    kind = draw(st.sampled_from(["entry", "json", "field"]))
    if kind == "json":
        return with_header(json.dumps(draw(JSONS)).encode(), draw(st.binary(max_size=40)))
    entry = header[draw(st.sampled_from("abc"))]
    if kind == "field":
        entry[draw(st.sampled_from(["dtype", "shape", "data_offsets", "other"]))] = draw(JSONS)
    else:
        field = draw(st.sampled_from(["shape", "data_offsets"]))
        entry[field][draw(st.integers(0, len(entry[field]) - 1))] = draw(st.integers(-3, 60))
    return with_header(json.dumps(header).encode(), body)


def with_other_bytes(rng: random.Random, sample: bytes) -> bytes:
    """Bytes changed, cut or added, or another length at the start. There is no choosing that could be clever here."""
    kind = rng.choice(["bytes", "cut", "longer", "length"])
    if kind == "cut":
        return sample[: rng.randint(0, len(sample))]
    if kind == "longer":
        return sample + rng.randbytes(rng.randint(0, 20))
    if kind == "length":
        return rng.getrandbits(rng.randint(1, 64)).to_bytes(8, "little") + sample[8:]
    data = bytearray(sample)
    for _ in range(rng.randint(1, 6)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def test_no_input_makes_the_header_reader_do_anything_but_read_or_refuse(sample, tmp_path):
    """More than 10,000 of them; and what it takes, the format's own library takes, with the same dtypes and shapes."""
    path, taken, whole = tmp_path / "fuzzed", [], sample.read_bytes()

    def hold(data: bytes) -> None:
        path.write_bytes(data)
        try:
            found = read_header(path)
        except IntegrityError:
            return
        theirs = dict(deserialize(data))
        assert {n: (e.dtype, list(e.shape)) for n, e in found.items()} == {
            n: (e["dtype"], e["shape"]) for n, e in theirs.items()
        }, data
        for name, entry in found.items():
            assert data[entry.offset : entry.offset + entry.nbytes] == bytes(theirs[name]["data"]), (name, data)
        taken.append(1)

    @settings(max_examples=4_500, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(with_other_json(whole))
    def fuzz(data: bytes) -> None:
        hold(data)

    fuzz()
    rng = random.Random(0)
    for _ in range(6_000):
        hold(with_other_bytes(rng, whole))
    assert len(taken) > 100, "some of them are well-formed all the same"


def test_a_sharded_12b_checkpoint_opens_in_a_second(tmp_path):
    """Its real shapes, in three sparse files: no byte of a tensor is read. A process of its own, for its memory."""
    config = geometry("EleutherAI/pythia-12b")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict("float16")))
    specs, places = list(tensors(config)), {}
    for i in range(3):
        header, at, name = {}, 0, f"model-0000{i + 1}-of-00003.safetensors"
        for spec in specs[i::3]:
            nbytes = 2 * math.prod(spec.shape)
            header[spec.name] = {"dtype": "F16", "shape": list(spec.shape), "data_offsets": [at, at + nbytes]}
            places[spec.name], at = name, at + nbytes
        text = json.dumps(header).encode()
        with (tmp_path / name).open("wb") as f:
            f.write(with_header(text, b""))
            f.truncate(8 + len(text) + at)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert sum(p.stat().st_size for p in tmp_path.glob("*.safetensors")) > 23.6e9
    code = (
        "import resource, sys, time; from pathlib import Path\n"
        "from pythia_export.checkpoint import open_checkpoint, pull; from pythia_export.checkpoint.pull import Pulled\n"
        "folder = Path(sys.argv[1]); weights = tuple(sorted(folder.glob('*.safetensors')))\n"
        "before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()\n"
        "opened = open_checkpoint(Pulled(folder, 'x', 'main', 'c', weights))\n"
        "took = time.perf_counter() - began\n"
        "print(opened.parameters, took, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    parameters, seconds, megabytes = done.stdout.split()
    assert parameters == "11846072320" and float(seconds) < 1 and float(megabytes) < 100, done.stdout


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
