"""The pages that people read: what is generated is as the code says, and every link leads somewhere."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

from pythia_export.recipe import parse_recipe

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import conf  # noqa: E402
import generate  # noqa: E402

PAGES = list(generate.pages())
FENCED = re.compile(r"^(```+).*?^\1$", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub, and the site, give to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_generated_is_what_the_code_says(page):
    text = page.read_text()
    assert generate.filled(text) == text, "`make reference` writes it anew"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text())):
        if re.match(r"https?:|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(place), f"{target}: no such heading in {place.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_of_ours_that_a_page_names_is_there(page):
    """`tests/fuzz.py`, `calibrate/loop.py`, `attend.cu` beside a page: code moves, and pages forget."""
    for name in re.findall(r"`([a-z_0-9]+(?:/[a-z_0-9]+)+\.(?:py|cc|cu|h|sh|js))`", page.read_text()):
        places = [ROOT / name, ROOT / "pythia_export" / name, page.parent / name]
        assert any(place.is_file() for place in places), name


RECIPES = [
    pytest.param(block, id=page.stem)
    for page in PAGES
    for block in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    if "[model]" in block and "[verify]" in block
]


@pytest.mark.parametrize("block", RECIPES)
def test_a_recipe_that_a_page_shows_is_one(block):
    assert parse_recipe(tomllib.loads(block)).verify.tokens > 0


def test_every_page_stands_in_the_navigation_once():
    listed = [name for pages in conf.NAVIGATION.values() for name in pages]
    there = {str(page.relative_to(ROOT).with_suffix("")) for page in PAGES} - {conf.root_doc}
    assert sorted(listed) == sorted(there)


def test_the_tutorial_reads_its_figures_right():
    """The sentences below the verdict repeat figures of the committed proof."""
    proof = ROOT / "docs" / "figures" / "demo"
    cost = json.loads((proof / "parity.json").read_text())["cost"]
    linears = json.loads((proof / "quantization.json").read_text())["linears"]
    recovered = 1 - sum(x["loss"] for x in linears) / sum(x["rtn_loss"] for x in linears)
    ratio, top = cost["ppl_ratio"], cost["same_top"]["value"]
    said = " ".join((ROOT / "docs" / "tutorial" / "first-artifact.md").read_text().split())
    assert f"rose by {100 * (ratio['value'] - 1):.2f} %, and by at most {100 * (ratio['high'] - 1):.2f} %" in said
    assert f"In {100 * top:.1f} % of places" in said and f"GPTQ made {100 * recovered:.0f} % less error" in said


def test_a_page_that_differs_is_told_and_written(tmp_path):
    """The mechanism itself, on a copy of a page whose place was emptied."""
    page = ROOT / "docs" / "reference" / "recipe.md"
    emptied = generate.PLACE.sub(r"\1\3", page.read_text())
    assert "act_order" not in emptied and generate.filled(emptied) == page.read_text()


def test_the_check_says_which_page_differs_and_changes_none(monkeypatch, capsys):
    page = ROOT / "docs" / "reference" / "recipe.md"
    monkeypatch.setattr(generate, "pages", lambda: [page])
    monkeypatch.setattr(generate, "filled", lambda text: text + "more")
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    before = page.read_text()
    with pytest.raises(SystemExit, match="make reference"):
        generate.main()
    assert "differs  docs/reference/recipe.md" in capsys.readouterr().out and page.read_text() == before


def test_an_error_described_in_two_lines_is_one_entry():
    listed = re.findall(r"^- .*$", (ROOT / "docs" / "reference" / "python.md").read_text(), re.MULTILINE)
    assert listed and not [line for line in listed if not re.match(r"- `\w+`(, `\w+`)*: ", line)]
