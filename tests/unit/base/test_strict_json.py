"""What Python's reader of JSON takes and no record of ours holds is refused, with the file, in one place."""

from __future__ import annotations

import os

import pytest

from pythia_export.base.errors import IntegrityError, SourceError
from pythia_export.base.strict_json import parse_json, read_json, read_object, shown
from pythia_export.model.neox import NeoXConfig

REFUSED = {
    "nesting": ("[" * 100_000, "nested deeper than 64"),
    "nesting that Python reads": ("[" * 65 + "]" * 65, "nested deeper than 64"),
    "nesting of objects": ('{"a":' * 70 + "1" + "}" * 70, "nested deeper than 64"),
    "NaN": ('{"a": NaN}', "NaN is no number"),
    "an infinity": ('{"a": -Infinity}', "-Infinity is no number"),
    "an infinity in digits": ('{"a": 1e999}', "1e999' is beyond"),
    "thousands of digits": ('{"a": ' + "9" * 5000 + "}", "5,000 digits"),
    "a key twice": ('{"a": {"b": 1, "b": 2}}', "names 'b' twice"),
    "half of a character": ('["\\ud800"]', "half of a character"),
    "half of a character in a key": ('{"a\\udfff": 1}', "half of a character"),
    "no UTF-8": (b'"\xff"', "not JSON"),
    "nothing": ("", "not JSON"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_json_of_ours_is_refused_with_its_place(name, tmp_path):
    text, said = REFUSED[name]
    path = tmp_path / "record.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(IntegrityError, match=said) as raised:
        read_json(path)
    assert str(path) in str(raised.value) and len(str(raised.value)) < 400


def test_what_is_json_comes_back(tmp_path):
    path = tmp_path / "record.json"
    path.write_bytes(
        '\ufeff{"a": [1, 2.5, null, true, "\\ud83d\\ude00é"], "b": 1000000000000000019884624838656}'.encode()
    )
    found = {"a": [1, 2.5, None, True, "😀é"], "b": 1000000000000000019884624838656}
    assert read_object(path) == found and parse_json("[" * 64 + "]" * 64, "here")
    path.write_text("[]")
    with pytest.raises(SourceError, match="an array of 0; an object was expected"):
        read_object(path, error=SourceError)


@pytest.mark.parametrize("kind", ["folder", "pipe", "name too long", "name of no file system", "too large"])
def test_what_is_no_plain_file_is_refused(kind, tmp_path):
    path = tmp_path / "record.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)  # opening it would wait for ever
    elif kind == "too large":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    else:
        path = tmp_path / ("a" * 300 if kind == "name too long" else "a\0b")
    with pytest.raises(IntegrityError, match="plain file|too long|cannot be read|are the most"):
        read_json(path)


def test_values_are_quoted_short():
    assert shown({"a": 1}) == "an object of 1 keys" and shown([1, 2]) == "an array of 2" and shown(None) == "null"
    assert (
        shown(True) == "true"
        and shown("a\x1b[2J") == "'a\\x1b[2J'"
        and shown(10**5000) == "a number of thousands of digits"
    )
    assert len(shown("x" * 10**6)) < 100 and "\ud800" not in shown("\ud800")


GOOD = NeoXConfig(96, 128, 2, 4, 512).to_dict()
UNTRUE = {
    "no object": ([], "an array of 0; an object"),
    "rope_parameters no object": ({"rope_parameters": [1]}, "`rope_parameters` is an array of 1; an object"),
    "rope_parameters a number": ({"rope_parameters": 3}, "`rope_parameters` is 3"),
    "a number inside": ({"rope_parameters": {"rope_theta": "many"}}, "`rope_parameters.rope_theta` is 'many'"),
    "an infinity": ({"rotary_pct": float("inf"), "rope_parameters": None}, "`rotary_pct` is inf"),
    "a NaN": ({"layer_norm_eps": float("nan")}, "`layer_norm_eps` is nan"),
    "a fraction": ({"hidden_size": 128.5}, "`hidden_size` is 128.5; a whole number from 1"),
    "a boolean": ({"num_attention_heads": True}, "`num_attention_heads` is true"),
    "a string": ({"vocab_size": "96"}, "`vocab_size` is '96'"),
    "very many layers": ({"num_hidden_layers": 10**9}, "`num_hidden_layers` is 1000000000; a whole number from 1 to"),
    "a number of thousands of digits": ({"hidden_size": 10**5000}, "`hidden_size` is a number of thousands"),
    "nothing": ({"intermediate_size": 0}, "`intermediate_size` is 0"),
    "a rotary base of nothing": ({"rotary_emb_base": 0, "rope_parameters": None}, "`rotary_emb_base` is 0; a number"),
    "more rotary than there is": ({"rotary_pct": 1.5, "rope_parameters": None}, "`rotary_pct` is 1.5"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNTRUE)
def test_a_configuration_that_is_none_is_refused_by_field(name):
    changes, said = UNTRUE[name]
    with pytest.raises(SourceError) as raised:
        NeoXConfig.from_dict(GOOD | changes if isinstance(changes, dict) else changes, "config.json")
    assert said in str(raised.value) and str(raised.value).startswith("config.json: ")


def test_parameters_are_counted_without_going_through_the_layers():
    assert NeoXConfig(96, 128, 2, 4, 512).parameters == sum(128 * n for n in (96, 2, 96)) + 2 * (
        4 * 128 + 3 * 128 * 129 + 128 * 129 + 512 * 129 + 128 * 513
    )
    assert NeoXConfig(96, 128, 10**12, 4, 512).parameters > 10**17
