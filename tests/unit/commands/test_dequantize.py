"""An artifact's weights as an ordinary checkpoint: transformers loads it and computes what the artifact computes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from models import GEOMETRIES, Exported, InMemory, export_model, hugging_face, on_disk, small_config
from places import ROOT
from safetensors import safe_open
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import AutoTokenizer, GPTNeoXForCausalLM
from typer.testing import CliRunner

from pythia_export import cli
from pythia_export.artifact import Artifact, Staging
from pythia_export.base.errors import IntegrityError, NumericsError, OutputError, RecipeError, ResourceError
from pythia_export.checkpoint import open_checkpoint, pull
from pythia_export.commands import dequantize as module
from pythia_export.commands.dequantize import dequantize, parse_size
from pythia_export.commands.export import export as export_again
from pythia_export.commands.verify import verify
from pythia_export.graph.decoder import kv_cache
from pythia_export.model.neox import HEAD, TensorSpec, tensors
from pythia_export.proof.reference import Reference
from pythia_export.recipe import Export, Model, Quantize
from pythia_export.records.manifest import Origin
from pythia_export.runtime import Session
from pythia_export.weights.names import DATA_FILE
from pythia_export.weights.reader import WeightsReader

FORMAT = Path(__file__).parents[3] / "docs" / "reference" / "artifact.md"
EXPORT = Export()
RTN = {"method": "rtn", "bits": 4, "group_size": 32, "head": {"method": "none"}}
HEAD_INT8 = {"method": "rtn", "bits": 8, "group_size": 32}
QUANTIZE = {
    "symmetric": RTN,
    "asymmetric": RTN | {"symmetric": False},
    "head-int8": RTN | {"head": HEAD_INT8},
    "embedding-int8": RTN | {"embedding": "int8"},
    "embedding-int4": RTN | {"embedding": "int4"},
    "mixed": RTN
    | {
        "group_size": -1,
        "head": HEAD_INT8 | {"symmetric": False},
        "override": [{"pattern": "*.layers.0.*", "bits": 8}, {"pattern": "*.layers.1.mlp.*", "method": "none"}],
    },
}
SOURCE = {"name": "EleutherAI/pythia-0m", "revision": "step3", "commit": "c0ffee"}
PLAIN = [
    *("config.json", "dequantized.json", "generation_config.json"),
    *("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"),
]


def publish(out: Path, quantize: dict, size: str = "14m", eos: int = 0) -> Exported:
    """An artifact as `run` leaves it, of a random model."""
    config = small_config(size=size)
    parsed = Quantize.model_validate(quantize)
    tokenizer = Tokenizer(tokenizer_models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with Staging(out) as staging:
        exported = export_model(InMemory(config, on_disk(hugging_face(config))), staging.folder, parsed, EXPORT)
        write_json(staging.folder / "config.json", config.to_dict("float16"))
        write_json(staging.folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": eos})
        write_json(staging.folder / "quantization.json", exported.record)
        tokenizer.save(str(staging.folder / "tokenizer.json"))
        write_json(staging.folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
        write_json(staging.folder / "special_tokens_map.json", {"unk_token": "?"})
        recipe = {
            "model": {"id": "demo"},
            "quantize": parsed.model_dump(mode="json"),
            "verify": {"source": "python-stdlib"},
        }
        layout = {"kv_cache": kv_cache(EXPORT), "kv_dtype": EXPORT.dtype}
        staging.publish(Origin(versions={}, source=SOURCE, recipe=recipe, calibration=None, layout=layout))
    exported.folder = out
    return exported


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Exported:
    return publish(tmp_path_factory.mktemp("artifact") / "a", QUANTIZE["asymmetric"])


def test_an_end_token_that_the_model_does_not_have_is_refused(tmp_path):
    folder = publish(tmp_path / "a", QUANTIZE["symmetric"], eos=10**6).folder
    for command in (lambda: dequantize(folder, tmp_path / "out"), lambda: verify(folder)):
        with pytest.raises(IntegrityError, match="1000000"):
            command()
    assert not (tmp_path / "out").exists()


@pytest.fixture
def mine(exported, tmp_path) -> Path:
    """A copy to damage."""
    return shutil.copytree(exported.folder, tmp_path / "mine")


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def read_json(path: Path):
    return json.loads(path.read_text())


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of every safetensors file, as safetensors itself reads them."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as f:
            assert f.metadata() == {"format": "pt"}
            found |= {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    return found


def load(folder: Path, **options) -> GPTNeoXForCausalLM:
    model, info = GPTNeoXForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model.eval()


def tokens(vocab: int = 96) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab, (2, 48))


def logits(folder: Path) -> np.ndarray:
    with torch.no_grad():
        return load(folder)(torch.from_numpy(tokens())).logits.float().numpy()


def invoke(*args: object):
    return CliRunner().invoke(cli.app, [str(a) for a in args])


# What it computes


@pytest.mark.parametrize("quantize", [pytest.param(q, id=name) for name, q in QUANTIZE.items()])
def test_transformers_computes_what_the_artifact_computes(quantize, tmp_path):
    exported = publish(tmp_path / "a", quantize)
    dequantize(tmp_path / "a", tmp_path / "plain")
    found = logits(tmp_path / "plain")
    session = Session.open(Artifact.open(tmp_path / "a"), threads=1)
    assert exported.export.accuracy_level == 0 and np.abs(found).max() > 1
    np.testing.assert_allclose(found, session.logits(tokens()), rtol=0, atol=1e-4)
    reference = Reference(exported.reader(), exported.config, tokens(), "reference")
    np.testing.assert_allclose(found, np.stack([reference.logits(i) for i in range(2)]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("quantize", "level", "linears"),
    [(QUANTIZE["asymmetric"], 0, 8), (QUANTIZE["mixed"], 0, 7), (QUANTIZE["head-int8"], 4, 9)],
    ids=["asymmetric", "mixed", "layers-are-one-node"],
)
def test_the_program_of_the_documentation_reads_the_same_weights(quantize, level, linears, tmp_path, monkeypatch):
    """What docs/reference/artifact.md says of the format is enough to read it."""
    publish(tmp_path / "plain-graph", quantize)
    export_again(tmp_path / "plain-graph", tmp_path / "a", accuracy_level=level)
    called = {node.op_type for node in onnx.load(tmp_path / "a" / "model.onnx", load_external_data=False).graph.node}
    assert ("Decoder" in called) is (level == 4)
    dequantize(tmp_path / "a", tmp_path / "plain")
    (program,) = re.findall(r"```python\n(.*?)```", FORMAT.read_text(), re.DOTALL)
    monkeypatch.setattr(sys, "argv", ["read.py", str(tmp_path / "a")])
    names: dict = {}
    exec(program, names)
    plain = stored(tmp_path / "plain")
    assert len(names["weights"]) == linears
    for name, weight in names["weights"].items():
        np.testing.assert_array_equal(weight, plain[f"{name}.weight"].float().numpy(), err_msg=name)


@pytest.mark.parametrize("size", [s for s in GEOMETRIES if small_config(size=s).hidden_size <= 512])
def test_float32_holds_every_weight_exactly(size, tmp_path):
    exported = publish(tmp_path / "a", QUANTIZE["head-int8"], size)
    done = dequantize(tmp_path / "a", tmp_path / "plain")
    found, reader = stored(tmp_path / "plain"), exported.reader()
    assert found.keys() == {spec.name for spec in tensors(exported.config)}
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, reader.tensor(name)), name
    assert done.parameters == sum(t.numel() for t in found.values()) == exported.config.parameters
    assert done.nbytes == 4 * done.parameters and done.weights == ["model.safetensors"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_rounds_once_more_and_says_so(dtype, exported, tmp_path):
    done = dequantize(exported.folder, tmp_path / "plain", dtype=dtype)
    kind, reader = getattr(torch, dtype), exported.reader()
    assert done.nbytes == 2 * done.parameters and done.dtype == dtype
    for name, tensor in stored(tmp_path / "plain").items():
        assert tensor.dtype == kind and torch.equal(tensor, reader.tensor(name).to(kind)), name
    assert load(tmp_path / "plain", torch_dtype="auto").dtype == kind
    close = {"float16": 0.02, "bfloat16": 0.15}[dtype]
    reference = Reference(exported.reader(), exported.config, tokens(), "reference")
    error = np.abs(logits(tmp_path / "plain") - np.stack([reference.logits(i) for i in range(2)])).max()
    assert 1e-5 < error < close
    assert read_json(tmp_path / "plain" / "dequantized.json")["dtype"] == dtype


def test_a_weight_too_large_for_float16_is_an_error_and_fine_in_bfloat16(mine, tmp_path, monkeypatch):
    tensor = WeightsReader.tensor
    monkeypatch.setattr(
        WeightsReader, "tensor", lambda self, n: tensor(self, n) * (1e6 if n == f"{HEAD}.weight" else 1)
    )
    with pytest.raises(NumericsError, match=r"embed_out.weight goes up to \S+e\+0\d, which float16"):
        dequantize(mine, tmp_path / "plain", dtype="float16")
    assert names(tmp_path) == ["mine"]
    dequantize(mine, tmp_path / "plain", dtype="bfloat16")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_that_are_not_finite_are_no_checkpoint(dtype, mine, tmp_path, monkeypatch):
    tensor = WeightsReader.tensor
    monkeypatch.setattr(WeightsReader, "tensor", lambda self, n: tensor(self, n) * (np.nan if "1.mlp" in n else 1))
    with pytest.raises(NumericsError, match=r"layers\.1\.mlp\.\S+ holds a NaN"):
        dequantize(mine, tmp_path / "plain", dtype=dtype)
    assert names(tmp_path) == ["mine"]


# What lies there


def test_the_directory_is_that_of_an_ordinary_checkpoint(exported, tmp_path):
    dequantize(exported.folder, tmp_path / "plain")
    folder = tmp_path / "plain"
    assert names(folder) == sorted([*PLAIN, "model.safetensors"])
    assert read_json(folder / "config.json") == exported.config.to_dict("float32")
    for name in set(PLAIN) - {"config.json", "dequantized.json"}:
        assert (folder / name).read_bytes() == (exported.folder / name).read_bytes()
    assert AutoTokenizer.from_pretrained(folder)("a b c").input_ids == [0, 1, 2]
    record, manifest = (read_json(p) for p in (folder / "dequantized.json", exported.folder / "manifest.json"))
    assert record["source"] == SOURCE and record["dtype"] == "float32"
    assert record["quantize"] == manifest["recipe"]["quantize"] and record["quantize"]["bits"] == 4
    assert record["weights"] == {DATA_FILE: manifest["files"][DATA_FILE]}
    assert sorted(record["files"]) == [name for name in names(folder) if name != "dequantized.json"]


def test_the_tensors_can_be_mapped_where_they_lie(exported, tmp_path):
    dequantize(exported.folder, tmp_path / "plain", dtype="bfloat16")
    data = (tmp_path / "plain" / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__") == (
        len(data) - 8 - length
    )


@pytest.mark.parametrize("limit", [1, 70_000, 300_000])
def test_shards_hold_the_same_tensors_and_their_index_is_right(limit, exported, tmp_path):
    dequantize(exported.folder, tmp_path / "one")
    done = dequantize(exported.folder, tmp_path / "many", shard_bytes=limit)
    n = len(done.weights)
    assert done.weights == [f"model-{i:05}-of-{n:05}.safetensors" for i in range(1, n + 1)]
    assert names(tmp_path / "many") == sorted([*PLAIN, *done.weights, "model.safetensors.index.json"])
    one, many = stored(tmp_path / "one"), stored(tmp_path / "many")
    assert one.keys() == many.keys() and all(torch.equal(one[name], many[name]) for name in one)
    index = read_json(tmp_path / "many" / "model.safetensors.index.json")
    assert index["metadata"] == {"total_size": done.nbytes} and index["weight_map"].keys() == one.keys()
    for shard in done.weights:
        with safe_open(tmp_path / "many" / shard, "pt") as f:
            held = list(f.keys())
        assert held and set(held) == {name for name, at in index["weight_map"].items() if at == shard}
        assert len(held) == 1 or sum(4 * one[name].numel() for name in held) <= limit
    assert n == len(one) if limit == 1 else 3 < n < len(one)
    np.testing.assert_array_equal(logits(tmp_path / "one"), logits(tmp_path / "many"))


def test_a_shard_is_filled_to_the_last_byte_and_no_further():
    specs = [TensorSpec(name, (25,), "bias") for name in "abcde"]  # 100 bytes each
    for limit, filled in ((100, [1] * 5), (199, [1] * 5), (200, [2, 2, 1]), (499, [4, 1]), (500, [5])):
        assert [len(shard) for shard in module._shards(specs, "float32", limit).values()] == filled
    assert list(module._shards(specs, "float16", 250)) == ["model.safetensors"]


@pytest.mark.parametrize("limit", [10**9, 300_000])
def test_it_is_a_checkpoint_that_can_be_quantised_again(limit, exported, tmp_path):
    """Our own reader is strict about headers, names, shapes and the index."""
    dequantize(exported.folder, tmp_path / "plain", shard_bytes=limit)
    checkpoint = open_checkpoint(pull(Model(path=tmp_path / "plain")))
    reader = exported.reader()
    for spec in tensors(exported.config):
        assert torch.equal(checkpoint.tensor(spec.name), reader.tensor(spec.name))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_tensor_is_in_memory_at_a_time(dtype, exported, tmp_path, monkeypatch):
    tensor, made, alive = WeightsReader.tensor, [], []

    def watched(self, name):
        alive.append(sum(ref() is not None for ref in made))
        array = tensor(self, name).numpy().copy()
        made.append(weakref.ref(array))  # lives as long as the memory, whichever tensor looks at it
        return torch.from_numpy(array)

    monkeypatch.setattr(WeightsReader, "tensor", watched)
    dequantize(exported.folder, tmp_path / "plain", dtype=dtype)
    assert len(alive) == 2 * 12 + 4 and max(alive) == 0


# Whole or absent


def test_an_existing_directory_is_refused_and_a_checkpoint_of_ours_replaced_on_demand(exported, tmp_path):
    out = tmp_path / "plain"
    dequantize(exported.folder, out)
    with pytest.raises(OutputError, match="exists") as caught:
        dequantize(exported.folder, out)
    assert "--overwrite" in caught.value.hint
    dequantize(exported.folder, out, dtype="float16", shard_bytes=10**5, overwrite=True)
    assert read_json(out / "config.json")["torch_dtype"] == "float16"
    dequantize(exported.folder, out, overwrite=True)
    assert names(out) == sorted([*PLAIN, "model.safetensors"]) and names(tmp_path) == ["plain"]


def test_an_artifact_is_not_replaced(exported, mine):
    for source in (exported.folder, mine):
        with pytest.raises(OutputError, match=r"no dequantised checkpoint \(no readable dequantized.json"):
            dequantize(source, mine, overwrite=True)
    Artifact.open(mine).check()


@pytest.mark.parametrize("name", ["README.md", "pytorch_model.bin"])
def test_what_someone_added_and_checkpoints_of_other_origin_are_not_replaced(name, exported, tmp_path):
    out = tmp_path / "plain"
    dequantize(exported.folder, out)
    (out / name).write_text("mine")
    with pytest.raises(OutputError, match=f"its dequantized.json does not name: {name}"):
        dequantize(exported.folder, out, overwrite=True)
    (out / "dequantized.json").unlink()
    with pytest.raises(OutputError, match="is no dequantised checkpoint .* it holds .*config.json"):
        dequantize(exported.folder, out, overwrite=True)
    assert (out / name).read_text() == "mine"


def test_an_artifact_does_not_replace_a_dequantised_checkpoint(exported, tmp_path):
    dequantize(exported.folder, tmp_path / "plain")
    with pytest.raises(OutputError, match=r"no artifact \(no readable manifest.json"):
        Staging(tmp_path / "plain", overwrite=True)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_between_leaves_what_was_there(error, exported, tmp_path, monkeypatch):
    dequantize(exported.folder, tmp_path / "old")
    tensor = WeightsReader.tensor

    def fail_late(self, name):
        if name == f"{HEAD}.weight":
            raise error
        return tensor(self, name)

    monkeypatch.setattr(WeightsReader, "tensor", fail_late)
    for name, overwrite in (("old", True), ("new", False)):
        with pytest.raises(error):
            dequantize(exported.folder, tmp_path / name, dtype="float16", overwrite=overwrite)
    assert names(tmp_path) == ["old"] and read_json(tmp_path / "old" / "config.json")["torch_dtype"] == "float32"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_killed_in_between_nothing_carries_the_name(how, exported, tmp_path):
    script = f"""
        import time
        from pathlib import Path
        from pythia_export.commands import dequantize as module
        def stop(*_):
            print("now", flush=True)
            time.sleep(60)
        module._write_json = stop  # the weights are written
        module.dequantize(Path({str(exported.folder)!r}), Path({str(tmp_path / "plain")!r}))
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, env=environment
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == b"now\n"
        there = [n for n in names(tmp_path) if n != ".plain.lock"]
        assert [n for n in there if n.startswith(".plain.tmp-")] == there != []
        child.send_signal(how)
        child.wait(timeout=30)
    assert not (tmp_path / "plain").exists() and (how == signal.SIGKILL or names(tmp_path) == [])
    dequantize(exported.folder, tmp_path / "plain")
    assert names(tmp_path) == ["plain"]


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(exported, tmp_path, monkeypatch):
    needed = 4 * exported.config.parameters
    usage = shutil.disk_usage(tmp_path)
    for free, enough in ((needed - 1, False), (needed, True)):
        monkeypatch.setattr(module.shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        if enough:
            dequantize(exported.folder, tmp_path / "plain")
        else:
            with pytest.raises(ResourceError, match=f"take {needed:,} bytes and {free:,} are free"):
                dequantize(exported.folder, tmp_path / "plain")
            assert names(tmp_path) == []


def test_a_damaged_artifact_is_refused(mine, tmp_path):
    with (mine / DATA_FILE).open("r+b") as f:
        f.write(b"\xff")
    with pytest.raises(IntegrityError, match="model.onnx_data: sha256"):
        dequantize(mine, tmp_path / "deep" / "plain")
    assert names(tmp_path) == ["mine"]


# The command


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("2GiB", 2**31), ("1.5 mb", 1_500_000), ("700", 700), ("1kib", 1024), ("3B", 3)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0", "0.1B", "-1GB", "5 apples", "1e9", "2iB", "5XB"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(RecipeError, match="is no size"):
        parse_size(text)


def test_the_command_says_what_it_wrote(exported, tmp_path):
    done = invoke("dequantize", exported.folder, tmp_path / "plain", "--max-shard-size", "1MB")
    assert done.exit_code == 0 and done.stdout.startswith(f"Checkpoint  {tmp_path / 'plain'} (")
    assert f"{exported.config.parameters:,} parameters" in done.stdout and "float32 in 2 files" in done.stdout
    done = invoke("dequantize", exported.folder, tmp_path / "plain", "--dtype", "bfloat16", "--overwrite", "--json")
    said = json.loads(done.stdout)
    assert said["folder"] == str(tmp_path / "plain") and said["weights"] == ["model.safetensors"]
    assert said["nbytes"] == 2 * said["parameters"] == 2 * exported.config.parameters and said["dtype"] == "bfloat16"
    assert stored(tmp_path / "plain")[f"{HEAD}.weight"].dtype == torch.bfloat16


def test_the_help_says_that_the_short_types_round_again():
    help_text = " ".join(invoke("dequantize", "--help").output.split())
    assert "round them again" in help_text.replace("│ │ ", "")


def test_exit_codes(exported, mine, tmp_path):
    (mine / DATA_FILE).write_bytes((mine / DATA_FILE).read_bytes()[::-1])
    done = invoke("dequantize", mine, tmp_path / "plain")
    assert done.exit_code == 4 and DATA_FILE in done.stderr and done.stdout == ""
    done = invoke("dequantize", exported.folder, mine)
    assert done.exit_code == 8 and "--overwrite" in done.stderr
    assert invoke("dequantize", exported.folder, mine, "--overwrite").exit_code == 8
    assert invoke("dequantize", exported.folder, tmp_path / "plain", "--max-shard-size", "many").exit_code == 2
    assert invoke("dequantize", exported.folder, tmp_path / "plain", "--dtype", "int4").exit_code == 2
    assert names(tmp_path) == ["mine"]
