"""The server of `serve`: what it hands out, to whom, and where the JavaScript of others comes from. No browser."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from places import ROOT
from typer.testing import CliRunner

from pythia_export import cli, serve
from pythia_export.artifact import Artifact
from pythia_export.base import errors
from pythia_export.commands.export import export
from pythia_export.commands.quantize import quantize as quantize_recipe
from pythia_export.graph import targets
from pythia_export.recipe import parse_recipe
from pythia_export.runtime import Session, generate
from pythia_export.serve import modules as room
from pythia_export.serve.inside import Inside

RECIPE = {
    "model": {"id": "demo"},
    "quantize": {"method": "rtn", "bits": 4, "group_size": 32, "embedding": "int8"},
    "verify": {"source": "python-stdlib", "tokens": 256, "sequence_length": 64},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    quantize_recipe(parse_recipe(RECIPE), out / "weights")
    export(out / "weights", out / "artifact")
    return out / "artifact"


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory):
    """The names that the page asks for, without their content."""
    out = tmp_path_factory.mktemp("node_modules")
    for module in room.MODULES:
        for name in module.files:
            (out / module.name / name).parent.mkdir(parents=True, exist_ok=True)
            (out / module.name / name).write_text(f"{module.name}/{name}")
    return out


@pytest.fixture(scope="module")
def server(folder, node_modules):
    with serve.Server(serve.routes([serve.ready(folder)], serve.fetch_modules(node_modules))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(server, path: str, method: str = "GET", host: str | None = None):
    """Status, headers and body; the path goes over the wire as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def test_it_hands_out_the_page_the_modules_and_the_artifact_and_nothing_else(server, folder):
    assert set(server.table) == {
        "/", "/style.css", "/page.js", "/column.js", "/model.js", "/worker.js", "/session.js", "/sampling.js",
        "/random.js", "/text.js", "/inside.js", "/lens.js", "/attention.js", "/grid.js", "/artifacts.json",
        "/inside/look", "/inside/pattern",
        "/modules/onnxruntime-web/ort.wasm.min.mjs", "/modules/onnxruntime-web/ort-wasm-simd-threaded.mjs",
        "/modules/onnxruntime-web/ort-wasm-simd-threaded.wasm", "/modules/onnxruntime-web/ort.webgpu.min.mjs",
        "/modules/onnxruntime-web/ort-wasm-simd-threaded.asyncify.mjs",
        "/modules/onnxruntime-web/ort-wasm-simd-threaded.asyncify.wasm",
        "/modules/@huggingface/tokenizers/tokenizers.min.mjs",
        "/artifacts/0/model.onnx", "/artifacts/0/model.packed.onnx", "/artifacts/0/model.onnx_data",
        "/artifacts/0/tokenizer.json",
    }  # fmt: skip
    assert ask(server, "/artifacts/0/model.onnx_data")[2] == (folder / "model.onnx_data").read_bytes()
    assert b"A base model" in ask(server, "/")[2] and ask(server, "/?x=1")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/artifacts/0/manifest.json", "/artifacts/1/model.onnx", "/artifacts/0/", "/modules/", "/index.html",
        "/../serve/server.py", "/artifacts/0/../../../../etc/passwd", "/artifacts/0/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd", "/page.js/../server.py", "/modules/onnxruntime-web/../../x", "\\etc\\passwd", "/page.js%00",
        "http://127.0.0.1/page.js", "page.js",
    ],
)  # fmt: skip
def test_what_is_not_in_the_table_is_not_there(server, path):
    status, _, body = ask(server, path)
    assert status == 404 and body == b"not here\n"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_it_only_gives(server, method):
    status, headers, _ = ask(server, "/", method)
    assert status == 405 and headers["Allow"] == "GET, HEAD"


def test_head_is_get_without_the_body(server):
    status, headers, body = ask(server, "/artifacts/0/model.onnx_data", "HEAD")
    assert status == 200 and body == b""
    assert headers["Content-Length"] == ask(server, "/artifacts/0/model.onnx_data")[1]["Content-Length"] != "0"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1:8000"])
def test_a_name_that_was_made_to_point_here_is_refused(server, host):
    assert ask(server, "/", host=host)[0] == ask(server, "/artifacts/0/tokenizer.json", host=host)[0] == 421


@pytest.mark.parametrize("host", ["localhost", "localhost:9999", "127.0.0.1"])
def test_this_machine_by_its_own_names_is_answered_also_through_a_tunnel(server, host):
    assert ask(server, "/", host=host)[0] == 200


def test_every_answer_keeps_the_page_to_this_server_and_gives_it_threads(server):
    for path in (*server.table, "/nowhere"):
        headers = ask(server, path, "HEAD")[1]
        policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'none'" and policy["connect-src"] == policy["worker-src"] == "'self'"
        assert policy["script-src"] == "'self' 'wasm-unsafe-eval'" and not any("http" in x for x in policy.values())
        assert headers["Cross-Origin-Opener-Policy"] == headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_browsers_are_told_what_each_file_is(server):
    kinds = {path: ask(server, path, "HEAD")[1]["Content-Type"] for path in server.table}
    assert kinds["/"] == "text/html; charset=utf-8" and kinds["/style.css"].startswith("text/css")
    assert kinds["/modules/onnxruntime-web/ort-wasm-simd-threaded.wasm"] == "application/wasm"
    scripts = [kind for path, kind in kinds.items() if path.endswith((".js", ".mjs"))]
    assert len(scripts) == 17 and set(scripts) == {"text/javascript; charset=utf-8"}


def test_only_this_machine_is_listened_to(server):
    assert server.server_address[0] == "127.0.0.1"
    with socket.socket() as other:
        other.settimeout(1)
        address = socket.gethostbyname(socket.gethostname())
        if not address.startswith("127."):
            assert other.connect_ex((address, server.server_port)) != 0


def test_a_port_that_is_taken_is_said(server, folder, node_modules):
    done = CliRunner().invoke(
        cli.app,
        ["serve", str(folder), "--port", str(server.server_port), "--no-open", "--modules", str(node_modules)],
    )
    assert done.exit_code == 2 and f"port {server.server_port} of 127.0.0.1 cannot be had" in done.stderr
    assert "--port 0" in done.stderr and done.stdout == ""


@pytest.fixture
def own(folder, node_modules, tmp_path):
    """A server of a copy, which may be changed under it."""
    shutil.copytree(folder, tmp_path / "own")
    table = serve.routes([serve.ready(tmp_path / "own")], serve.fetch_modules(node_modules))
    with serve.Server(table) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server, tmp_path / "own"
        server.shutdown()


def test_clients_that_stall_keep_no_thread_for_ever(server, monkeypatch):
    """Ones that never ask, ones whose question drips, and ones that do not take their answer."""
    monkeypatch.setattr(serve.server, "ASK_SECONDS", 0.5)
    monkeypatch.setattr(serve.server, "SEND_SECONDS", 0.5)
    before, clients = threading.active_count(), []
    for i in range(20):
        client = socket.create_connection(server.server_address)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        if i % 2:
            client.sendall(b"GET /artifacts/0/model.onnx_data HTTP/1.1\r\nHost: localhost\r\n\r\n")
        clients.append(client)
    until = time.monotonic() + 20
    for _ in range(8):
        for client in clients[::2]:
            with suppress(OSError):
                client.sendall(b"G")
        time.sleep(0.1)
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.05)
    assert threading.active_count() <= before
    assert ask(server, "/")[0] == 200
    for client in clients:
        client.close()


def test_more_connections_than_are_answered_at_once_wait_for_their_turn(server, monkeypatch):
    monkeypatch.setattr(serve.server, "ASK_SECONDS", 1.0)
    idle = [socket.create_connection(server.server_address) for _ in range(serve.server.CONNECTIONS + 10)]
    before = time.monotonic()
    assert ask(server, "/")[0] == 200 and time.monotonic() - before < 10
    assert threading.active_count() < serve.server.CONNECTIONS + 20
    for client in idle:
        client.close()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_the_place_of_a_file_does_not_block(own):
    server, folder = own
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    status, _, body = ask(server, "/artifacts/0/tokenizer.json")
    assert status == 410 and b"no plain file" in body


@pytest.mark.parametrize("name", ["model.onnx_data", "tokenizer.json"])
@pytest.mark.parametrize("how", ["in place", "renamed over"])
def test_a_file_that_changed_since_it_was_hashed_is_not_handed_out(own, name, how):
    server, folder = own
    data = bytearray((folder / name).read_bytes())
    assert ask(server, f"/artifacts/0/{name}")[0] == 200
    data[1000] ^= 1
    if how == "in place":
        (folder / name).write_bytes(data)
    else:
        (folder / "beside").write_bytes(data)
        os.utime(folder / "beside", ns=(0, (folder / name).stat().st_mtime_ns))
        os.replace(folder / "beside", folder / name)
    for method in ("GET", "HEAD"):
        status, _, body = ask(server, f"/artifacts/0/{name}", method)
        assert status == 409 and body == (b"" if method == "HEAD" else body)
    assert f"{name} changed since it was hashed" in ask(server, f"/artifacts/0/{name}")[2].decode()


def test_a_file_that_changes_while_it_is_hashed_is_not_handed_out(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "own")
    weights, check = tmp_path / "own" / "model.onnx_data", Artifact.check
    monkeypatch.setattr(Artifact, "check", lambda self: (check(self), os.utime(weights, ns=(0, 0))))
    made = serve.ready(tmp_path / "own")
    with serve.Server(serve.routes([made], {})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert ask(server, "/artifacts/0/model.onnx_data")[0] == 409
        server.shutdown()


def test_a_file_that_is_gone_is_said_and_the_others_are_handed_out(own, capfd):
    server, folder = own
    (folder / "model.onnx_data").unlink()
    status, headers, body = ask(server, "/artifacts/0/model.onnx_data")
    assert status == 410 and b"model.onnx_data cannot be read any more: No such file" in body
    assert headers["X-Content-Type-Options"] == "nosniff" and ask(server, "/artifacts/0/tokenizer.json")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_connection_that_is_reset_is_no_error_but_others_are_told(server, capfd, monkeypatch):
    for begun in (b"GET / HTT", b"GET /artifacts/0/model.onnx_data HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.server_port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing it resets it
            client.sendall(begun)
    for _ in range(100):  # until both are noticed
        if not any("process_request_thread" in thread.name for thread in threading.enumerate()):
            break
        time.sleep(0.05)
    assert ask(server, "/")[0] == 200 and capfd.readouterr().err == ""
    monkeypatch.setattr(server, "table", None)
    with pytest.raises(http.client.RemoteDisconnected):
        ask(server, "/")
    assert "AttributeError" in capfd.readouterr().err


# The artifact


def test_the_graph_for_a_browser_computes_what_the_artifact_does(folder):
    made, artifact = serve.ready(folder), Artifact.open(folder)
    assert b"GatherBlockQuantized" in (folder / "model.onnx").read_bytes()
    assert b"GatherBlockQuantized" not in made.graph  # the browser's WebAssembly has no such operator
    tokenizer, ids = artifact.tokenizer(), artifact.tokenizer().encode("def main(").ids
    ours = Session.open(artifact)
    assert b"MatMulNBits" in made.packed and b"MatMulNBits" not in made.graph
    for graph in (made.graph, made.packed):
        theirs = Session(graph, folder, artifact.config, kv_cache="growing", native=False, trust_graph=True)
        assert list(generate(theirs, tokenizer, ids, 32)) == list(generate(ours, tokenizer, ids, 32))


@pytest.mark.parametrize(
    "quantize",
    [
        {"bits": 4, "symmetric": False}, {"bits": 8, "group_size": -1}, {"bits": 2}, {"bits": 3, "products": 2},
        {"bits": 8, "symmetric": False, "head": {"bits": 4, "group_size": 32, "symmetric": False}},
        {"bits": 4, "head": {"method": "none"}}, {"method": "none", "embedding": "float16"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("unpacked", [True, False])
def test_unpacking_changes_no_logit(tmp_path, monkeypatch, quantize, unpacked):
    recipe = {"method": "rtn", "group_size": 32, "embedding": "int4"} | quantize
    quantize_recipe(parse_recipe(RECIPE | {"quantize": recipe}), tmp_path / "weights")
    export(tmp_path / "weights", tmp_path / "artifact")
    monkeypatch.setattr("pythia_export.serve.prepare.UNPACKED_BYTES", 10**9 if unpacked else 0)
    made, artifact = serve.ready(tmp_path / "artifact"), Artifact.open(tmp_path / "artifact")
    if recipe["method"] != "none":
        assert (b"MatMulNBits" in made.graph) == (not unpacked or recipe["bits"] == 2)
    theirs = Session(
        made.graph, tmp_path / "artifact", artifact.config, kv_cache="growing", native=False, trust_graph=True
    )
    ids = np.arange(1, 65)[None]
    np.testing.assert_allclose(theirs.logits(ids), Session.open(artifact, native=False).logits(ids), atol=2e-4)


def test_weights_without_a_graph_and_the_other_layout_are_served_as_they_lie(folder, tmp_path):
    export(folder, tmp_path / "js", layout="transformers.js")
    for path in (folder.parent / "weights", tmp_path / "js"):
        made = serve.ready(path)
        assert made.graph == serve.ready(folder).graph
        assert made.weights.read_bytes() == (folder / "model.onnx_data").read_bytes()
        assert made.weights.is_relative_to(path)
        assert Inside([made]).look("def main(").seen == Inside([serve.ready(folder)]).look("def main(").seen


def test_a_flipped_byte_is_found_before_anything_is_served(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bad")
    data = bytearray((tmp_path / "bad" / "model.onnx_data").read_bytes())
    data[1000] ^= 1
    (tmp_path / "bad" / "model.onnx_data").write_bytes(data)
    with pytest.raises(errors.IntegrityError, match=r"model\.onnx_data: sha256"):
        serve.ready(tmp_path / "bad")


def test_what_no_browser_holds_is_refused_by_its_size(folder, monkeypatch):
    monkeypatch.setattr(targets, "WEB_BYTES", 1_000_000)
    with pytest.raises(errors.RecipeError, match="browsers load a file of at most"):
        serve.ready(folder)


def test_float16_for_a_gpu_is_refused(tmp_path):
    recipe = parse_recipe(RECIPE | {"export": {"target": "cuda", "dtype": "float16"}})
    quantize_recipe(recipe, tmp_path / "half")
    with pytest.raises(errors.RecipeError, match="computes in float16, for cuda"):
        serve.ready(tmp_path / "half")


def test_two_vocabularies_are_not_compared(folder):
    made = serve.ready(folder)
    serve.require_comparable(made, made)
    for other in (
        dataclasses.replace(made, vocabulary={"other": 0}),
        dataclasses.replace(made, about=dataclasses.replace(made.about, vocabulary=5)),
    ):
        with pytest.raises(errors.RecipeError, match="other vocabularies"):
            serve.require_comparable(made, other)


# The modules


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """One package in a registry of this machine, and a cache that is empty."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        for name, text in (("package/dist/a.mjs", b"export {};"), ("package/../outside", b"no")):
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
    tarball = held.getvalue()
    path = tmp_path / "files" / "@scope" / "thing" / "-" / "thing-1.0.0.tgz"
    path.parent.mkdir(parents=True)
    path.write_bytes(tarball)
    integrity = base64.b64encode(hashlib.sha512(tarball).digest()).decode()
    module = room.Module("@scope/thing", "1.0.0", integrity, len(tarball), ("dist/a.mjs",))
    monkeypatch.setattr(room, "MODULES", (module,))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked = []

    class Files(SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            return str(tmp_path / "files") + path

        def log_message(self, *args) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield path, asked
        server.shutdown()


def test_they_are_fetched_once_and_then_need_no_network(registry, monkeypatch):
    path, asked = registry
    found = serve.fetch_modules()
    assert found["@scope/thing/a.mjs"].read_bytes() == b"export {};"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert serve.fetch_modules() == found and asked == ["/@scope/thing/-/thing-1.0.0.tgz"]


def test_a_tarball_that_is_not_the_pinned_one_is_refused_and_not_kept(registry, tmp_path):
    path, _ = registry
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    for data in (changed, path.read_bytes() + b"more", path.read_bytes()[:-9]):
        path.write_bytes(data)
        with pytest.raises(errors.IntegrityError, match="was expected"):
            serve.fetch_modules()
        assert not [p for p in (tmp_path / "home").rglob("*") if p.is_file()]


def test_offline_without_them_says_what_to_do(registry, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(errors.EnvironmentProblem, match="@scope/thing 1.0.0 is not in .*offline") as caught:
        serve.fetch_modules()
    assert "npm install @scope/thing@1.0.0" in caught.value.hint and registry[1] == []


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/", "file:///etc/", "nonsense"])
def test_a_registry_that_cannot_be_read_is_said(registry, monkeypatch, address):
    monkeypatch.setenv("npm_config_registry", address)
    with pytest.raises(errors.SourceError, match="cannot be read|was expected"):
        serve.fetch_modules()


def test_a_folder_that_lacks_them_is_said(tmp_path):
    with pytest.raises(errors.EnvironmentProblem, match=r"has no onnxruntime-web/dist/ort\.wasm\.min\.mjs"):
        serve.fetch_modules(tmp_path)


def test_the_pins_are_those_of_the_transformers_js_that_is_tested():
    lock = ROOT / "build" / "consumers" / "package-lock.json"
    if not lock.is_file():
        pytest.skip("no transformers.js: make test-consumers")
    packages = json.loads(lock.read_text())["packages"]
    for module in room.MODULES:
        entry = packages[f"node_modules/{module.name}"]
        assert (entry["version"], entry["integrity"]) == (module.version, f"sha512-{module.integrity}")


# The command


def test_it_prints_its_address_serves_and_ends_with_ctrl_c(folder, node_modules):
    command = [sys.executable, "-m", "pythia_export", "serve", folder, folder, "--no-open", "--modules", node_modules]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        connection = http.client.HTTPConnection(url.split("/")[2], timeout=30)
        connection.request("GET", "/artifacts.json")
        assert connection.getresponse().read().count(b'"name": "artifact"') == 2
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0 and rest == ""
    assert said.splitlines()[-1] == "Ended." and "Traceback" not in said


def test_page_and_worker_are_small_files_of_the_package():
    page = Path(serve.__file__).with_name("page")
    assert all(path.stat().st_size < 20_000 for path in page.iterdir())
    assert not any("http" in path.read_text().replace("https://www.pcg-random.org", "") for path in page.iterdir())
