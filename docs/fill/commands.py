"""Every command of the command line, from the objects that `--help` itself is printed from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer.main

from .markdown import code, table

PLACEHOLDERS = {"int range": "N", "int": "N", "float range": "X", "float": "X", "str": "TEXT", "path": "PATH",
                "list[str]": "TEXT", "list[path]": "PATH"}  # fmt: skip


def all_commands() -> str:
    """Return a list of all commands with what they do, then each with its arguments, options and examples."""
    from pythia_export.cli import app

    root = typer.main.get_command(app)
    found = list(_leaves(root, []))
    listed = [[f"[`{' '.join(path)}`](#{'-'.join(path)})", _first_sentence(command.help)] for path, command in found]
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
    needed = [_flag(p, context).split(", ")[-1] for p in command.params if p.param_type_name == "option" and p.required]
    named = [_name(p) if p.required else f"[{_name(p)}]" for p in arguments]
    yield f"```text\n{' '.join(['pythia-export', *path, *named, *needed, '[OPTIONS]'])}\n```"
    yield _prose(command.help or "")
    if arguments:
        rows = [[code(_name(p)), _said(p, context)] for p in arguments]
        yield table(["argument", ""], rows)
    yield from _options(command, context)
    if command.epilog:
        lines = [line.strip() for line in command.epilog.splitlines()[1:]]
        yield "```sh\n" + "\n".join(lines) + "\n```"


def _name(argument: Any) -> str:
    return argument.metavar or argument.name.upper()


def _options(command: Any, context: Any) -> Iterator[str]:
    rows = [
        [code(_flag(p, context)), _said(p, context)]
        for p in command.params
        if p.param_type_name == "option" and not p.hidden and p.name != "help"
    ]
    if rows:
        yield table(["option", ""], rows)


def _flag(param: Any, context: Any) -> str:
    """Return `-o, --out PATH` of an option as `--help` has it, its type as one word."""
    record = param.get_help_record(context)[0]
    return re.sub(r" ?<([^>]*)>", lambda m: "" if m[1] == "bool" else f" {PLACEHOLDERS.get(m[1], m[1])}", record)


def _said(param: Any, context: Any) -> str:
    said = param.get_help_record(context)[1].replace("[required]", "")
    return re.sub(r"\s{2,}\[", " [", said).strip()


def _prose(help_text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in help_text.split("\n\n"))


def _first_sentence(help_text: str | None) -> str:
    return " ".join((help_text or "").split("\n\n")[0].split())
