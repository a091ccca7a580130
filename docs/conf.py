"""The static site, by Sphinx: `make docs` writes build/docs, from the same files that people read in the repository.

The pages hold no directive of Sphinx's. Where each stands in the navigation is said here.
"""

import shutil
from pathlib import Path

project = "pythia-export"
extensions = ["myst_parser"]
root_doc = "README"
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/*.md",
    "docs/**/*.md",
    "benchmarks/README.md",
    "benchmarks/gpu/README.md",
    "kernels/README.md",
    "demo/README.md",
]
exclude_patterns = [".*", "build", "dist", "tests", "pythia_export", "examples", "recipes"]
myst_heading_anchors = 4  # links to headings, as on GitHub
myst_links_external_new_tab = False

html_theme = "furo"
html_title = "pythia-export"
html_show_sphinx = html_show_copyright = html_copy_source = False
html_theme_options = {"top_of_page_buttons": []}
html_static_path, html_css_files = ["static"], ["site.css"]
pygments_style, pygments_dark_style = "tango", "native"

NAVIGATION = {
    "Tutorial": ["docs/tutorial/first-artifact"],
    "Guides": [
        "docs/guides/installation",
        "docs/guides/choosing-bits-and-method",
        "docs/guides/fine-tuned-checkpoint",
        "docs/guides/from-another-quantiser",
        "docs/guides/generating",
        "docs/guides/consumers",
        "docs/guides/signing",
        "docs/guides/gpu",
        "docs/guides/ci",
        "docs/guides/sweeps",
        "docs/guides/interpretability",
        "docs/guides/troubleshooting",
    ],
    "Concepts": [
        "docs/concepts/rounding",
        "docs/concepts/proof",
        "docs/concepts/operators",
        "docs/concepts/house",
        "docs/concepts/durability",
        "docs/concepts/robustness",
        "docs/glossary",
    ],
    "Reference": [
        "docs/reference/commands",
        "docs/reference/recipe",
        "docs/reference/sources",
        "docs/reference/family",
        "docs/reference/sizes",
        "docs/reference/artifact",
        "docs/reference/parity",
        "docs/reference/records",
        "docs/reference/exit-codes",
        "docs/reference/python",
        "kernels/README",
        "benchmarks/README",
        "benchmarks/gpu/README",
        "demo/README",
    ],
    "Contributing": [
        "CONTRIBUTING",
        "docs/decisions/README",
        *sorted(f"docs/decisions/{record.stem}" for record in (Path(__file__).parent / "decisions").glob("0*.md")),
        "SECURITY",
    ],
}


def with_navigation(app, docname, source):
    """Put hidden tables of contents at the end of the front page."""
    if docname == root_doc:
        for title, pages in NAVIGATION.items():
            lines = "\n".join(f"/{page}" for page in pages)
            source[0] += f"\n\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{lines}\n```\n"


def with_a_front_door(app, failed):
    """Servers and people look for index.html."""
    if failed is None and app.builder.format == "html":
        shutil.copy(app.outdir / "README.html", app.outdir / "index.html")


def setup(app):
    app.connect("source-read", with_navigation)
    app.connect("build-finished", with_a_front_door)
    return {"parallel_read_safe": True}
