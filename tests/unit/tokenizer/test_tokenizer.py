"""Tokenizers, held to transformers: the folder that people bring, and the folder that an artifact makes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import transformers
from places import ROOT
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from pythia_export.base.errors import IntegrityError, RecipeError, SourceError
from pythia_export.tokenizer import has_tokenizer, open_folder, read_tokenizer, render_chat, tokenizer_files

# transformers 5 makes other tokenizers of such folders; ours are what 4.57 makes of them.
FOUR = transformers.__version__.startswith("4.")
DEMO = ROOT / "demo" / "main"
TEXTS = [
    "def main():\n    return  1\n\n\n",
    " a  b", "naïve Å é e\u0301 \u212b 日本語 🏳️‍🌈\r\n\tx", "<|endoftext|>a<|endoftext|>",
    "a<|user|> b <|user|>c<|im_end|>plain added[PAD] <extra>", "",
]  # fmt: skip
PLAIN = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
NEOX, GENERIC = (
    PLAIN | {"tokenizer_class": "GPTNeoXTokenizerFast"},
    PLAIN | {"tokenizer_class": "PreTrainedTokenizerFast"},
)


def spelt(text: str, **flags: bool) -> dict[str, object]:
    return {"content": text, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False} | flags


def truncates(t: Tokenizer) -> None:
    t.enable_truncation(16)
    t.enable_padding(length=32, pad_token="<|endoftext|>")


def begins_and_ends(t: Tokenizer) -> None:
    t.post_processor = processors.TemplateProcessing(
        single=["<|endoftext|>:0", "$A:0"], special_tokens=[("<|endoftext|>", 0)]
    )


def with_tokens(t: Tokenizer) -> None:
    t.add_tokens([AddedToken("<|user|>", special=True, lstrip=True), AddedToken("plain", special=False)])


def other_parts(t: Tokenizer) -> None:
    t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])


def spaced(t: Tokenizer) -> None:
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def nothing(t: Tokenizer) -> None:
    pass


END = {"0": spelt("<|endoftext|>", special=True)}
MANY = {
    **END, "4096": spelt("<|user|>", special=True), "4099": spelt("[PAD]", special=True),
    "4098": spelt("<extra>", normalized=True, special=False),
}  # fmt: skip
MAP = {"pad_token": spelt("[PAD]", lstrip=True), "additional_special_tokens": ["<|user|>", spelt("<|im_end|>")]}
PEOPLES = {
    "name_or_path": "/mnt/somebody/model", "special_tokens_map_file": "/mnt/x", "padding_side": "left",
    "model_max_length": 10**30, "clean_up_tokenization_spaces": True,
}  # fmt: skip
TWO = ["<|user|>", "<|im_end|>"]

# What becomes of tokenizer.json; tokenizer_config.json, special_tokens_map.json, added_tokens.json.
FOLDERS: dict[str, tuple] = {
    "plain": (nothing, NEOX, PLAIN),
    "alone": (nothing,),
    "truncates": (truncates, NEOX),
    "truncates, generic": (truncates, GENERIC),
    "a template, of which the class makes nothing": (begins_and_ends, NEOX),
    "a template that stays": (begins_and_ends, GENERIC),
    "begins by the class": (nothing, NEOX | {"add_bos_token": True}),
    "begins and ends": (nothing, NEOX | {"add_bos_token": True, "add_eos_token": True}),
    "a space before": (nothing, NEOX | {"add_prefix_space": True}),
    "a space that the settings take away": (spaced, NEOX | {"add_prefix_space": False}),
    "a space that no settings name": (spaced, GENERIC),
    "tokens of its own": (with_tokens, NEOX),
    "other parts": (other_parts, GENERIC),
    "an added file": (nothing, NEOX, PLAIN | {"pad_token": "[PAD]"}, {"[PAD]": 4098, "<|user|>": 4096, "plain": 4097}),
    "tokens in both": (with_tokens, NEOX, None, {"<|user|>": 4096, "plain": 4097, "<extra>": 4098}),
    "a map of objects": (nothing, GENERIC, MAP),
    "a map that is not read": (nothing, NEOX | {"added_tokens_decoder": END}, {"pad_token": "[PAD]"}, {"x": 5000}),
    "a decoder with more": (with_tokens, NEOX | {"pad_token": "[PAD]", "added_tokens_decoder": MANY}),
    "additional": (nothing, NEOX | {"additional_special_tokens": TWO, "pad_token": "<|im_end|>"}),
    "named": (nothing, NEOX | {"extra_special_tokens": {"turn_token": "<|user|>"}}),
    "null tokens": (nothing, NEOX | {"unk_token": None, "bos_token": None}),
    "what people's files hold": (nothing, NEOX | PEOPLES),
}


@pytest.fixture
def written(tmp_path):
    def write(change=nothing, settings=None, of_map=None, added=None) -> tuple[Path, Path]:
        """A folder as people have it, and what an artifact makes of it."""
        folder, out = tmp_path / "folder", tmp_path / "out"
        folder.mkdir()
        out.mkdir()
        tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
        change(tokenizer)
        tokenizer.save(str(folder / "tokenizer.json"))
        for name, value in (
            ("tokenizer_config.json", settings), ("special_tokens_map.json", of_map), ("added_tokens.json", added),
        ):  # fmt: skip
            if value is not None:
                (folder / name).write_text(json.dumps(value))
        shutil.copyfile(DEMO / "config.json", folder / "config.json")
        return folder, artifact(folder, out)

    return write


def artifact(folder: Path, out: Path) -> Path:
    shutil.copyfile(DEMO / "config.json", out / "config.json")
    for name, data in tokenizer_files(open_folder(folder), 512).items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(data)
    return out


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_are_those_of_transformers_and_those_of_the_artifacts_tokenizer_json(name, written):
    folder, out = written(*FOLDERS[name])
    ours, made = open_folder(folder), AutoTokenizer.from_pretrained(out)
    theirs = AutoTokenizer.from_pretrained(folder) if FOUR else made  # what an artifact makes of it, 5 reads as well
    alone = Tokenizer.from_file(str(out / "tokenizer.json"))
    for text in TEXTS:
        expected = theirs(text)["input_ids"]
        assert ours.tokenizer.encode(text).ids == expected, text
        assert made(text)["input_ids"] == expected and set(made(text)) == {"input_ids", "attention_mask"}, text
        assert (
            alone.encode(text).ids == expected and read_tokenizer(out / "tokenizer.json").encode(text).ids == expected
        )
        assert made.decode(expected, skip_special_tokens=True) == theirs.decode(expected, skip_special_tokens=True)
    assert made.special_tokens_map == theirs.special_tokens_map
    assert type(made).__name__ == ("PreTrainedTokenizerFast" if FOUR else "TokenizersBackend")
    assert (made.padding_side, made.model_max_length) == (
        theirs.padding_side,
        min(theirs.model_max_length, made.model_max_length),
    )
    assert alone.truncation is None and alone.padding is None
    assert "/mnt" not in (out / "tokenizer_config.json").read_text()


def test_what_transformers_5_writes_is_read_by_both(written):
    """A list of extra tokens, a class that 4.57 does not know, settings of the last call."""
    settings = PLAIN | {
        "backend": "tokenizers", "extra_special_tokens": TWO, "is_local": True, "local_files_only": False,
        "pad_token": "[PAD]", "tokenizer_class": "TokenizersBackend", "model_max_length": 512, "errors": "replace",
    }  # fmt: skip

    def change(t: Tokenizer) -> None:
        t.add_tokens([AddedToken(text, special=True) for text in ("<|padding|>", *TWO, "[PAD]")])
        truncates(t)

    folder, out = written(change, settings)
    expected, made = open_folder(folder).tokenizer.encode(TEXTS[4]).ids, AutoTokenizer.from_pretrained(out)
    assert made(TEXTS[4])["input_ids"] == expected and 4097 in expected and 4098 in expected and len(made) == 4100
    assert made.pad_token == "[PAD]"
    if not FOUR:
        assert AutoTokenizer.from_pretrained(folder)(TEXTS[4])["input_ids"] == expected
        return
    assert made.additional_special_tokens == TWO
    with pytest.raises(ValueError, match="TokenizersBackend"):
        AutoTokenizer.from_pretrained(folder)  # else there would be nothing to do


def test_vocabulary_and_merges_alone_are_a_tokenizer(tmp_path, written):
    folder, _ = written(nothing, PLAIN | {"tokenizer_class": "GPT2Tokenizer"})
    Tokenizer.from_file(str(DEMO / "tokenizer.json")).model.save(str(folder))
    (folder / "tokenizer.json").unlink()
    assert has_tokenizer([path.name for path in folder.iterdir()])
    (tmp_path / "made").mkdir()
    theirs, made = (
        AutoTokenizer.from_pretrained(folder),
        AutoTokenizer.from_pretrained(artifact(folder, tmp_path / "made")),
    )
    for text in TEXTS:
        expected = theirs(text)["input_ids"]
        assert open_folder(folder).tokenizer.encode(text).ids == made(text)["input_ids"] == expected


def test_chat_templates_travel_from_wherever_they_are(tmp_path, written):
    template, tools = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "{{ tools }}"
    folder, out = written(nothing, NEOX | {"chat_template": template})
    assert AutoTokenizer.from_pretrained(out).chat_template == template
    assert (out / "chat_template.jinja").read_text() == template
    (folder / "chat_template.jinja").write_text("{{ messages }}")  # goes before the settings
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(tools)
    made = AutoTokenizer.from_pretrained(artifact(folder, out))
    assert made.chat_template == AutoTokenizer.from_pretrained(folder).chat_template
    assert made.chat_template == {"default": "{{ messages }}", "tool_use": tools}
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == "{{ messages }}"


@pytest.mark.parametrize("template", [7, [{"name": "../../x", "template": "x"}], [{"name": "x"}], ["x"], {"a/b": "x"}])
def test_a_chat_template_that_is_none_or_leads_out_of_the_folder_is_refused(template, written):
    with pytest.raises(IntegrityError, match="chat"):
        written(nothing, NEOX | {"chat_template": template})


def test_files_that_are_none_are_named(tmp_path, written):
    with pytest.raises(SourceError, match=r"no tokenizer\.json"):
        read_tokenizer(tmp_path / "tokenizer.json")
    for name, text in (
        ("tokenizer_config.json", "["), ("tokenizer_config.json", "[]"), ("added_tokens.json", '{"a": "b"}'),
        ("special_tokens_map.json", '{"pad_token": 7}'), ("tokenizer.json", "{}"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}'),
    ):  # fmt: skip
        (tmp_path / "here").mkdir()
        shutil.copyfile(DEMO / "tokenizer.json", tmp_path / "here" / "tokenizer.json")
        (tmp_path / "here" / name).write_text(text)
        with pytest.raises(IntegrityError, match="tokenizer|JSON|object"):
            open_folder(tmp_path / "here")
        shutil.rmtree(tmp_path / "here")


CHATS = [
    [{"role": "user", "content": "Who <are> you?"}],
    [{"role": "system", "content": "é"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b\n"}],
]
TEMPLATES = [
    "{% for m in messages %}{{ m.role }}: {{ m['content'] | trim }}{{ eos_token }}\n{% endfor %}",
    "{%- for m in messages %}\n  {%- if m.role == 'system' %}{% continue %}{% endif %}\n"
    "    {% if loop.first %}\n{{ bos_token }}{{ m | tojson }}\n    {% endif %}\n"
    "{% generation %}{{ m.content }}{% endgeneration %}{%- endfor %}\n"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "{{ additional_special_tokens | join(',') }}{{ tools is none }}{{ messages[-1].role }}{{ pad_token is defined }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_is_written_out_as_transformers_does(template, written):
    if not FOUR and "additional_special_tokens" in template:
        pytest.skip("transformers 5 gives a template no additional_special_tokens; we give them, as 4.57 does")
    folder, out = written(nothing, NEOX | {"additional_special_tokens": TWO, "chat_template": template})
    theirs, settings = AutoTokenizer.from_pretrained(folder), json.loads((out / "tokenizer_config.json").read_text())
    tokens = {role: value for role, value in settings.items() if role.endswith(("_token", "_tokens"))}
    for chat in CHATS:
        expected = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert render_chat(settings["chat_template"], chat, tokens) == expected


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{% for m in %}", IntegrityError), ("{{ raise_exception('roles must alternate') }}", RecipeError),
        ("{{ messages[7].content.x }}", RecipeError), ("{{ 1 / 0 }}", RecipeError), ("{% include 'x' %}", RecipeError),
        ("{{ messages.__class__.__mro__ }}", RecipeError), ("{{ messages.append(1) }}", RecipeError),
        ("{% for i in range(10 ** 9) %}{% endfor %}", RecipeError), ("{{ ''.__init__.__globals__ }}", RecipeError),
    ],
)  # fmt: skip
def test_a_chat_template_runs_in_a_sandbox_and_its_errors_are_told(template, error):
    with pytest.raises(error, match="chat template"):
        render_chat(template, CHATS[0], {})
