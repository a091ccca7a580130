"""Where a text ends, and how it is drawn: an artifact beside transformers on the same checkpoint."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from places import ROOT, TESTS
from processes import script
from tokenizers import Tokenizer
from transformers import AutoConfig, GenerationConfig, GPTNeoXForCausalLM
from typer.testing import CliRunner

from pythia_export import Artifact, cli
from pythia_export.base.errors import SourceError
from pythia_export.base.progress import SILENT
from pythia_export.checkpoint.fit import misfits
from pythia_export.checkpoint.pull import read_model
from pythia_export.commands.run import run
from pythia_export.recipe import parse_recipe
from pythia_export.runtime import Sampling, generate_batch
from pythia_export.tokenizer import open_folder

DEMO = ROOT / "demo" / "main"
HERE = TESTS / "consumers"
GENAI = ROOT / "build" / "consumers" / "venv" / "bin" / "python"
CONFIG = json.loads((DEMO / "config.json").read_text())
PROMPT, NEW = "def main(", 24
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}def {% endif %}"
)
ABSENT = object()


def put(folder: Path, config: dict, generation: dict | None) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))


@pytest.mark.parametrize(
    "of_config", [0, 5, [0, 199], [7], None, ABSENT], ids=lambda v: "absent" if v is ABSENT else str(v)
)
@pytest.mark.parametrize(
    "generation", [None, {}, {"eos_token_id": 3}, {"eos_token_id": [0, 199, 0]}, {"eos_token_id": None}], ids=str
)
def test_the_end_tokens_are_those_of_transformers(of_config, generation, tmp_path):
    config = {k: v for k, v in CONFIG.items() if k != "eos_token_id"}
    put(tmp_path, config if of_config is ABSENT else config | {"eos_token_id": of_config}, generation)
    try:  # as PreTrainedModel.from_pretrained does it
        theirs = GenerationConfig.from_pretrained(tmp_path)
    except OSError:
        theirs = GenerationConfig.from_model_config(AutoConfig.from_pretrained(tmp_path))
    read, settings = read_model(tmp_path)
    expected = np.atleast_1d([] if theirs.eos_token_id is None else theirs.eos_token_id).tolist()
    assert list(read.eos_token_ids) == list(settings.eos_token_ids) == list(dict.fromkeys(expected))
    assert read.bos_token_id == theirs.bos_token_id
    assert any("no end token" in note for note in settings.notes) is (not expected)
    own = np.atleast_1d([] if of_config in (None, ABSENT) else of_config).tolist()
    lost = of_config is not ABSENT and expected and generation is not None and (not own or set(own) - set(expected))
    assert any("not those of config.json" in note for note in settings.notes) is bool(lost)
    assert any("transformers takes 2" in note for note in settings.notes) is (
        of_config is ABSENT and generation is None
    )
    (tmp_path / "again").mkdir()  # what an artifact writes of it
    put(tmp_path / "again", read.to_dict(), dict(settings.raw))
    again, same = read_model(tmp_path / "again")
    assert again == read and (same.eos_token_ids, same.raw) == (settings.eos_token_ids, settings.raw)


@pytest.mark.parametrize("wrong", [-1, 4096, [0, 4096], "0", 0.0, True, [[0]], 10**30])
def test_an_end_token_that_the_model_lacks_is_the_fault_of_the_file_that_names_it(wrong, tmp_path):
    for config, generation, name in (
        (CONFIG | {"eos_token_id": wrong}, None, r"/config\.json"),
        (CONFIG, {"eos_token_id": wrong}, "generation_config.json"),
    ):
        put(tmp_path, config, generation)
        with pytest.raises(SourceError, match=f"{name}: eos_token_id is .*0 to 4,095"):
            read_model(tmp_path)


def test_sampling_settings_are_those_of_transformers(tmp_path):
    for config, generation in (
        (CONFIG, {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "eos_token_id": 0, "pad_token_id": 1}),
        (CONFIG | {"do_sample": True, "temperature": 0.5, "top_k": 7}, None),
        (CONFIG, {"repetition_penalty": 1.2, "top_k": 0}),
    ):
        put(tmp_path, config, generation)
        try:
            theirs = GenerationConfig.from_pretrained(tmp_path)
        except OSError:
            theirs = GenerationConfig.from_model_config(AutoConfig.from_pretrained(tmp_path))
        _, ours = read_model(tmp_path)
        for name in ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "pad_token_id"):
            assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.unapplied == ("repetition_penalty",)
    assert Sampling.asked(ours) == Sampling() and Sampling.asked(ours, True, seed=1) == Sampling(1.0, None, 1.0, 1)
    put(tmp_path, CONFIG, {"pad_token_id": -1, "temperature": "hot"})
    with pytest.raises(SourceError, match="temperature is 'hot'"):
        read_model(tmp_path)
    put(tmp_path, CONFIG, {"pad_token_id": -1, "eos_token_id": [3, 4]})
    _, ours = read_model(tmp_path)
    assert ours.fill_token_id == 3 and "pad_token_id is -1" in ours.notes[0]


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> tuple[Path, Path]:
    """A chat fine-tune as people save one, and its artifact. 317 is a token that the demo soon writes."""
    folder = tmp_path_factory.mktemp("chat") / "checkpoint"
    shutil.copytree(DEMO, folder)
    end = {"bos_token_id": 0, "eos_token_id": [0, 317], "pad_token_id": 1}
    put(folder, CONFIG, end | {"do_sample": True, "temperature": 0.7, "top_p": 0.9})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=40)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    recipe = {
        "model": {"path": str(folder)},
        "quantize": {"method": "rtn", "bits": 8},
        "verify": {"source": "python-stdlib", "tokens": 256, "sequence_length": 64},
    }
    run(parse_recipe(recipe), folder.parent / "artifact")
    return folder, folder.parent / "artifact"


@pytest.fixture(scope="module")
def expected(chat) -> list[int]:
    """By transformers, of the checkpoint; without the end token."""
    model = GPTNeoXForCausalLM.from_pretrained(chat[0], torch_dtype="float32")
    ids = Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(PROMPT).ids
    settings = {"max_new_tokens": NEW, "do_sample": False, "temperature": None, "top_p": None}
    new = model.generate(model.dummy_inputs["input_ids"].new_tensor([ids]), **settings)[0, len(ids) :].tolist()
    assert new[-1] == 317 and 1 < len(new) < NEW, "nothing would end"
    return new[:-1]


def test_generate_ends_at_any_end_token_and_reads_all_of_the_prompt(chat, expected):
    artifact = Artifact.open(chat[1])
    tokenizer = artifact.tokenizer()
    assert artifact.generate(PROMPT, NEW) == tokenizer.decode(expected)
    prompts = [tokenizer.encode(text).ids for text in (PROMPT, "import os\n")]
    assert generate_batch(artifact.session, tokenizer, prompts, NEW)[0] == expected
    assert len(artifact.score("x = 1\n" * 30)) > 100


def test_the_command_line_is_greedy_and_says_what_the_file_would_do(chat, expected):
    text = Artifact.open(chat[1]).tokenizer().decode(expected)
    line = ["generate", str(chat[1]), "-p", PROMPT, "--max-new-tokens", str(NEW)]
    done = CliRunner().invoke(cli.app, line)
    assert done.exit_code == 0 and done.stdout == f"{text}\n" and "--sample does" in done.stderr, done.output
    drawn = [CliRunner().invoke(cli.app, [*line, "--sample", "--seed", str(seed)]) for seed in (1, 1, 2)]
    assert drawn[0].stdout == drawn[1].stdout != drawn[2].stdout and "--sample does" not in drawn[0].stderr


def test_every_file_travels_and_other_programs_find_the_ends(chat):
    artifact = Artifact.open(chat[1])
    stored = json.loads((chat[1] / "generation_config.json").read_text())
    assert stored == json.loads((chat[0] / "generation_config.json").read_text())
    assert artifact.read_json("config.json")["eos_token_id"] == [0, 317]
    genai = artifact.read_json("genai_config.json")
    assert genai["model"]["eos_token_id"] == [0, 317] and genai["model"]["pad_token_id"] == 1
    assert genai["search"]["do_sample"] is True and genai["search"]["temperature"] == 0.7
    assert artifact.file("chat_template.jinja").read_text() == TEMPLATE
    assert Tokenizer.from_file(str(chat[1] / "tokenizer.json")).truncation is None
    artifact.check()


def test_optimum_and_genai_end_there_too(chat, expected):
    pytest.importorskip("optimum.onnxruntime")
    prompts = [json.dumps([PROMPT]), str(NEW)]
    done = script(HERE / "optimum_run.py", chat[1], *prompts)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["alone"] == [[*expected, 317]]
    if GENAI.is_file():
        line = [GENAI, HERE / "genai_run.py", chat[1], *prompts]
        done = subprocess.run(list(map(str, line)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(done.stdout.splitlines()[-1])["alone"] == [expected]


def notes(folder: Path, change=None, **settings: object) -> list[str]:
    """What is told of a checkpoint whose tokenizer.json was changed, or tokenizer_config.json."""
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())
    if change:
        change(tokenizer)
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(DEMO / name, folder / name)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPTNeoXTokenizer", **settings}))
    return misfits(open_folder(folder), read_model(folder)[0])


def test_a_tokenizer_that_is_not_the_models_is_told_where_its_files_say_so(tmp_path):
    assert notes(tmp_path) == []

    def another_models(t: dict) -> None:
        """Its end of text stands elsewhere, as GPT-2's does."""
        end, other = "<|endoftext|>", next(name for name, at in t["model"]["vocab"].items() if at == 4095)
        t["model"]["vocab"] |= {end: 4095, other: 0}
        t["added_tokens"][0]["id"] = 4095

    told = notes(tmp_path, another_models)
    assert len(told) == 2 and "no special token" in told[0] and "'<|endoftext|>' (id 4095), the model's 0" in told[1]
    assert "is it this model's tokenizer" in told[1].lower()
    (told,) = notes(tmp_path, pad_token="[PAD]")
    assert "goes to id 4,096 ('[PAD]'), the model to 4,095" in told


def test_a_tokenizer_with_other_ids_shows_in_the_proof(tmp_path):
    """The same tokens in another order: no file can tell, the held-out text does."""
    shutil.copytree(DEMO, tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    names = list(tokenizer["model"]["vocab"])
    tokenizer["model"]["vocab"] = {names[0]: 0, **{name: at for at, name in enumerate(reversed(names[1:]), 1)}}
    path.write_text(json.dumps(tokenizer))
    said: list[str] = []

    class Heard(type(SILENT)):
        def note(self, message: str) -> None:
            said.append(message)

    recipe = {
        "model": {"path": str(tmp_path / "checkpoint")},
        "quantize": {"method": "rtn", "bits": 8},
        "verify": {"source": "python-stdlib", "tokens": 128, "sequence_length": 64},
    }
    run(parse_recipe(recipe), tmp_path / "artifact", progress=Heard())
    assert any("worse than by chance" in note and "8.32" in note for note in said), said


def test_a_chat_is_answered_in_the_checkpoints_own_template(chat):
    artifact = Artifact.open(chat[1])
    messages = [{"role": "user", "content": "write a function"}]
    assert artifact.chat_prompt(messages) == "user: write a function\ndef "
    answer = artifact.generate("user: write a function\ndef ", NEW)
    assert artifact.chat("write a function", NEW) == artifact.chat(messages, NEW) == answer
    line = ["generate", str(chat[1]), "--chat", "-p", "write a function", "--max-new-tokens", str(NEW)]
    done = CliRunner().invoke(cli.app, line)
    assert done.exit_code == 0 and done.stdout == f"{answer}\n", done.output
