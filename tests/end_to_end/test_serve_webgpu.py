"""The page of `serve` on a real WebGPU, SwiftShader's where there is no GPU: minutes, for `make test-long`."""

from __future__ import annotations

import dataclasses
import json
import threading

import pytest
from chromium import CHROMIUM, Page
from models import hugging_face, save_checkpoint, small_config
from places import ROOT

from pythia_export import serve
from pythia_export.artifact import Artifact
from pythia_export.commands.export import export
from pythia_export.commands.quantize import quantize
from pythia_export.recipe import parse_recipe
from pythia_export.runtime import Session, generate

MODULES = ROOT / "build" / "consumers" / "node_modules"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the page is not looked at"),
    pytest.mark.skipif(not (MODULES / "onnxruntime-web").is_dir(), reason="no ONNX Runtime Web: make consumers"),
]
PROMPT, NEW = "import os", 4


@pytest.fixture(scope="module", params=["int8", "float16"])
def folder(request, tmp_path_factory):
    """Four bits of a small model; SwiftShader has no shader-f16, and an embedding of float16 must run all the same."""
    out = tmp_path_factory.mktemp("made")
    config = small_config(layers=1, vocab=4096)
    save_checkpoint(hugging_face(config), config, out / "checkpoint", ROOT / "demo" / "main" / "tokenizer.json")
    recipe = {
        "model": {"path": str(out / "checkpoint")},
        "quantize": {"method": "rtn", "bits": 4, "group_size": 32, "embedding": request.param, "head": {"bits": 4}},
        "verify": {"source": "python-stdlib", "tokens": 256, "sequence_length": 32},
    }
    quantize(parse_recipe(recipe), out / "weights")
    export(out / "weights", out / "small")
    return out / "small"


@pytest.fixture
def opened(folder, tmp_path):
    """A function: the page, loaded by a query; with `changed`, a file of it, and what is put for what in that."""
    pages = []

    def open_it(query: str, changed: tuple[str, bytes, bytes] | None = None) -> Page:
        table = serve.routes([serve.ready(folder)], serve.fetch_modules(MODULES))
        if changed:
            name, old, new = changed
            script = table[name].body.read_bytes()
            assert old in script
            table[name] = dataclasses.replace(table[name], body=script.replace(old, new))
        server = serve.Server(table)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = Page(tmp_path / f"profile-{len(pages)}", webgpu=True)
        pages.append((page, server))
        page.go(f"{server.url}style.css")
        if not page.do("navigator.gpu.requestAdapter().then((adapter) => adapter !== null)"):
            pytest.skip("this Chromium has no WebGPU adapter")
        page.go(server.url + query)
        page.until("['Ready', 'Not loaded'].includes(document.getElementById('state')?.textContent)", 300)
        return page

    yield open_it
    for page, server in pages:
        page.__exit__()
        server.shutdown()
        server.server_close()


def write(page: Page) -> list[int]:
    page.do(f"document.getElementById('prompt').value = {json.dumps(PROMPT)}")
    page.do(f"document.getElementById('count').value = {NEW}; document.getElementById('generate').click()")
    page.until("['Done', 'Failed'].includes(document.getElementById('state').textContent)", 300)
    return page.do("[...document.querySelectorAll('.tokens .token')].map((token) => Number(token.dataset.id))")


def told(page: Page) -> str:
    return page.do("document.querySelector('.engine').textContent")


def expected(folder) -> list[int]:
    artifact = Artifact.open(folder)
    tokenizer = artifact.tokenizer()
    return list(generate(Session.open(artifact), tokenizer, tokenizer.encode(PROMPT).ids, NEW))


def test_webgpu_writes_the_same_tokens_and_a_gpu_that_is_lost_does_not_lose_the_page(opened, folder):
    page = opened("?compute=webgpu")
    assert told(page) == "Computed by WebGPU." and write(page) == expected(folder) == write(page)
    ort = "import('/modules/onnxruntime-web/ort.webgpu.min.mjs')"
    page.do(f"{ort}.then((ort) => ort.env.webgpu.device).then((device) => device.destroy())", of=page.workers[-1])
    write(page)
    said = page.do("document.getElementById('alert').textContent")
    assert said.startswith("WebGPU failed: the GPU was lost: ") and said.endswith(
        "It goes on by WebAssembly: ask again."
    )
    assert told(page).startswith("Computed by WebAssembly (WebGPU failed: ") and write(page) == expected(folder)


def test_a_software_adapter_is_not_taken_for_a_gpu_and_a_gpu_is_measured(opened, folder):
    page = opened("")
    assert told(page) == "Computed by WebAssembly (WebGPU would be computed by the CPU here)."
    assert not any("webgpu" in url for url in page.asked)
    software = b'"WebGPU would be computed by the CPU here"'
    page = opened("", ("/model.js", software, b'""'))  # as where there is a real one
    assert told(page).startswith("Computed by WebAssembly (measured here: WebGPU ") and write(page) == expected(folder)
