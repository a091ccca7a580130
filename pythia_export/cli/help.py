"""How help and errors of usage look: plain text that fits 80 columns, no name cut, examples that can be copied.

typer's own help draws boxes, and cuts the names of options to fit them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from ..base.errors import RecipeError

UsageError: Any = typer.BadParameter.__base__  # which typer does not name
_NAME_COLUMNS = 26  # a longer name has its help on the next line
_KINDS = {
    "int range": "N", "int": "N", "float range": "X", "float": "X", "str": "TEXT", "path": "PATH",
    "list[str]": "TEXT", "list[path]": "PATH",
}  # fmt: skip
_Command = TypeVar("_Command", bound=Callable[..., Any])


class _Plain:
    """What commands and groups have in common. `ctx` and `formatter` are the parser's own."""

    def format_help(self: Any, ctx: Any, formatter: Any) -> None:
        formatter.write_usage(ctx.command_path, usage(self, ctx))
        self.format_help_text(ctx, formatter)
        _section(formatter, "Arguments", ((name_of(p), said_of(p, ctx)) for p in self.params if _is(p, "argument")))
        options = [p for p in self.get_params(ctx) if _is(p, "option") and not p.hidden]
        _section(formatter, "Options", ((option_of(p, ctx), said_of(p, ctx)) for p in options))
        commands = getattr(self, "commands", {})
        _section(formatter, "Commands", ((n, first_paragraph(c.help)) for n, c in commands.items() if not c.hidden))
        if self.epilog:
            formatter.write(f"\n{self.epilog}\n")


class Command(_Plain, TyperCommand):
    pass


class Group(_Plain, TyperGroup):
    pass


class App(typer.Typer):
    """A typer application whose commands have this help."""

    def __init__(self, **settings: Any) -> None:
        helps = {"help_option_names": ["-h", "--help"]}
        super().__init__(rich_markup_mode=None, context_settings=helps, **{"cls": Group} | settings)

    def command(self, name: str | None = None, **settings: Any) -> Callable[[_Command], _Command]:
        return super().command(name, cls=Command, **settings)


def usage(command: Any, ctx: Any) -> str:
    """Return what follows the command's name: arguments, options that must be given, `[OPTIONS]`."""
    arguments = [name_of(p) if p.required else f"[{name_of(p)}]" for p in command.params if _is(p, "argument")]
    needed = [option_of(p, ctx).split(", ")[-1] for p in command.params if _is(p, "option") and p.required]
    rest = ["COMMAND [ARGUMENTS]"] if hasattr(command, "commands") else []
    if rest and command.invoke_without_command:
        rest = ["[COMMAND]"]
    return " ".join([*arguments, *needed, "[OPTIONS]", *rest])


def name_of(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def option_of(option: Any, ctx: Any) -> str:
    """Return `-o, --out PATH`: the names of an option and what it takes, in a word."""
    record = option.get_help_record(ctx)[0]
    return re.sub(r" ?<([^>]*)>", lambda m: "" if m[1] == "bool" else f" {_KINDS.get(m[1], m[1])}", record)


def said_of(parameter: Any, ctx: Any) -> str:
    """Return the help of an option or argument, and its default."""
    said = parameter.get_help_record(ctx)[1]
    said = re.sub(r"(?<=\[)required\]|; required(?=\])", lambda m: "]" if m[0][0] == "r" else "", said)
    said = re.sub(r"x(>=|<=)([\d.]+)(?=\])", lambda m: f"{'at least' if m[1] == '>=' else 'at most'} {m[2]}", said)
    return re.sub(r"\s{2,}\[", " [", said).replace(" []", "").replace("[]", "").strip()


def first_paragraph(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def as_ours(error: Any) -> RecipeError | None:
    """Return an error of usage in the style of all others; None for the one that only shows the help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return None
    message = error.format_message().rstrip(".").replace("\n", " ")
    message = re.sub(r" \(Possible options: ([^)]*)\)", r"; did you mean \1?", message)
    command = error.ctx.command_path if error.ctx is not None else "pythia-export"
    return RecipeError(message[:1].lower() + message[1:], hint=f"`{command} --help` shows how it is used.")


def _is(parameter: Any, kind: str) -> bool:
    return bool(parameter.param_type_name == kind)


def _section(formatter: Any, title: str, rows: Iterator[tuple[str, str]]) -> None:
    found = list(rows)
    if found:
        with formatter.section(title):
            formatter.write_dl(found, col_max=_NAME_COLUMNS)
