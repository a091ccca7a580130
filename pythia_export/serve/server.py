"""The server: a table of addresses, each with a few bytes or a file. What is not in the table is not there.

It listens on 127.0.0.1 alone, answers GET and HEAD, and only where the browser was told to ask this machine by name:
a page of somebody else whose name was made to point here (DNS rebinding) is refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ..errors import RecipeError
from .prepare import Ready

ADDRESS = "127.0.0.1"
NAMES = (ADDRESS, "localhost")
PAGE = Path(__file__).with_name("page")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json; charset=utf-8",
    ".wasm": "application/wasm",  # without it the browser does not compile while it loads
}
BYTES = "application/octet-stream"
HEADERS = {
    # Nothing may leave: the page, its styles and its workers reach this server and no other address.
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; "
    "connect-src 'self'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    # Both together give the page shared memory, which WebAssembly's threads need.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",  # gigabytes of weights need no second place on the disk
}


@dataclass(frozen=True)
class Content:
    kind: str
    body: bytes | Path

    @property
    def nbytes(self) -> int:
        return len(self.body) if isinstance(self.body, bytes) else self.body.stat().st_size


def routes(models: Sequence[Ready], modules: Mapping[str, Path]) -> dict[str, Content]:
    """Every address that is answered."""
    table = {f"/{path.name}": Content(TYPES[path.suffix], path) for path in PAGE.iterdir() if path.suffix in TYPES}
    table["/"] = table.pop("/index.html")
    for name, path in modules.items():
        table[f"/modules/{name}"] = Content(TYPES[path.suffix], path)
    for i, model in enumerate(models):
        at = f"/artifacts/{i}"
        table[f"{at}/model.onnx"] = Content(BYTES, model.graph)
        table[f"{at}/model.onnx_data"] = Content(BYTES, model.weights)
        table[f"{at}/tokenizer.json"] = Content(TYPES[".json"], model.tokenizer)
    about = [model.about | {"at": f"/artifacts/{i}"} for i, model in enumerate(models)]
    table["/artifacts.json"] = Content(TYPES[".json"], json.dumps(about).encode())
    return table


class Server(ThreadingHTTPServer):
    """`serve_forever` answers until it is shut down; `url` is what a browser opens. `port` 0 takes any free one.

    Raises:
        RecipeError: the port is taken, or not to be had.
    """

    daemon_threads = True  # a download under way does not keep the process

    def __init__(self, table: Mapping[str, Content], port: int = 0) -> None:
        self.table = table
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as e:
            reason = e.strerror if isinstance(e, OSError) else e
            raise RecipeError(
                f"port {port} of {ADDRESS} cannot be had: {reason}", hint="--port 0 takes any that is free."
            ) from e

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_port}/"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _refuse(self) -> None:
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, Content("text/plain", b"GET and HEAD alone\n"), Allow="GET, HEAD")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse

    def _answer(self, body: bool) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in NAMES:  # any port: a tunnel may have another one at its end
            found = Content("text/plain", f"this server is {' or '.join(NAMES)}\n".encode())
            return self._send(HTTPStatus.MISDIRECTED_REQUEST, found, body)
        content = self.server.table.get(self.path.partition("?")[0])
        if content is None:
            return self._send(HTTPStatus.NOT_FOUND, Content("text/plain", b"not here\n"), body)
        self._send(HTTPStatus.OK, content, body)

    def _send(self, status: HTTPStatus, content: Content, body: bool = True, **headers: str) -> None:
        self.send_response(status)
        for name, value in (HEADERS | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Type", content.kind)
        self.send_header("Content-Length", str(content.nbytes))
        self.end_headers()
        if not body:
            return
        with suppress(BrokenPipeError, ConnectionResetError):  # the page was closed
            if isinstance(content.body, bytes):
                self.wfile.write(content.body)
            else:
                with content.body.open("rb") as f:
                    shutil.copyfileobj(f, self.wfile, 1 << 20)

    def version_string(self) -> str:
        return "pythia-export"

    def log_message(self, format: str, *args: object) -> None:
        """What is asked is not written down: a page asks for some twenty files."""
