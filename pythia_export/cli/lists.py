"""Commands that list what there is to choose from: recipes and the models of the suite."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Annotated

import typer

from ..base.errors import RecipeError
from .shared import Json, app, examples, print_json, say, show, stdout_width


@app.command(epilog=examples("pythia-export recipes", "pythia-export recipes --schema > recipe.schema.json"))
def recipes(
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a recipe instead.")] = False,
    as_json: Json = False,
) -> None:
    """List the recipes that came with the package."""
    from ..recipe import Recipe, load_recipe, recipe_names, recipes_folder
    from .tables import recipes_table

    if schema:
        print_json(Recipe.model_json_schema())
        return
    paths = [recipes_folder() / f"{name}.toml" for name in recipe_names()]
    shipped = [(path.stem, _opening_comment(path), load_recipe(str(path))) for path in paths]
    if as_json:
        print_json([{"name": n, "about": about, "recipe": r.model_dump(mode="json")} for n, about, r in shipped])
    else:
        show(recipes_table(shipped))


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
        typer.Argument(metavar="[NAME]...", help="One model, or words that its name holds: a size, deduped, v0, seed."),
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


def _opening_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("#").strip() for line in takewhile(lambda line: line.startswith("#"), lines))
