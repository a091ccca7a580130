"""What contributors are told is true: targets, hooks, paths, and the shape of a decision's record."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from marks import LONGEST, MARKERS, SLOW

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "docs" / "decisions" / "README.md", *DECISIONS]
TOP = {path.name for path in ROOT.iterdir()}


def test_make_help_lists_every_target_in_80_columns():
    if not shutil.which("make"):
        pytest.skip("no make")
    printed = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True).stdout
    phony = re.search(r"^\.PHONY:((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    listed = re.findall(r"^  make ([a-z-]+) ", printed, re.MULTILINE)
    assert set(listed) == set(phony[1].replace("\\", " ").split()) - {"lint"}  # as `check` was called before
    assert max(map(len, printed.splitlines())) <= 80


def test_hooks_before_a_commit_fetch_nothing():
    """A hook from another repository is cloned when it first runs; ours run what .venv has."""
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]
    for hook in repos[0]["hooks"]:
        assert hook["language"] == "system" and hook["entry"].startswith(".venv/bin/")


def test_decisions_are_numbered_listed_and_short():
    index = (ROOT / "docs" / "decisions" / "README.md").read_text()
    for number, path in enumerate(DECISIONS, 1):
        text = path.read_text()
        title = re.match(rf"# {number}\. (.+)\n", text)
        assert path.name.startswith(f"{number:04}-") and title
        assert f"| [{number:04}]({path.name}) | {title[1]} |" in index
        assert re.findall(r"^## (.+)", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
        assert len(text.splitlines()) <= 45, "more than a page"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page):
    text = re.sub(r"\]\(.*?\)", "]", page.read_text())  # links are looked at by test_docs.py
    paths = re.findall(r"(?<![\w./])((?:[\w.-]+/)+[\w.-]*[\w])|(?<![\w./])([A-Z]+\.md)", text)
    named = [ROOT / name for name in (a or b for a, b in paths) if name.split("/")[0] in TOP and "NAME" not in name]
    for path in named:
        assert path.exists(), f"{page.name}: {path} does not exist"


def test_lists_of_long_and_slow_files_name_files():
    """A file that was renamed would run last and count as fast."""
    there = {path.stem.removeprefix("test_") for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(LONGEST) <= there and set(SLOW) <= there
    assert all((ROOT / "tests" / folder).is_dir() for folder in MARKERS)
