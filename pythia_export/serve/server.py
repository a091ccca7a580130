"""The server: a table of addresses, each with a few bytes, a file, or an answer that is computed. What is not in the
table is not there.

It listens on 127.0.0.1 alone, and answers only where the browser was told to ask this machine by name: a page of
somebody else whose name was made to point here (DNS rebinding) is refused. Bytes and files are given to GET and HEAD.
What is computed is asked by POST, in JSON, which a browser lets no page of another origin send.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

from ..base.errors import PythiaExportError, RecipeError
from ..base.strict_json import parse_json
from .inside import Inside
from .prepare import AGAIN, Ready, State, state_of

ADDRESS = "127.0.0.1"
NAMES = (ADDRESS, "localhost")
NAMED = f"this server is {' or '.join(NAMES)}"
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
LARGEST = 1 << 20  # bytes of a question
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
    """`state` is that of a file when it was hashed; another one is not handed out."""

    kind: str
    body: bytes | Path
    state: State | None = None


@dataclass(frozen=True)
class Answer:
    """What is computed when it is asked: `of` takes the fields of the question, of these types, and gives a record."""

    fields: Mapping[str, type]
    of: Callable[..., Any]

    def to(self, question: bytes) -> bytes:
        """Return the answer in JSON.

        Raises:
            RecipeError: the question is not JSON, or not of these fields; and what `of` raises.
        """
        asked = parse_json(question, "the question", error=RecipeError)
        wanted = ", ".join(f"{name}: {kind.__name__}" for name, kind in self.fields.items())
        if not isinstance(asked, dict) or {name: type(value) for name, value in asked.items()} != self.fields:
            raise RecipeError(f"the question has other fields than {wanted}")
        return json.dumps(asdict(self.of(**asked)), allow_nan=False).encode()


Table = Mapping[str, Content | Answer]


def routes(models: Sequence[Ready], modules: Mapping[str, Path]) -> dict[str, Content | Answer]:
    """Every address that is answered."""
    table: dict[str, Content | Answer] = {
        f"/{path.name}": Content(TYPES[path.suffix], path) for path in PAGE.iterdir() if path.suffix in TYPES
    }
    table["/"] = table.pop("/index.html")
    for name, path in modules.items():
        table[f"/modules/{name}"] = Content(TYPES[path.suffix], path)
    for i, model in enumerate(models):
        at = f"/artifacts/{i}"
        table[f"{at}/model.onnx"] = Content(BYTES, model.graph)
        table[f"{at}/model.packed.onnx"] = Content(BYTES, model.packed)
        for name, kind, path in (
            ("model.onnx_data", BYTES, model.weights),
            ("tokenizer.json", TYPES[".json"], model.tokenizer),
        ):
            table[f"{at}/{name}"] = Content(kind, path, model.states[path])
    about = [asdict(model.about) | {"at": f"/artifacts/{i}"} for i, model in enumerate(models)]
    table["/artifacts.json"] = Content(TYPES[".json"], json.dumps(about).encode())
    inside = Inside(models)
    table["/inside/look"] = Answer({"text": str}, inside.look)
    table["/inside/pattern"] = Answer({"text": str, "layer": int, "head": int}, inside.pattern)
    return table


# A page asks for some twenty files, a browser by six connections at once. A client that stalls gives its thread back.
CONNECTIONS = 64
ASK_SECONDS = 10.0  # until a whole request has come, however slowly its bytes drip
SEND_SECONDS = 60.0  # until it has taken the next mebibyte of the answer


class Server(ThreadingHTTPServer):
    """`serve_forever` answers until it is shut down; `url` is what a browser opens. `port` 0 takes any free one.

    Raises:
        RecipeError: the port is taken, or not to be had.
    """

    daemon_threads = True  # a download under way does not keep the process
    request_queue_size = CONNECTIONS

    def __init__(self, table: Table, port: int = 0) -> None:
        self.table = table
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as e:
            reason = e.strerror if isinstance(e, OSError) else e
            raise RecipeError(
                f"port {port} of {ADDRESS} cannot be had: {reason}", hint="--port 0 takes any that is free."
            ) from e

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(timeout=ASK_SECONDS):  # by then those that only stall are gone
            return self.shutdown_request(request)
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A page that was closed, or that stalls, is no error of ours."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_port}/"


class _Request(io.RawIOBase):
    """What a client sends, until a moment (of `time.monotonic`); then TimeoutError."""

    def __init__(self, connection: socket.socket, until: float) -> None:
        self._connection, self._until = connection, until

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(max(0.001, self._until - time.monotonic()))
        return self._connection.recv_into(buffer)


def _opened(path: Path) -> BinaryIO:
    """Opened without waiting for anybody, as a pipe without a writer would have it.

    Raises:
        OSError: it cannot be read, or is no plain file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no plain file")
    return os.fdopen(descriptor, "rb")


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Request(self.connection, time.monotonic() + ASK_SECONDS))

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_POST(self) -> None:
        answer = self._asked()
        if not isinstance(answer, Answer):
            return self._refuse()
        if not self._is_named():
            return self._say(HTTPStatus.MISDIRECTED_REQUEST, NAMED)
        if self.headers.get("Origin", f"http://{self.headers['Host']}") != f"http://{self.headers['Host']}":
            return self._say(HTTPStatus.FORBIDDEN, "a page of another origin asks")
        if self.headers.get_content_type() != "application/json":
            return self._say(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "application/json was expected")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 9:
            return self._say(HTTPStatus.LENGTH_REQUIRED, "a Content-Length was expected")
        if int(length) > LARGEST:
            return self._say(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the text is too long: {LARGEST:,} bytes at most")
        try:
            found = answer.to(self.rfile.read(int(length)))
        except PythiaExportError as e:
            return self._say(HTTPStatus.UNPROCESSABLE_ENTITY, f"{e} {e.hint}".strip())
        self._send(HTTPStatus.OK, TYPES[".json"], io.BytesIO(found), True)

    def _refuse(self, body: bool = True) -> None:
        allowed = "POST" if isinstance(self._asked(), Answer) else "GET, HEAD"
        self._say(HTTPStatus.METHOD_NOT_ALLOWED, f"{allowed.replace(', ', ' and ')} alone", body, Allow=allowed)

    do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse

    def _asked(self) -> Content | Answer | None:
        return self.server.table.get(self.path.partition("?")[0])

    def _is_named(self) -> bool:
        """Whether this machine was asked for by name; any port: a tunnel may have another one at its end."""
        host = self.headers.get("Host", "")
        return (host.rpartition(":")[0] or host) in NAMES

    def _answer(self, body: bool) -> None:
        if not self._is_named():
            return self._say(HTTPStatus.MISDIRECTED_REQUEST, NAMED, body)
        content = self._asked()
        if content is None:
            return self._say(HTTPStatus.NOT_FOUND, "not here", body)
        if isinstance(content, Answer):
            return self._refuse(body)
        if isinstance(content.body, bytes):
            return self._send(HTTPStatus.OK, content.kind, io.BytesIO(content.body), body)
        name = content.body.name
        try:
            file = _opened(content.body)
        except OSError as e:
            return self._say(HTTPStatus.GONE, f"{name} cannot be read any more: {e.strerror}. {AGAIN}", body)
        with file:  # its state is asked of what is open: that is what will be sent, whatever takes the name
            if content.state is not None and content.state != state_of(file.fileno()):
                return self._say(HTTPStatus.CONFLICT, f"{name} changed since it was hashed. {AGAIN}", body)
            self._send(HTTPStatus.OK, content.kind, file, body)

    def _say(self, status: HTTPStatus, text: str, body: bool = True, **headers: str) -> None:
        self._send(status, "text/plain", io.BytesIO(f"{text}\n".encode()), body, **headers)

    def _send(self, status: HTTPStatus, kind: str, file: BinaryIO, body: bool, **headers: str) -> None:
        self.send_response(status)
        for name, value in (HEADERS | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(file.seek(0, io.SEEK_END)))
        self.end_headers()
        if body:
            self.connection.settimeout(SEND_SECONDS)
            file.seek(0)
            shutil.copyfileobj(file, self.wfile, 1 << 20)

    def version_string(self) -> str:
        return "pythia-export"

    def log_message(self, format: str, *args: object) -> None:
        """What is asked is not written down: a page asks for some twenty files."""
