"""Every command of the command line, from the objects that `--help` itself is printed from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main

from pythia_export.cli import help

from .markdown import code, table


def all_commands() -> str:
    """Return a list of all commands with what they do, then each with its arguments, options and examples."""
    from pythia_export.cli import app

    root = typer.main.get_command(app)
    found = list(_leaves(root, []))
    listed = [
        [f"[`{' '.join(path)}`](#{'-'.join(path)})", help.first_paragraph(command.help)] for path, command in found
    ]
    options = _options(root, _context(root, None, "pythia-export"))
    parts = [table(["command", "what it does"], listed), "## For every command", *options]
    parts += ["These stand before the command's name: `pythia-export --offline run ...`."]
    for path, command in found:
        parts += [f"## {' '.join(path)}", *_described(path, command, root)]
    return "\n\n".join(parts)


def _leaves(group: Any, path: list[str]) -> Iterator[tuple[list[str], Any]]:
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            if command.invoke_without_command:
                yield [*path, name], command
            yield from _leaves(command, [*path, name])
        else:
            yield [*path, name], command


def _context(command: Any, parent: Any, name: str) -> Any:
    return command.context_class(command, info_name=name, parent=parent)


def _described(path: list[str], command: Any, root: Any) -> Iterator[str]:
    context = _context(command, _context(root, None, "pythia-export"), path[-1])
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    yield f"```text\n{' '.join(['pythia-export', *path])} {help.usage(command, context)}\n```"
    yield _prose(command.help or "")
    if arguments:
        yield table(["argument", "what it is"], [[code(help.name_of(p)), help.said_of(p, context)] for p in arguments])
    yield from _options(command, context)
    if command.epilog:
        lines = [line.strip() for line in command.epilog.splitlines()[1:]]
        yield "```sh\n" + "\n".join(lines) + "\n```"


def _options(command: Any, context: Any) -> Iterator[str]:
    rows = [
        [code(help.option_of(p, context)), help.said_of(p, context)]
        for p in command.params
        if p.param_type_name == "option" and not p.hidden and p.name != "help"
    ]
    if rows:
        yield table(["option", "what it does"], rows)


def _prose(help_text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in help_text.split("\n\n"))
