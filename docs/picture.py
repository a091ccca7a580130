"""Photograph pages for the documentation, into docs/pictures/.

report.png   the top of a report, from the committed proof of the demo, for the README
inside.png   what happens inside two artifacts of the demo, as `serve` shows it

python docs/picture.py        needs Chromium, Pillow from the extra `dev`, and ONNX Runtime Web (`make consumers`)
"""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path

from PIL import Image

from pythia_export import serve
from pythia_export.base.strict_json import read_json
from pythia_export.commands.export import export
from pythia_export.commands.quantize import quantize
from pythia_export.recipe import parse_recipe
from pythia_export.records.manifest import Manifest
from pythia_export.records.parity import Parity
from pythia_export.records.quantization import Quantization
from pythia_export.records.record import checked
from pythia_export.report.html import render_report

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

from chromium import Page  # noqa: E402

WIDTH, HEIGHT = 1100, 620  # of the report: the verdict and both charts
MODULES = HERE.parent / "build" / "consumers" / "node_modules"
PROMPT = "import os\n\nclass Parser:\n    def __init__(self, name):\n        self.name ="


def main() -> None:
    (HERE / "pictures").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, Page(Path(folder) / "profile") as browser:
        _save(_report(browser, Path(folder)), "report", colours=64)
        _save(_inside(browser, Path(folder)), "inside", colours=256)


def _report(browser: Page, folder: Path) -> Image.Image:
    proof = HERE / "figures" / "demo"
    kinds = {"manifest": Manifest, "quantization": Quantization, "parity": Parity}
    records = [checked(kind, read_json(proof / f"{name}.json"), proof) for name, kind in kinds.items()]
    page = folder / "report.html"
    page.write_text(render_report(*records), encoding="utf-8")
    browser.look_as(WIDTH, HEIGHT)
    browser.go(page.as_uri())
    return browser.picture().crop((0, 0, WIDTH, HEIGHT))


def _inside(browser: Page, folder: Path) -> Image.Image:
    made = []
    for name, bits in (("four-bits", 4), ("two-bits", 2)):
        recipe = {"model": {"id": "demo"}, "quantize": {"method": "rtn", "bits": bits, "group_size": 16}}
        verify = {"source": "python-stdlib", "tokens": 256, "sequence_length": 64}
        quantize(parse_recipe(recipe | {"verify": verify}), folder / "weights" / name)
        export(folder / "weights" / name, folder / name)
        made.append(serve.ready(folder / name))
    with serve.Server(serve.routes(made, serve.fetch_modules(MODULES if MODULES.is_dir() else None))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.look_as(1140, 900)
        browser.go(server.url)
        browser.until("document.getElementById('state').textContent === 'Ready'")
        browser.do(f"document.getElementById('prompt').value = {PROMPT!r}; document.getElementById('look').click()")
        browser.until("document.getElementById('said-pattern').textContent !== ''")
        box = browser.do("document.getElementById('inside').getBoundingClientRect().toJSON()")
        picture = browser.picture()
        server.shutdown()
    return picture.crop(tuple(int(box[edge]) for edge in ("left", "top", "right", "bottom")))


def _save(picture: Image.Image, name: str, colours: int) -> None:
    picture.quantize(colours).save(HERE / "pictures" / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
