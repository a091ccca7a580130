"""report.html in a real Chromium: on a phone, in the dark, printed. Skipped where there is no Chromium."""

from __future__ import annotations

import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from looks import CHROMIUM, DARK, DESKTOP, PHONE, WIDTHS, chromium, measured
from PIL import Image
from records import GATES, HOSTILE, everything, judged, records, render_report

from pythia_export.recipe import Gates

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the page is not looked at"),
]


def failed():
    """A page with long sentences at its gates: one failed, one undecided for want of text."""
    manifest, quantization, parity = everything()
    gates = Gates.model_validate(GATES.model_dump() | {"kld_mean": 0.01, "min_tokens": 1_000_000})
    parity["gates"] = judged(gates, parity)
    parity["passed"] = False
    return manifest, quantization, parity


def hostile():
    """Names longer than a line, without a place to break."""
    manifest, quantization, parity = everything()
    manifest["source"]["name"] = HOSTILE + "x" * 120
    parity["corpus"]["source"] = "y" * 200
    parity["gates"] = judged(Gates(export_max_abs=1e-7), parity)
    parity["passed"] = False
    return manifest, quantization, parity


PAGES = {
    "passed": records,
    "failed": failed,
    "hostile": hostile,
    "36 layers": partial(records, layers=36, model="EleutherAI/pythia-2.8b-deduped"),
    "nothing quantised": partial(records, method="none"),
}


@pytest.fixture(scope="module", params=[(), (DARK,)], ids=["light", "dark"])
def found(request, tmp_path_factory) -> dict[str, list[dict]]:
    pages = [render_report(*make()) for make in PAGES.values()]
    return dict(zip(PAGES, measured(tmp_path_factory.mktemp("pages"), pages, *request.param), strict=True))


def screenshot(folder, page: str, width: int, height: int, *settings: str) -> Image.Image:
    (folder / "page.html").write_text(page)
    picture = folder / "page.png"
    chromium(f"--window-size={width},{height}", *settings, f"--screenshot={picture}", (folder / "page.html").as_uri())
    return Image.open(picture).convert("RGB")


def saturated(picture: Image.Image) -> tuple[int, int]:
    """Pixels that are plainly green, and plainly red."""
    colours = picture.getcolors(1 << 24)
    green = sum(n for n, (r, g, b) in colours if g > r + 50 and g > b + 25)
    return green, sum(n for n, (r, g, b) in colours if r > g + 80 and r > b + 80)


def luminance(picture: Image.Image) -> float:
    """Mean, of 255."""
    return picture.convert("L").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))


@pytest.mark.parametrize("page", PAGES)
def test_nothing_sticks_out_overlaps_or_is_too_faint(found, page):
    sound = {"outside": [], "overlap": [], "faint": [], "small": []}
    assert found[page] == [{"width": width, "scroll": width} | sound for width in WIDTHS]


@pytest.mark.parametrize("settings", [(), (DARK,)], ids=["light", "dark"])
@pytest.mark.parametrize("page", ["passed", "failed"])
def test_the_first_screen_of_a_phone_shows_the_verdict_in_its_colour(tmp_path, page, settings):
    picture = screenshot(tmp_path, render_report(*PAGES[page]()), PHONE, 700, *settings)
    green, red = saturated(picture)
    assert (green > 1000 and green > 10 * red) if page == "passed" else (red > 1000 and red > 10 * green), (green, red)


def test_it_is_light_by_day_and_dark_by_night(tmp_path):
    page = render_report(*failed())
    light = luminance(screenshot(tmp_path, page, DESKTOP, 3000))
    dark = luminance(screenshot(tmp_path, page, DESKTOP, 3000, DARK))
    assert light > 230 and dark < 45, (light, dark)


@pytest.mark.skipif(shutil.which("pdftoppm") is None, reason="no pdftoppm (poppler): prints are not looked at")
def test_it_prints_on_few_white_sheets_also_from_a_dark_screen(tmp_path):
    (tmp_path / "page.html").write_text(render_report(*failed()))
    pdf = tmp_path / "page.pdf"
    chromium(DARK, "--no-pdf-header-footer", f"--print-to-pdf={pdf}", (tmp_path / "page.html").as_uri())
    subprocess.run(["pdftoppm", "-r", "40", "-png", pdf, tmp_path / "sheet"], check=True)
    sheets = sorted(tmp_path.glob("sheet*.png"))
    assert 2 <= len(sheets) <= 6 and all(luminance(Image.open(sheet)) > 235 for sheet in sheets)
    green, red = saturated(Image.open(sheets[0]).convert("RGB"))
    assert red > 20 and red > green
    text = subprocess.run(["pdftotext", "-layout", pdf, "-"], capture_output=True, text=True, check=True).stdout
    first, *_ = texts = [sheet.strip() for sheet in text.split("\f")]
    assert "Failed" in first and "What did quantisation cost?" in first
    headings = ("Gates", "Where the error is", "Every linear", "Where it comes from", "By part of the text")
    assert not [sheet for sheet in texts if sheet.endswith(headings)], "a heading stands alone at the end of a sheet"


def test_the_browser_asks_for_nothing_but_the_page(tmp_path):
    asked = []

    class Server(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            asked.append(self.path)

    (tmp_path / "report.html").write_text(render_report(*hostile()))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}"
        chromium("--virtual-time-budget=2000", "--dump-dom", f"{host}/report.html")
        server.shutdown()
    assert asked[0] == "/report.html" and set(asked[1:]) <= {"/favicon.ico"}  # that one every browser asks for
