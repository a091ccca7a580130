"""`compare`: artifacts beside each other, as a table, as JSON and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .shared import Json, app, examples, found_artifact, print_json, progress_bars, require_writable, show

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..records.comparison import Comparison


@app.command(
    epilog=examples(
        "pythia-export compare models/410m-gptq models/410m-autoround models/410m-ours",
        "pythia-export compare build/a build/b --text heldout.jsonl --tokens 65536 --html compare.html",
        "pythia-export compare build/int4 build/int8 --first --json",
    )
)
def compare(
    artifacts: Annotated[
        list[Path],
        typer.Argument(metavar="ARTIFACT...", help="Two or more directories, or OWNER/NAME[@REVISION] of the hub."),
    ],
    text: Annotated[
        Path | None, typer.Option(metavar="PATH", help="File or folder of texts; the first artifact's if not given.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=64, help="Tokens to score; the first's if not given.")] = None,
    original: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The float checkpoint; the one that all record if not given.")
    ] = None,
    first: Annotated[
        bool, typer.Option("--first", help="Compare with the first artifact, not with the original.")
    ] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the result as a page, too.")] = None,
    as_json: Json = False,
) -> None:
    """Compare artifacts on one text: loss and KL divergence, with intervals, of each and of each pair.

    Each artifact runs as it ships, on the same tokens. Differences are taken document by document.
    """
    from ..base.errors import RecipeError
    from ..commands.compare import Text
    from ..commands.compare import compare as measure
    from ..disk import explained, write_atomically
    from ..recipe import load_recipe
    from ..report.comparison import render_comparison

    if first and original is not None:
        raise RecipeError("--first and --original contradict each other", hint="Leave one of them out.")
    for artifact in artifacts:
        require_writable(html, artifact)
    model = None if original is None else load_recipe(original).model
    with progress_bars() as progress:
        folders = [found_artifact(artifact, progress) for artifact in artifacts]
        found = measure(folders, text=Text(text, tokens), original=model, first=first, progress=progress)
    if html is not None:
        with explained(html):
            write_atomically(html, render_comparison(found).encode())
    if as_json:
        print_json(found.to_json())
    else:
        show(comparison_view(found))
        if html is not None:
            show(f"\nPage      {html}")


def comparison_view(found: Comparison) -> RenderableType:
    """Return two tables, and the sentence that they come to."""
    from rich.console import Group
    from rich.filesize import decimal

    from ..report import words
    from ..report.comparison import aligned, headline, pair_name
    from .tables import new_table

    beside = "original" if found.baseline == "original" else "first artifact"
    title = f"Beside the {beside}, {found.baseline_name}: {found.tokens:,} tokens, nats a token"
    each = new_table(title, "Artifact", ">Bits", ">Size", ">Loss", ">95 %", ">KL", ">95 %")
    delta = aligned([x.delta_nll for x in found.contenders], True)
    kld = aligned([x.kld for x in found.contenders], False)
    for x, a, b in zip(found.contenders, delta, kld, strict=True):
        each.add_row(x.name, f"{x.bits_per_weight:.2f}", decimal(x.bytes), *a, *b)
    parts: list[RenderableType] = [each]
    if found.pairs:
        between = new_table("Each less another", "", ">Loss", ">95 %", ">KL", ">95 %")
        apart = [aligned([getattr(x, name) for x in found.pairs], True) for name in ("delta_nll", "kld")]
        for pair, a, b in zip(found.pairs, *apart, strict=True):
            between.add_row(pair_name(pair), *a, *b)
        parts += ["", between]
    by = f"{found.clusters.count:,} {found.clusters.by}s"
    note = f"95 % intervals, clustered by {by}. The {beside}'s perplexity is {words.number(found.baseline_ppl, 3)}."
    return Group(*parts, "", headline(found), note)
