"""A small hub on loopback, for the real huggingface_hub client: repositories, revisions pinned to commits, files in git
and in large file storage (a redirect to another host, with ranges), and every way in which such a thing fails."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from processes import forked

# repository -> revision -> folder; data sets are called "datasets/<owner>/<name>"
Repositories = dict[str, dict[str, Path]]
LARGE = ("_data", ".safetensors", ".bin", ".idx", ".gz", ".zst", ".parquet", ".txt", ".jsonl")


def commit_of(repo: str, revision: str) -> str:
    return hashlib.sha1(f"{repo}@{revision}".encode()).hexdigest()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Fault:
    """Strikes requests whose "METHOD path" contains `where`, the first `times` of them.

    status: this status instead of the answer. cut: the connection breaks after so many bytes of the body. spoil: the
    body arrives with its last byte flipped. slow: seconds after each tenth of the body. whole: a range is not heeded.
    """

    where: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    spoil: bool = False
    slow: float = 0.0
    whole: bool = False


@dataclass
class Hub:
    """`requests` are "METHOD path" as they come, with the range where one was asked for; `sizes` lies about a file."""

    repositories: Repositories
    endpoint: str = ""
    requests: list[str] = field(default_factory=list)
    sent: int = 0  # bytes of files
    faults: list[Fault] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    scratch: str | None = None  # where repositories that a client makes are kept

    def api_calls(self) -> list[str]:
        return [line for line in self.requests if " /api/" in line]

    def downloads(self) -> list[str]:
        return [line for line in self.requests if line.startswith("GET ") and " /api/" not in line]

    def clear(self) -> None:
        self.requests.clear()
        self.faults.clear()
        self.sent = 0


@contextmanager
def serve(repositories: Repositories) -> Iterator[Hub]:
    hub, lock = Hub(repositories), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.receive()

        def do_PUT(self) -> None:
            self.receive()

        def receive(self) -> None:
            """A repository made, files announced and stored, a commit: into the folder of the repository's `main`."""
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = unquote(self.path.split("?")[0])
            with lock:
                hub.requests.append(f"{self.command} {path}")
            self.fault = next((f for f in hub.faults if f.times > 0 and f.where in f"{self.command} {path}"), None)
            if self.fault is not None and self.fault.status is not None:
                self.fault.times -= 1
                return self.reply(self.fault.status, b"", self.fault.headers)
            if path.startswith("/store/"):
                hub.stored[path.removeprefix("/store/")] = data
                return self.reply(200, b"")
            asked = (
                [json.loads(line) for line in data.splitlines()] if "/commit/" in path else json.loads(data or b"{}")
            )
            if path == "/api/validate-yaml":
                return self.json({"errors": [], "warnings": []})
            if path == "/api/repos/create":
                repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                if repo in hub.repositories:
                    return self.reply(409, json.dumps({"url": f"{hub.endpoint}/{repo}"}).encode())
                hub.repositories[repo] = {"main": Path(tempfile.mkdtemp(dir=hub.scratch))}
                return self.json({"url": f"{hub.endpoint}/{repo}"})
            if path.endswith("/info/lfs/objects/batch"):

                def wanted(o: dict) -> dict:
                    where = {"upload": {"href": f"{hub.endpoint}/store/{o['oid']}"}}
                    return {
                        "oid": o["oid"],
                        "size": o["size"],
                        **({} if o["oid"] in hub.stored else {"actions": where}),
                    }

                return self.json({"objects": [wanted(o) for o in asked["objects"]]})
            name = "/".join(path.removeprefix("/api/models/").split("/")[:2])
            if "/preupload/" in path:
                modes = [(f["path"], "lfs" if f["path"].endswith(LARGE) else "regular") for f in asked["files"]]
                return self.json({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes]})
            for line in asked:
                value, folder = line["value"], hub.repositories[name]["main"]
                if line["key"] in ("file", "lfsFile"):
                    file = folder / value["path"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    whole = base64.b64decode(value["content"]) if line["key"] == "file" else hub.stored[value["oid"]]
                    file.write_bytes(whole)
                elif line["key"] == "deletedFile":
                    (folder / value["path"]).unlink()
            found = {"commitUrl": f"{hub.endpoint}/{name}/commit/x", "commitOid": commit_of(name, "main")}
            return self.json(found)

        def answer(self) -> None:
            path = unquote(self.path.split("?")[0])
            asked = self.headers.get("Range")
            line = f"{self.command} {path}" + (f" {asked}" if asked else "")
            self.fault = None
            with lock:
                hub.requests.append(line)
                for fault in hub.faults:
                    if fault.times > 0 and fault.where in line:
                        fault.times -= 1
                        self.fault = fault
                        break
            if self.fault is not None and self.fault.status is not None:
                return self.reply(self.fault.status, b"", self.fault.headers)
            if path.startswith("/api/"):
                return self.api(path.removeprefix("/api/").removeprefix("models/"))
            if path.startswith("/lfs/"):
                return self.storage(Path(path.removeprefix("/lfs")))
            return self.resolve(path)

        def api(self, rest: str) -> None:
            if rest.endswith("/refs"):
                repo = rest.removesuffix("/refs")
                names = hub.repositories.get(repo)
                if names is None:
                    return self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
                found = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": commit_of(repo, n)} for n in names]
                return self.json({"branches": found, "converts": [], "tags": []})
            repo, _, revision = rest.partition("/revision/")
            found = self.find(repo, revision or "main")
            if found is None:
                return None
            folder, commit = found
            files = [
                self.sibling(p, p.relative_to(folder).as_posix()) for p in sorted(folder.rglob("*")) if p.is_file()
            ]
            return self.json({"id": repo, "sha": commit, "siblings": files})

        def sibling(self, path: Path, name: str) -> dict:
            data = path.read_bytes()
            size = hub.sizes.get(name, len(data))
            git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            entry = {"rfilename": name, "size": size, "blobId": git}
            if name.endswith(LARGE):
                entry["lfs"] = {"sha256": sha256(path), "size": size, "pointerSize": 130}
            return entry

        def resolve(self, path: str) -> None:
            repo, _, rest = path.lstrip("/").partition("/resolve/")
            revision, _, name = rest.partition("/")
            found = self.find(repo, revision)
            if found is None:
                return
            folder, commit = found
            file, there = folder / name, {"X-Repo-Commit": commit}
            if not file.is_file():
                return self.reply(404, b"", there | {"X-Error-Code": "EntryNotFound"})
            data = file.read_bytes()
            if not name.endswith(LARGE):
                git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
                return self.reply(200, data, there | {"ETag": f'"{git}"', "Accept-Ranges": "bytes"})
            elsewhere = hub.endpoint.replace("127.0.0.1", "localhost") + f"/lfs{file}"  # as a CDN: another host
            there |= {"X-Linked-ETag": f'"{sha256(file)}"', "X-Linked-Size": str(len(data)), "Location": elsewhere}
            return self.reply(302, b"", there)

        def storage(self, file: Path) -> None:
            data = file.read_bytes()
            headers = {"ETag": '"storage"', "Accept-Ranges": "bytes"}
            asked = self.headers.get("Range")
            if asked is None or (self.fault is not None and self.fault.whole):
                return self.reply(200, data, headers)
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last or len(data)), len(data) - 1)
            if begin >= len(data):
                return self.reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
            return self.reply(206, data[begin : end + 1], headers)

        def find(self, repo: str, revision: str) -> tuple[Path, str] | None:
            if repo not in hub.repositories:
                self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})
                return None
            for name, folder in hub.repositories[repo].items():
                if revision in (name, commit_of(repo, name)):
                    return folder, commit_of(repo, name)
            self.reply(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return None

        def json(self, value: dict) -> None:
            self.reply(200, json.dumps(value).encode())

        def reply(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            fault = self.fault or Fault("")
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault.spoil and data:
                data = data[:-1] + bytes([data[-1] ^ 1])
            if fault.cut is not None:
                data = data[: fault.cut]
            step = len(data) // 10 + 1 if fault.slow else len(data) + 1
            for i in range(0, len(data), step):
                self.wfile.write(data[i : i + step])
                self.wfile.flush()
                if not self.path.startswith("/api/"):
                    hub.sent += len(data[i : i + step])
                time.sleep(fault.slow)
            if fault.cut is not None:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def environment(hub: Hub | str, home: Path, offline: bool = False) -> dict[str, str]:
    endpoint = hub if isinstance(hub, str) else hub.endpoint
    found = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline))}
    found |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    found.pop("HF_HUB_CACHE", None)
    return found


def run(code: str, *args: str, hub, home: Path, offline: bool = False, before: str = "") -> list[dict]:
    """The objects that a process of its own prints: a client reads its environment once."""
    done = forked(_run, before + code, args, env=environment(hub, home, offline))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _run(code: str, args: tuple[str, ...]) -> None:
    sys.argv = ["-c", *args]
    exec(compile(code, "<run>", "exec"), {"__name__": "__main__"})
