"""The files from which transformers makes a tokenizer, by the names that it looks for."""

from __future__ import annotations

from collections.abc import Container

TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
VOCABULARY, MERGES = "vocab.json", "merges.txt"  # read where there is no tokenizer.json
CHAT_TEMPLATE = "chat_template.jinja"
CHAT_TEMPLATES = "additional_chat_templates/"  # the templates that have names: tool_use.jinja

_NAMES = frozenset({TOKENIZER, SETTINGS, SPECIAL_TOKENS, ADDED_TOKENS, VOCABULARY, MERGES, CHAT_TEMPLATE})


def has_tokenizer(names: Container[str]) -> bool:
    """Return whether a folder with files of these names has a tokenizer."""
    return TOKENIZER in names or (VOCABULARY in names and MERGES in names)


def is_tokenizer_file(name: str) -> bool:
    """Return whether transformers reads the file of this name, a path inside a checkpoint, for its tokenizer."""
    return name in _NAMES or is_named_template(name)


def is_named_template(name: str) -> bool:
    inside = name.removeprefix(CHAT_TEMPLATES)
    return inside != name and "/" not in inside and inside.endswith(".jinja")
