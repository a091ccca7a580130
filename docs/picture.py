"""Photograph the top of a report, from the committed proof of the demo, for the README: docs/pictures/report.png.

python docs/picture.py        needs Chromium, and Pillow from the extra `dev`
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from pythia_export.base.strict_json import read_json
from pythia_export.records.manifest import Manifest
from pythia_export.records.parity import Parity
from pythia_export.records.quantization import Quantization
from pythia_export.records.record import checked
from pythia_export.report.html import render_report

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

from chromium import Page  # noqa: E402

WIDTH, HEIGHT = 1100, 620  # the verdict and both charts


def main() -> None:
    proof = HERE / "figures" / "demo"
    kinds = {"manifest": Manifest, "quantization": Quantization, "parity": Parity}
    records = [checked(kind, read_json(proof / f"{name}.json"), proof) for name, kind in kinds.items()]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        page = Path(folder) / "report.html"
        page.write_text(render_report(*records), encoding="utf-8")
        with Page(Path(folder) / "profile") as browser:
            browser.look_as(WIDTH, HEIGHT)
            browser.go(page.as_uri())
            picture = browser.picture().crop((0, 0, WIDTH, HEIGHT)).quantize(64)
    (HERE / "pictures").mkdir(exist_ok=True)
    picture.save(HERE / "pictures" / "report.png", optimize=True)


if __name__ == "__main__":
    main()
