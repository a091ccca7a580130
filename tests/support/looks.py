"""A page in a headless Chromium at several widths: what lies where, in light and in the dark."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from html import unescape
from pathlib import Path

from chromium import CHROMIUM
from places import SUPPORT

LOOK = SUPPORT / "look.js"
_, PHONE, _, DESKTOP = WIDTHS = 320, 390, 700, 1280
DARK = "--blink-settings=preferredColorScheme=0"


def chromium(*arguments) -> str:
    """Standard output of a headless Chromium. Its sandbox needs rights that a container's root lacks.

    Of one profile there is one Chromium: a second waits until the first answers, so each has a profile of its own.
    """
    command = [
        CHROMIUM, "--headless=new", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        line = [*command, f"--user-data-dir={profile}", *arguments]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def measured(folder: Path, pages: Sequence[str], *settings: str) -> list[list[dict]]:
    """What look.js finds on each page at each of WIDTHS; in one start of the browser, which costs more than the pages.

    Laid out in frames: a window is no narrower than 500 pixels.
    """
    frames = ""
    for i, page in enumerate(pages):
        (folder / f"{i}.html").write_text(page.replace("</body>", f"<script>{LOOK.read_text()}</script></body>"))
        frames += "".join(
            f'<iframe src="{i}.html" width="{w}" height="900" style="border: 0"></iframe>' for w in WIDTHS
        )
    relay = "onload = () => Array.from(frames, f => document.body.append(f.document.getElementById('found')));"
    (folder / "outer.html").write_text(f"<!doctype html><body>{frames}<script>{relay}</script></body>")
    dom = chromium("--allow-file-access-from-files", "--virtual-time-budget=5000", *settings, "--dump-dom",
                   (folder / "outer.html").as_uri())  # fmt: skip
    rows = [json.loads(unescape(row)) for row in re.findall(r'<pre id="found">(.*?)</pre>', dom, re.S)]
    assert len(rows) == len(pages) * len(WIDTHS)
    return [rows[i * len(WIDTHS) :][: len(WIDTHS)] for i in range(len(pages))]
