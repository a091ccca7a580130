"""A small hub on loopback, for the real huggingface_hub client: repositories, revisions pinned to commits, files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

# repository -> revision -> folder; data sets are called "datasets/<owner>/<name>"
Repositories = dict[str, dict[str, Path]]


def commit_of(repo: str, revision: str) -> str:
    return hashlib.sha1(f"{repo}@{revision}".encode()).hexdigest()


@contextmanager
def serve(repositories: Repositories) -> Iterator[tuple[str, list[str]]]:
    """Yield the endpoint and the list of requests as they come ("GET /api/models/...")."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = unquote(self.path.split("?")[0])
            requests.append(f"{self.command} {path}")
            if path.startswith("/api/models/") or path.startswith("/api/datasets/"):
                return self.info(path)
            return self.file(path, body)

        def info(self, path: str) -> None:
            rest = path.removeprefix("/api/").removeprefix("models/")
            repo, _, revision = rest.partition("/revision/")
            found = self.find(repo, revision or "main")
            if found is not None:
                folder, commit = found
                names = [{"rfilename": p.name} for p in sorted(folder.iterdir())]
                self.reply(200, json.dumps({"id": repo, "sha": commit, "siblings": names}).encode())

        def file(self, path: str, body: bool) -> None:
            repo, _, rest = path.lstrip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            found = self.find(repo, revision)
            if found is None:
                return
            folder, commit = found
            if not (folder / name).is_file():
                self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
                return
            data = (folder / name).read_bytes()
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            self.reply(200, data, {"ETag": etag, "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}, body)

        def find(self, repo: str, revision: str) -> tuple[Path, str] | None:
            if repo not in repositories:
                self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
                return None
            for name, folder in repositories[repo].items():
                if revision in (name, commit_of(repo, name)):
                    return folder, commit_of(repo, name)
            self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return None

        def reply(self, status: int, data: bytes, headers: dict[str, str] | None = None, body: bool = True) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            if body and self.command == "GET":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
