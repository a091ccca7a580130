"""Chat templates: the three places where transformers looks for them, and a conversation written out by one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from ..base.errors import IntegrityError, RecipeError
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


def render_chat(template: str, messages: Sequence[Mapping[str, Any]], tokens: Mapping[str, Any]) -> str:
    """Return a conversation as the model reads it, up to where its answer begins; as transformers renders it.

    `messages` have a `role` and a `content`; `tokens` are the tokenizer's special tokens by role. A template is a
    program of somebody else's: it runs in jinja's sandbox, which lets it change nothing and reach no module.

    Raises:
        RecipeError: the template refuses these messages.
        IntegrityError: it is no template.
    """
    from jinja2 import TemplateError, TemplateSyntaxError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node, Scope
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}: around what the model wrote, for who trains it; nothing here."""

        tags = {"generation"}

        def parse(self, parser: Parser) -> Node:
            scope = Scope(lineno=next(parser.stream).lineno)
            scope.body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return scope

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    sandbox.filters["tojson"] = _json
    sandbox.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    given = {"tools": None, "documents": None, "add_generation_prompt": True, **tokens}
    try:
        return sandbox.from_string(template).render(messages=[dict(m) for m in messages], **given)
    except TemplateSyntaxError as e:
        raise IntegrityError(f"the chat template cannot be read: line {e.lineno}: {e.message}") from e
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as e:
        raise RecipeError(f"the chat template refuses this conversation: {e}") from e


def _json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """As transformers has it: jinja's own escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)
