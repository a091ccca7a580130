"""A headless Chromium that tests drive, by the DevTools protocol over two pipes (--remote-debugging-pipe)."""

from __future__ import annotations

import base64
import fcntl
import io
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
KEYS = {  # DOM code, Windows' virtual key code, text
    "Enter": ("Enter", 13, "\r"), "Escape": ("Escape", 27, ""), "Tab": ("Tab", 9, ""), "Home": ("Home", 36, ""),
    "End": ("End", 35, ""), "ArrowLeft": ("ArrowLeft", 37, ""), "ArrowUp": ("ArrowUp", 38, ""),
    "ArrowRight": ("ArrowRight", 39, ""), "ArrowDown": ("ArrowDown", 40, ""), "a": ("KeyA", 65, "a"),
    " ": ("Space", 32, " "),
}  # fmt: skip
CONTROL, SHIFT = 2, 8


class Page:
    """One tab. Use as a context: the browser ends with it.

    `asked` lists the addresses of every request of the page (its workers' are seen by the server), `workers` the
    sessions of those, `said` what the console would show in red.
    """

    def __init__(self, profile: Path, *, webgpu: bool = False) -> None:
        self.asked: list[str] = []
        self.said: list[str] = []
        self.workers: list[str] = []
        self._ids = itertools.count(1)
        self._held = b""
        ours_in, written = os.pipe()
        read, ours_out = os.pipe()
        # Above 3 and 4, which Chromium's are to be: the shell below would close one before it copies the other.
        theirs_in, theirs_out = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read, written))
        os.close(read)
        os.close(written)
        command = [
            str(CHROMIUM), "--headless=new", "--no-first-run", "--hide-scrollbars",
            "--enable-unsafe-webgpu" if webgpu else "--disable-gpu",  # SwiftShader, where there is no GPU
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--remote-debugging-pipe", f"--user-data-dir={profile}", *(["--no-sandbox"] if os.geteuid() == 0 else []),
            "about:blank",
        ]  # fmt: skip
        script = f'exec 3<&{theirs_in} 4>&{theirs_out} {theirs_in}<&- {theirs_out}>&-; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command], pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out, self._session = ours_in, ours_out, None
        target = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Target.setAutoAttach", autoAttach=True, waitForDebuggerOnStart=False, flatten=True)

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *error) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, *, of: str | None = None, **parameters):
        """One command to the page, or to the session `of` a worker."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        session = of or self._session
        message |= {"sessionId": session} if session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = self._next(deadline)
            if found.get("id") == number:
                assert "error" not in found, (method, found["error"])
                return found["result"]
        raise TimeoutError(method)

    def _next(self, deadline: float) -> dict:
        while b"\0" not in self._held:
            if not select.select([self._in], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError("Chromium says nothing")
            piece = os.read(self._in, 1 << 20)
            assert piece, "Chromium ended"
            self._held += piece
        one, _, self._held = self._held.partition(b"\0")
        found = json.loads(one)
        of = found.get("params", {})
        if found.get("method") == "Network.requestWillBeSent":
            self.asked.append(of["request"]["url"])
        elif found.get("method") == "Target.attachedToTarget" and of["targetInfo"]["type"] == "worker":
            self.workers.append(of["sessionId"])
        elif found.get("method") == "Runtime.exceptionThrown":
            self.said.append(of["exceptionDetails"].get("exception", {}).get("description", ""))
        elif found.get("method") == "Log.entryAdded":
            self.said.append(of["entry"]["text"])
        return found

    def do(self, script: str, of: str | None = None):
        """The value of an expression in the page, or in a worker; a promise is awaited."""
        found = self.call("Runtime.evaluate", of=of, expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def until(self, condition: str, seconds: float = 60):
        """Wait until the expression is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := self.do(condition):
                return found
            time.sleep(0.05)
        raise TimeoutError(f"{condition}; the page shows: {self.do('document.body.innerText')}; {self.said}")

    def press(self, key: str, modifiers: int = 0) -> None:
        code, number, text = KEYS[key]
        common = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        written = {"text": text} if text and not modifiers else {}
        self.call("Input.dispatchKeyEvent", type="keyDown" if written else "rawKeyDown", **common, **written)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def look_as(self, width: int, height: int, *, dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self) -> Image.Image:
        """The whole page, not only what a window shows of it."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        return Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")
