"""Chat templates, in the three places where transformers looks for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import IntegrityError
from .files import CHAT_TEMPLATE, CHAT_TEMPLATES

DEFAULT = "default"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}")


def chat_templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the templates of a folder by name, "default" the one without; `settings` is its tokenizer_config.json.

    Files of their own go before what tokenizer_config.json holds, all of it, as in transformers.

    Raises:
        IntegrityError: a template is not text.
    """
    paths = {path.stem: path for path in sorted((folder / CHAT_TEMPLATES).glob("*.jinja")) if path.is_file()}
    if (folder / CHAT_TEMPLATE).is_file():
        paths = {DEFAULT: folder / CHAT_TEMPLATE} | paths
    if paths:
        return {name: _text(path) for name, path in paths.items()}
    held = settings.get("chat_template")
    if held is None:
        return {}
    found = {DEFAULT: held} if isinstance(held, str) else _named(held)
    if found is None or not all(isinstance(x, str) for pair in found.items() for x in pair):
        raise IntegrityError(f"{folder}: the chat_template of tokenizer_config.json is neither text nor a list of such")
    for name in found:
        if not _NAME.fullmatch(name):  # it becomes the name of a file
            raise IntegrityError(f"{folder}: a chat template is called {name!r}; letters and digits were expected")
    return found


def _named(held: Any) -> dict[Any, Any] | None:
    if isinstance(held, dict):
        return held
    if isinstance(held, list) and all(isinstance(entry, dict) for entry in held):
        return {entry.get("name"): entry.get("template") for entry in held}
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise IntegrityError(f"{path}: a chat template cannot be read: {e}") from e
