"""The argument RECIPE and the options that change one, for every command that takes a recipe."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .shared import (
    AdapterFolder,
    AllowDuplicate,
    Device,
    Evict,
    NoPickle,
    Overwrite,
    Resume,
    accepted,
    say,
)

if TYPE_CHECKING:
    from ..commands.options import Options
    from ..recipe import Recipe

# Option by option: the key that it sets, and its help.
_OPTIONS: dict[str, tuple[str, Any]] = {
    "bits": ("quantize.bits", Annotated[
        int | None, typer.Option(metavar="2|3|4|8", help="Bits a weight, without scales and head.")]),
    "group_size": ("quantize.group_size", Annotated[
        int | None, typer.Option(metavar="N", help="Weights that share a scale: 16 to 256, or -1 for a whole row.")]),
    "method": ("quantize.method", Annotated[
        str | None, typer.Option(metavar="gptq|rtn|none", help="How weights are rounded.")]),
    "target": ("export.target", Annotated[
        str | None, typer.Option(metavar="cpu|cuda|web", help="Where the graph will run.")]),
    "calibration": ("calibration.path", Annotated[
        Path | None, typer.Option(metavar="PATH", help="Calibrate on this file or folder of texts.")]),
    "text": ("verify.path", Annotated[
        Path | None, typer.Option(metavar="PATH", help="Prove on this held-out file or folder of texts.")]),
    "tokens": ("verify.tokens", Annotated[
        int | None, typer.Option(metavar="N", help="Held-out tokens to score.")]),
    "adapter": ("model.adapter", AdapterFolder),
}  # fmt: skip
_SET = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set any key: quantize.beam=1. Several times for several keys."),
]


def names_of_recipes(incomplete: str) -> list[str]:
    """Return what a shell may complete: recipes and models, and nothing for a path, which the shell knows better."""
    from ..model.suite import suite
    from ..recipe import recipe_files, variants

    models = [m.name for m in suite().values()]
    short = [name.removeprefix("pythia-") for name in models]
    names = [*recipe_files(), *models, *short, *(f"{name}-{variant}" for name in short for variant in variants())]
    return [name for name in names if name.startswith(incomplete)]


_RECIPE = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe file, a model (410m, 160m-int8, 410m@step3000), a checkpoint folder (./my-finetune), "
        "another model of the hub (OWNER/NAME), or demo.",
        autocompletion=names_of_recipes,
    ),
]


@dataclass(frozen=True)
class Asked:
    """A recipe as the command line names it. What is wrong with it shows when it is read."""

    name: str
    options: Mapping[str, Any]
    set: tuple[str, ...]

    def recipe(self) -> Recipe:
        """Read it, with the changes of the options and of --set; what these leave behind is said on stderr.

        Raises:
            RecipeError: as `load_recipe`; a --set that cannot be read, or that sets what an option sets.
        """
        from ..base.errors import RecipeError
        from ..recipe import changes_called, load_recipe, recipe_keys

        changes, said = {}, {}
        for option, value in self.options.items():
            key = _OPTIONS[option][0]
            changes[key], said[key] = value, f"--{option}".replace("_", "-")
            if key in ("calibration.path", "verify.path"):
                source = key.replace("path", "source")
                changes[source], said[source] = "file", said[key]
        named = changes_called(self.set, recipe_keys())
        for key in sorted(changes.keys() & named.keys()):
            raise RecipeError(f"{said[key]} and --set {key} both set `{key}`", hint="Give one of them.")
        said |= {key: f"--set {key}" for key in named}
        return load_recipe(self.name, changes | named, said=lambda key: said.get(key, key), note=say)


@dataclass(frozen=True)
class Manner:
    """How the recipe is carried out, as the command line says it."""

    overwrite: Overwrite = False
    resume: Resume = False
    no_pickle: NoPickle = False
    allow_duplicate_revision: AllowDuplicate = False
    evict: Evict = False
    device: Device = "cpu"

    def options(self) -> Options:
        from ..commands.options import Options

        accept = accepted(self.no_pickle, self.allow_duplicate_revision)
        return Options(self.overwrite, self.resume, accept, self.evict, self.device)


def takes_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command whose first parameter is an `Asked` the argument RECIPE and the options that change a recipe. A
    parameter of type `Manner` becomes the options that it has."""
    first, *declared = inspect.signature(command, eval_str=True).parameters.values()
    of_manner = inspect.signature(Manner, eval_str=True).parameters
    own: list[inspect.Parameter] = []
    for p in declared:
        own += of_manner.values() if p.annotation is Manner else [p]
    manners = [p.name for p in declared if p.annotation is Manner]
    needed = [p for p in own if p.default is inspect.Parameter.empty]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    options = [inspect.Parameter(n, kind, default=None, annotation=a) for n, (_, a) in _OPTIONS.items()]
    options.append(inspect.Parameter("set", kind, default=None, annotation=_SET))

    def with_options(**given: Any) -> None:
        chosen = {name: given.pop(name) for name in _OPTIONS}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        asked = Asked(given.pop(first.name), chosen, tuple(given.pop("set") or ()))
        made = {name: Manner(**{option: given.pop(option) for option in of_manner}) for name in manners}
        command(asked, **made, **given)

    parameters = [first.replace(annotation=_RECIPE), *needed, *options, *(p for p in own if p not in needed)]
    with_options.__name__, with_options.__doc__ = command.__name__, command.__doc__
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_options
