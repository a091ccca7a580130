"""Commands that list what there is to choose from: recipes and the models of the suite."""

from __future__ import annotations

from typing import Annotated

import typer

from ..base.errors import RecipeError
from .asked import Asked, takes_recipe
from .help import App
from .shared import Json, app, examples, print_json, say, show, stdout_width

recipes = App(invoke_without_command=True)
app.add_typer(recipes, name="recipes")


@recipes.callback(
    epilog=examples(
        "pythia-export recipes",
        "pythia-export recipes show 410m --bits 8 > my.toml",
        "pythia-export recipes --schema > recipe.schema.json",
    )
)
def listed(
    context: typer.Context,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a recipe instead.")] = False,
    as_json: Json = False,
) -> None:
    """List the recipes that come with the package. `recipes show` prints one."""
    from ..recipe import Recipe, about, load_recipe, recipe_names
    from .tables import recipes_table

    if context.invoked_subcommand is not None:
        return
    if schema:
        print_json(Recipe.model_json_schema())
        return
    if as_json:
        found = [(name, load_recipe(name)) for name in recipe_names()]
        print_json([{"name": n, "about": about(n), "recipe": r.model_dump(mode="json")} for n, r in found])
        return
    show(recipes_table((name, about(recipe), load_recipe(recipe)) for name, recipe in _families()))
    show(
        "\nMODEL is any model of the suite, as `pythia-export models` lists them, with @REVISION for a training "
        "checkpoint: 410m, 160m-seed3-int8@step512. MODEL alone is MODEL-int4."
    )


def _families() -> list[tuple[str, str]]:
    """Return a row for each file and each variant: its name, and a recipe that it is shown by."""
    from ..recipe import recipe_files, variants

    return [*((name, name) for name in recipe_files()), *((f"MODEL-{v}", f"410m-{v}") for v in variants())]


@recipes.command(
    name="show",
    epilog=examples(
        "pythia-export recipes show 410m",
        "pythia-export recipes show 410m@step3000 --bits 3 > my.toml",
        "pythia-export recipes show ./my-finetune --text heldout.jsonl > my.toml",
    ),
)
@takes_recipe
def show_recipe(asked: Asked) -> None:
    """Print a recipe as TOML, with everything that its size and your options decided: a file to keep and to change."""
    from ..recipe import as_toml

    recipe = asked.recipe()
    if recipe.model.path is not None:
        from ..commands.pull import pull

        pull(recipe.model)  # refuses what is no checkpoint
    show(as_toml(recipe).rstrip())


@app.command(
    epilog=examples(
        "pythia-export models",
        "pythia-export models 160m seed",
        "pythia-export models 2.8b",
        "pythia-export models 410m-deduped@step3000",
        "pythia-export models deduped v1 --json",
    )
)
def models(
    name: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="One model, or words that its name holds: a size, deduped, v0, seed."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the Pythia suite: models, revisions, and what is known to be wrong with them. Asks no hub."""
    from ..model.suite import former_name, matching, named, resolve, suggestion
    from .tables import model_view, models_table

    words = " ".join(name or [])
    one = named(words)
    if one is not None or "@" in words:
        model_id, revision = resolve(words)
        one = one or named(model_id)
        if one is None:
            raise RecipeError(f"{model_id} is not in the catalogue", hint=suggestion(model_id))
        if as_json:
            print_json(one.to_json() | ({"revision": revision} if revision else {}))
        else:
            show(model_view(one, revision))
        return
    found = matching(words)
    if not found:
        explained = former_name(words)
        if explained is None:
            raise RecipeError(f"no model of the suite is called `{words}`", hint=suggestion(words))
        say(f"{explained}.")
        found = matching(explained.partition(" is what ")[2].partition(" ")[0])
    if as_json:
        print_json([model.to_json() for model in found])
    else:
        show(models_table(found, stdout_width()))
