"""A tokenizer as an artifact has it: tokenizer.json says every id, and the files beside it agree with every reader.

The class is transformers' PreTrainedTokenizerFast, which takes tokenizer.json as it is. transformers 5 rebuilds a
tokenizer of the class GPTNeoXTokenizer instead: of tokenizer.json it takes the vocabulary and the merges, and it adds a
padding token that the model may have no row for. transformers 4.57, 5.24, onnxruntime-genai 0.18 and transformers.js
4.3 all know the generic class (tests/unit/tokenizer/test_tokenizer.py, tests/end_to_end/test_consumers.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ..base.strict_json import parse_json
from .chat import DEFAULT, chat_templates
from .files import ADDED_TOKENS, CHAT_TEMPLATE, CHAT_TEMPLATES, SETTINGS, SPECIAL_TOKENS, TOKENIZER
from .folder import FolderTokenizer

# Read alike by 4.57 and 5. The rest of what people's files hold is in tokenizer.json by now, is a path on somebody's
# machine, or tells how the tokenizer was loaded there.
KEPT = (
    "clean_up_tokenization_spaces", "errors", "model_input_names", "model_max_length", "padding_side",
    "response_schema", "split_special_tokens", "truncation_side",
)  # fmt: skip


def tokenizer_files(of: FolderTokenizer, max_positions: int) -> dict[str, bytes]:
    """Return the files of an artifact's tokenizer, by their paths in it."""
    templates = chat_templates(of.folder, of.settings)
    files = {TOKENIZER: _tokenizer_json(of), SETTINGS: _json(settings_json(of, templates, max_positions))}
    if (of.folder / SPECIAL_TOKENS).is_file():
        files[SPECIAL_TOKENS] = _json(_tokens(of))
    if (of.folder / ADDED_TOKENS).is_file():
        added = of.tokenizer.get_added_tokens_decoder()
        beyond = of.tokenizer.get_vocab_size(with_added_tokens=False)
        files[ADDED_TOKENS] = _json({str(added[at].content): at for at in sorted(added) if at >= beyond})
    for name, template in templates.items():
        files[CHAT_TEMPLATE if name == DEFAULT else f"{CHAT_TEMPLATES}{name}.jinja"] = template.encode()
    return files


def settings_json(of: FolderTokenizer, templates: Mapping[str, str], max_positions: int) -> dict[str, Any]:
    """Return tokenizer_config.json.

    It holds the chat template too: transformers.js looks for it nowhere else. Those with names are in files alone:
    onnxruntime-genai opens no artifact with a list of templates here.
    """
    found = {
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],  # the generic class would add token types
        "model_max_length": max_positions,
    }
    found |= {name: of.settings[name] for name in KEPT if of.settings.get(name) is not None}
    found["add_prefix_space"] = bool(getattr(of.tokenizer.pre_tokenizer, "add_prefix_space", False))
    if of.named:
        found["extra_special_tokens"] = dict(of.named)
    if DEFAULT in templates:
        found["chat_template"] = templates[DEFAULT]
    return {**_tokens(of), **dict(sorted(found.items())), "tokenizer_class": "PreTrainedTokenizerFast"}


def _tokens(of: FolderTokenizer) -> dict[str, Any]:
    """A list of additional tokens is what both versions take; each calls its own list otherwise."""
    return {**of.roles, **({"additional_special_tokens": list(of.additional)} if of.additional else {})}


def _tokenizer_json(of: FolderTokenizer) -> bytes:
    """The file itself where it says everything; truncation and padding are no part of a tokenizer."""
    path = of.folder / TOKENIZER
    if not of.changed and path.is_file():
        data = path.read_bytes()
        raw = parse_json(data, str(path))
        if raw.get("truncation") is None and raw.get("padding") is None:
            return data
    return f"{of.tokenizer.to_str(pretty=True)}\n".encode()


def _json(value: Mapping[str, Any] | Iterable[Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
