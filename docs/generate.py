"""Fill the marked places of README and docs from the code and from committed files.

    python docs/generate.py            write what has changed           (`make reference`)
    python docs/generate.py --check    list what would change, and end with 1 if anything would

A place is everything between two comments, the first of which says what fills it:

    <!-- fill: record Run -->
    ...
    <!-- end -->

The first word is a function of `SOURCES`, the others are its arguments. tests hold every page to its places.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from fill import commands, figures, hooks, house, models, python, recipe, records, sizes

ROOT = Path(__file__).parent.parent
PLACE = re.compile(r"(<!-- fill: (?P<what>[^\n]+?) -->\n).*?(<!-- end -->)", re.DOTALL)

SOURCES: dict[str, Callable[..., str]] = {
    "commands": commands.all_commands,  # every command's help
    "recipe": recipe.all_sections,  # every key of a recipe
    "by_size": recipe.by_size,  # defaults of a recipe by the model's size
    "variants": recipe.variants,  # 410m-int8 and its like
    "floors": house.floors,  # the rooms of the package
    "taps": hooks.taps,  # the places inside the model
    "record": records.table,  # a type of pythia_export/records
    "python": python.described,  # a class or a function of the package
    "sizes": sizes.needs,  # memory and time by size of the suite
    "copy": figures.copied,  # a named place of another page
    "rows": figures.rows,  # some rows of a named place
    "fastest": models.fastest,  # the same in one line for each size
    "models": models.models,  # every size beside the other runtimes, from benchmarks/models
    "verdict": figures.verdict,  # what `run` prints of a committed proof
}


def pages() -> Iterator[Path]:
    """Yield every page that people read in the repository or on the site."""
    yield from (ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY"))
    for folder in ("benchmarks", "benchmarks/gpu", "kernels", "demo"):
        yield ROOT / folder / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))


def filled(text: str) -> str:
    """Return a page with each of its places filled anew."""

    def fill(place: re.Match[str]) -> str:
        name, *arguments = place["what"].split()
        return f"{place[1]}{SOURCES[name](*arguments).strip()}\n{place[3]}"

    return PLACE.sub(fill, text)


def main() -> None:
    changed = [(page, new) for page in pages() if (new := filled(page.read_text())) != page.read_text()]
    for page, new in changed:
        print(f"{'differs' if '--check' in sys.argv else 'written'}  {page.relative_to(ROOT)}")
        if "--check" not in sys.argv:
            page.write_text(new)
    if changed and "--check" in sys.argv:
        sys.exit("make reference writes them")


if __name__ == "__main__":
    main()
