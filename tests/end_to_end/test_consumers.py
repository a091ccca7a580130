"""One artifact, every consumer: the same greedy continuation from each, prompts alone and left-padded together.

`make test-consumers` installs them under build/consumers and runs this; what is not there is skipped, visibly.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from urllib.parse import quote

import numpy as np
import onnx
import onnxruntime
import pytest
from models import hugging_face, save_checkpoint, small_config
from packers import quantise
from places import ROOT, TESTS
from processes import script
from tokenizers import AddedToken, Tokenizer

import pythia_export
from pythia_export import kernels_path
from pythia_export.artifact import Artifact
from pythia_export.bench.line_up import chosen, interpreters_for
from pythia_export.bench.run import bench
from pythia_export.commands.export import export as export_graph
from pythia_export.commands.import_checkpoint import Wanted, import_checkpoint
from pythia_export.commands.quantize import quantize as quantize_recipe
from pythia_export.commands.run import run
from pythia_export.commands.verify import verify
from pythia_export.recipe import Model, parse_recipe
from pythia_export.runtime import Session, generate, generate_batch
from pythia_export.tokenizer import open_folder, tokenizer_files

HERE = TESTS / "consumers"
TOOLS = ROOT / "build" / "consumers"
GENAI = TOOLS / "venv" / "bin" / "python"
TRANSFORMERS = TOOLS / "transformers5" / "bin" / "python"
OPENVINO = TOOLS / "openvino" / "bin" / "python"
needs_transformers = pytest.mark.skipif(not TRANSFORMERS.is_file(), reason="no transformers 5: make test-consumers")
MODULES = TOOLS / "node_modules"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_js = pytest.mark.skipif(not (MODULES / "@huggingface").is_dir(), reason="no transformers.js: make test-consumers")
HEADERS = next((at for at in (TOOLS / "include", Path("/usr/include/onnxruntime")) if at.is_dir()), None)
LIBRARY = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
EXAMPLE = ROOT / "examples" / "cpp"

PROMPTS = ["import os\nimport sys\n\ndef main(", "class Parser:\n    def __init__(self", "def test_parse(self):"]
NEW = 64
RECIPE = {
    "model": {"id": "demo"},
    "quantize": {"method": "rtn", "bits": 4, "group_size": 32, "embedding": "int8"},
    "verify": {"source": "python-stdlib", "tokens": 256, "sequence_length": 64},
}


@pytest.fixture(scope="module", params=["flat", "transformers.js"])
def folder(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "artifact"
    run(parse_recipe(RECIPE | {"export": {"layout": request.param}}), out)
    return out


@pytest.fixture(scope="module")
def expected(folder) -> list[list[int]]:
    return by_onnxruntime(folder)


def by_onnxruntime(folder: Path) -> list[list[int]]:
    """By a bare ONNX Runtime, one token after another, the cache passed by hand."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    config = json.loads((folder / "config.json").read_text())
    heads, size = config["num_attention_heads"], config["hidden_size"] // config["num_attention_heads"]
    past_names = [i.name for i in session.get_inputs() if i.name.startswith("past_key_values")]
    kept = np.int8 if session.get_inputs()[-1].type == "tensor(int8)" else np.float32
    found = []
    for prompt in PROMPTS:
        past = {name: np.zeros((1, heads, 0, size), kept) for name in past_names}
        new, seen, row = tokenizer.encode(prompt).ids, 0, []
        while len(row) < NEW:
            feeds = {
                "input_ids": np.array([new]), "attention_mask": np.ones((1, seen + len(new)), np.int64),
                "position_ids": np.arange(seen, seen + len(new))[None],
            }  # fmt: skip
            outputs = ["logits", *(name.replace("past_key_values", "present") for name in past_names)]
            logits, *present = session.run(outputs, feeds | past)
            past, seen = dict(zip(past_names, present, strict=True)), seen + len(new)
            new = [int(logits[0, -1].argmax())]
            assert new[0] != config["eos_token_id"], "a prompt that ends early compares less"
            row += new
        found.append(row)
    assert len({tuple(row) for row in found}) == len(PROMPTS)
    return found


def by(command: list, folder: Path) -> dict[str, list[list[int]]]:
    asked = [str(folder), json.dumps(PROMPTS), str(NEW)]
    done = subprocess.run([*map(str, command), *asked], capture_output=True, text=True, timeout=300)
    assert done.returncode or "warn" not in done.stderr.lower(), f"of what is in the artifact: {done.stderr}"
    return answer(done)


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, list[list[int]]]:
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("native", [True, False])
def test_our_runtime(folder, expected, native):
    artifact = Artifact.open(folder)
    artifact.check()
    session, tokenizer = Session.open(artifact, native=native), artifact.tokenizer()
    if native and session.speed != "native":
        pytest.skip(f"no native kernels: {session.why}")
    ids = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    assert [list(generate(session, tokenizer, row, NEW)) for row in ids] == expected
    assert generate_batch(session, tokenizer, ids, NEW) == expected


def test_optimum(folder, expected):
    pytest.importorskip("optimum.onnxruntime")
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    got = answer(script(HERE / "optimum_run.py", folder, json.dumps(PROMPTS), NEW, env=offline))
    assert got["alone"] == expected and got["together"] == expected
    assert len(got["beam"][0]) == NEW and got["beam"][0] != expected[0]


@pytest.mark.skipif(not GENAI.is_file(), reason="no onnxruntime-genai: make test-consumers")
def test_onnxruntime_genai(folder, expected):
    got = by([GENAI, HERE / "genai_run.py"], folder)
    assert got["alone"] == expected and got["together"] == expected


@needs_transformers
def test_the_runner_of_transformers_5(folder, expected):
    got = by([TRANSFORMERS, HERE / "transformers_run.py"], folder)
    assert got["alone"] == expected and got["together"] == expected


@needs_transformers
@pytest.mark.parametrize("model", ["onnxruntime", "onnxruntime-genai"])
def test_the_models_of_lm_eval_score_a_text_as_we_do(folder, model):
    texts = [*PROMPTS, Path(json.__file__).read_text(encoding="utf-8")[:600]]
    got = answer(
        subprocess.run(
            [str(TRANSFORMERS), str(HERE / "lm_eval_run.py"), str(folder), model, json.dumps(texts)],
            capture_output=True, text=True, timeout=300, env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
    )  # fmt: skip
    artifact = pythia_export.Artifact.open(folder)
    start = artifact.tokenizer().id_to_token(0)  # the token before every text, in their scores
    assert np.allclose(got, [artifact.score(start + text).sum() for text in texts], rtol=1e-4)


@pytest.mark.skipif(not OPENVINO.is_file(), reason="no OpenVINO: make test-consumers")
@pytest.mark.parametrize("rotary", ["gqa", "onnx"])
def test_openvino(folder, expected, rotary, tmp_path):
    """Of functions it knows nothing; the forms without them it runs, and calls outputs by their names."""
    export_graph(folder, tmp_path / "other", rotary=rotary)
    got = by([OPENVINO, HERE / "openvino_run.py"], tmp_path / "other")
    assert got["alone"] == expected
    if rotary == "gqa":
        assert isinstance(got["together"], str), "one row alone"
    else:
        assert got["together"] == expected and got["kept"] == expected


@pytest.fixture(scope="module")
def int8_cache(tmp_path_factory) -> Path:
    """An artifact whose cache is int8 as ONNX Runtime's own attention has it."""
    out = tmp_path_factory.mktemp("int8") / "artifact"
    calibration = {"source": "python-stdlib", "samples": 16, "sequence_length": 512}
    run(parse_recipe(RECIPE | {"calibration": calibration, "export": {"rotary": "gqa", "kv_cache": "int8"}}), out)
    return out


@pytest.mark.parametrize(
    ("python", "program"),
    [
        (GENAI, "genai_run.py"), (TRANSFORMERS, "transformers_run.py"), (OPENVINO, "openvino_run.py"),
        (Path(sys.executable), "optimum_run.py"),
    ],
)  # fmt: skip
def test_an_int8_cache_with_fixed_scales_runs_by_name(int8_cache, python, program):
    if not python.is_file():
        pytest.skip(f"no {python.parent.parent.name}: make test-consumers")
    if program == "optimum_run.py":
        pytest.importorskip("optimum.onnxruntime")
    expected = by_onnxruntime(int8_cache)
    got = by([python, HERE / program], int8_cache)
    assert got["alone"] == expected
    assert isinstance(got["together"], str) if program == "openvino_run.py" else got["together"] == expected


def test_an_int8_cache_with_fixed_scales_in_our_runtime_and_in_cpp(int8_cache, program):
    expected, artifact = by_onnxruntime(int8_cache), Artifact.open(int8_cache)
    session, tokenizer = Session.open(artifact), artifact.tokenizer()
    ids = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    assert session.speed == "stock" and session.kv_dtype == np.int8
    assert [list(generate(session, tokenizer, row, NEW)) for row in ids] == expected
    assert generate_batch(session, tokenizer, ids, NEW) == expected
    assert continued(program, int8_cache, ids, native=False) == expected


@pytest.mark.skipif(not GENAI.is_file(), reason="no onnxruntime-genai: make test-consumers")
def test_what_gptq_made_runs_with_an_int8_cache_in_genai(tmp_path):
    folder = shutil.copytree(ROOT / "demo" / "main", tmp_path / "demo-gptq")
    quantise(folder, "gptq", nearest=True)
    text = {"source": "python-stdlib", "sequence_length": 64}
    changes = {"export": {"rotary": "gqa", "kv_cache": "int8"}, "calibration": text | {"samples": 16}}
    changes["verify"] = text | {"tokens": 256}
    flat = {f"{section}.{key}": str(value) for section, keys in changes.items() for key, value in keys.items()}
    import_checkpoint(Wanted(Model(path=folder)), tmp_path / "artifact", flat)
    expected = by_onnxruntime(tmp_path / "artifact")
    assert by([GENAI, HERE / "genai_run.py"], tmp_path / "artifact") == {"alone": expected, "together": expected}


@needs_transformers
@pytest.mark.parametrize(("model", "runs"), [("onnxruntime-genai", True), ("onnxruntime", False)])
def test_lm_eval_scores_an_int8_cache_through_genai_alone(int8_cache, model, runs):
    line = [str(TRANSFORMERS), str(HERE / "lm_eval_run.py"), str(int8_cache), model, json.dumps(PROMPTS)]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=offline)
    if not runs:
        assert done.returncode and "unsupported type tensor(int8)" in done.stderr
        return
    artifact = pythia_export.Artifact.open(int8_cache)
    start = artifact.tokenizer().id_to_token(0)
    assert np.allclose(answer(done), [artifact.score(start + text).sum() for text in PROMPTS], rtol=1e-4)


@pytest.mark.long
@needs_transformers
def test_what_transformers_5_exports_to_int4_is_measured_beside_the_artifact(folder):
    """Its exporter takes half a minute a format; what it makes is near the original, or it would not be timed."""
    if (folder / "onnx").is_dir():
        pytest.skip("once is enough")
    peers = ["transformers.exporters", "openvino"]
    lacking = [x for x in interpreters_for(chosen(peers), [TRANSFORMERS]).values() if isinstance(x, str)]
    if lacking:
        pytest.skip(f"{lacking[0]}: make test-consumers")
    short = {"prompt_tokens": 8, "new_tokens": 2, "contexts": [16], "text_tokens": 1024, "repeats": 1, "threads": 1}
    found = bench(folder, peers=peers, peer_pythons=[TRANSFORMERS], **short)
    assert found.absent == []
    rows = {row.name: row for row in found.rows}
    ours = next(row for name, row in rows.items() if name.startswith("pythia-export"))
    for name in ("transformers.exporters int4", "OpenVINO int4"):
        assert rows[name].medians.perplexity == pytest.approx(ours.medians.perplexity, rel=0.1)
        assert rows[name].versions["transformers"] == "5.24.0" and rows[name].versions["nncf"]


TEXTS = [
    *(Path(module.__file__).read_text(encoding="utf-8")[:4000] for module in (json, shutil, subprocess, threading)),
    "a\r\nb  c <|endoftext|> x        y\n\n\n  z", "日本語 テキスト\u00a0x 🏳️‍🌈 ok", "  leading", "trailing  ",
    "<|padding|>",     "\tif x:\n\t\treturn\n", "<|user|>hi <|im_end|><added>",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers(folder, tmp_path_factory) -> dict[str, Path]:
    """The artifact, and one whose tokenizer has what fine-tunes add; as transformers 5 writes them."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("tokenizers") / "chat"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("<|user|>", special=True), AddedToken("<|im_end|>", special=True), "<added>"])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(source / "tokenizer.json"))
    settings = {
        "backend": "tokenizers", "bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "is_local": True,
        "extra_special_tokens": ["<|user|>"], "tokenizer_class": "GPTNeoXTokenizer", "model_max_length": 512,
    }  # fmt: skip
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (source / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    shutil.copytree(folder, out)
    (out / "special_tokens_map.json").unlink()  # the demo's
    for name, data in tokenizer_files(open_folder(source), 512).items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(data)
    return {"plain": folder, "chat": out}


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.json"
    path.write_text(json.dumps(TEXTS))
    return path


def ids_of(folder: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [tokenizer.encode(text).ids for text in TEXTS]


@needs_transformers
def test_transformers_5_gives_the_ids_of_tokenizer_json(tokenizers, texts):
    line = [TRANSFORMERS, HERE / "tokenizer_run.py", texts, *tokenizers.values()]
    plain, chat = answer(subprocess.run(list(map(str, line)), capture_output=True, text=True, timeout=300))
    for got, folder in ((plain, tokenizers["plain"]), (chat, tokenizers["chat"])):
        assert got["ids"] == ids_of(folder) and got["names"] == ["attention_mask", "input_ids"]
    assert plain["length"] == 4096, "no padding token beyond the embedding"
    assert (
        chat["length"] == 4099
        and chat["special"]["eos_token"] == "<|im_end|>"
        and chat["special"].get("pad_token") is None
    )
    assert set(chat["chat"]) == {"default", "tool_use"}


@pytest.mark.skipif(not GENAI.is_file(), reason="no onnxruntime-genai: make test-consumers")
def test_onnxruntime_genai_gives_the_ids_of_tokenizer_json(tokenizers, texts):
    line = [GENAI, HERE / "genai_tokenizer_run.py", texts, *tokenizers.values()]
    found = answer(subprocess.run(list(map(str, line)), capture_output=True, text=True, timeout=300))
    assert found == [ids_of(folder) for folder in tokenizers.values()]


@needs_js
@pytest.mark.skipif(shutil.which("node") is None, reason="no Node")
def test_transformers_js_gives_the_ids_of_tokenizer_json(tokenizers, texts):
    script = TOOLS / "tokenizer_js.mjs"  # beside the modules that it imports
    shutil.copyfile(HERE / "tokenizer_js.mjs", script)
    line = ["node", script, texts, *tokenizers.values()]
    found = answer(subprocess.run(list(map(str, line)), capture_output=True, text=True, timeout=300))
    for got, folder in zip(found, tokenizers.values(), strict=True):
        assert got["ids"] == ids_of(folder) and got["names"] == ["attention_mask", "input_ids"]
    assert found[1]["chat"], "a template that is in a file of its own alone is not found"


@pytest.fixture(scope="session")
def program(tmp_path_factory) -> Path:
    """The example in C++, built as a user does, against what lies where a release of ONNX Runtime has it."""
    if HEADERS is None:
        pytest.skip("no headers of ONNX Runtime: make test-consumers")
    if LIBRARY is None:
        pytest.skip("no libonnxruntime.so in this wheel")
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not (cmake and shutil.which(os.environ.get("CXX", "c++"))):
        pytest.skip("no CMake or no C++ compiler")
    release, build = tmp_path_factory.mktemp("onnxruntime"), tmp_path_factory.mktemp("built")
    (release / "lib").mkdir()
    (release / "include").symlink_to(HEADERS)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (release / "lib" / name).symlink_to(LIBRARY)
    flags = ["-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"]
    for command in (["-S", EXAMPLE, "-B", build, f"-DCMAKE_PREFIX_PATH={release}", *flags], ["--build", build]):
        done = subprocess.run([cmake, *map(str, command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "greedy"


def continued(program: Path, folder: Path, prompts: list[list[int]], native: bool) -> list[list[int]]:
    """What the program in C++ makes of token ids."""
    if native and kernels_path() is None:
        pytest.skip("the kernels are not built: make kernels")
    lines = "".join(" ".join(map(str, row)) + "\n" for row in prompts)
    command = [program, folder, NEW, *([kernels_path()] if native else [])]
    done = subprocess.run(list(map(str, command)), input=lines, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("native", [True, False])
def test_a_program_in_cpp(folder, expected, program, native):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    assert len({len(row) for row in ids}) > 1, "nothing would be padded"
    assert [continued(program, folder, [row], native)[0] for row in ids] == expected
    assert continued(program, folder, ids, native) == expected
    ends = tokenizer.encode("if __name__ == '__main__':\n    unittest.main()").ids
    short, long = continued(program, folder, [ends, ids[0]], native)
    assert short.index(0) == len(short) - 1 < NEW - 1 and long == expected[0], "a row stops where its text ends"


@pytest.mark.parametrize("ends", ["[4095, {id}]", "{id}", "[\n  {id}\n]", "null", "[]"])
def test_a_program_in_cpp_ends_at_every_end_token(ends, folder, program, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(PROMPTS[0]).ids
    (whole,) = continued(program, folder, [ids], native=False)
    last = whole[NEW // 2]
    config = (folder / "config.json").read_text()
    (other / "config.json").write_text(config.replace('"eos_token_id": 0', f'"eos_token_id": {ends.format(id=last)}'))
    (found,) = continued(program, other, [ids], native=False)
    assert found == (whole[: whole.index(last) + 1] if "id" in ends else whole)


def test_a_program_in_cpp_reads_the_logits_of_the_last_token_alone(folder, expected, program, tmp_path):
    """A graph that gives those of one token, whatever it is asked for, has the same continuation."""
    other = shutil.copytree(folder, tmp_path / "other")
    graph = onnx.load(other / "model.onnx", load_external_data=False)
    (keep,) = (x for x in graph.graph.initializer if x.name == "num_logits_to_keep")
    keep.CopyFrom(onnx.numpy_helper.from_array(np.array(1, np.int64), keep.name))
    (other / "model.onnx").write_bytes(graph.SerializeToString())
    ids = [Tokenizer.from_file(str(folder / "tokenizer.json")).encode(prompt).ids for prompt in PROMPTS]
    assert continued(program, other, ids, native=False) == expected


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("cache", ["float16", "int8"])
def test_a_program_in_cpp_takes_the_types_of_the_cache_from_the_graph(cache, native, program, tmp_path):
    run(parse_recipe(RECIPE | {"export": {"kv_cache": cache}}), tmp_path / "artifact")
    artifact = Artifact.open(tmp_path / "artifact")
    session, tokenizer = Session.open(artifact, native=native), artifact.tokenizer()
    ids = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    rows = [list(generate(session, tokenizer, row, NEW)) for row in ids]
    assert continued(program, artifact.folder, ids, native) == rows


@pytest.mark.parametrize(
    ("prompt", "said"), [("5 4096", "vocabulary is 0 to 4095"), ("5 x", "not a line of token ids"), ("", "no prompt")]
)
def test_a_program_in_cpp_says_what_is_wrong_with_its_prompts(folder, program, prompt, said):
    done = subprocess.run([program, folder, "3"], input=prompt, capture_output=True, text=True)
    assert done.returncode == 1 and said in done.stderr and not done.stdout


@pytest.mark.parametrize("native", [True, False])
def test_a_program_in_cpp_fails_where_the_context_ends_and_runs_the_kernels_that_it_was_given(folder, program, native):
    kernels = [kernels_path()] if native else []
    if None in kernels:
        pytest.skip("the kernels are not built: make kernels")
    done = subprocess.run([program, folder, "2", *kernels], input="5 " * 512, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert ("pythia::RotaryAttention" in done.stderr) is native, "the operator that complains"


@needs_js
@pytest.mark.skipif(shutil.which("node") is None, reason="no Node")
def test_transformers_js_in_node(folder, expected):
    if not (folder / "onnx").is_dir():
        pytest.skip("flat: transformers.js looks into onnx/")
    script = TOOLS / "transformers_js.mjs"  # beside the modules that it imports
    shutil.copyfile(HERE / "transformers_js.mjs", script)
    got = by(["node", script], folder)
    assert got["alone"] == expected and got["together"] == expected


def in_a_browser(folder: Path, at: Path, device: str, prompts: list[str], count: int, seconds: float = 60) -> dict:
    """What transformers.js makes of prompts in a headless Chromium, on "wasm" or "webgpu"."""
    roots = {"models": folder.parent, "modules": MODULES, "page.html": HERE}
    told: Queue[dict] = Queue()

    class Files(SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            first, _, rest = path.partition("?")[0].lstrip("/").partition("/")
            return str(roots[first] / (rest or first)) if first in roots else str(at / "none")

        def do_POST(self) -> None:
            told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args) -> None:
            pass

    asked = quote(json.dumps({"name": folder.name, "prompts": prompts, "count": count, "device": device}))
    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [
            CHROMIUM, "--headless=new", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync", f"--user-data-dir={at / 'profile'}",
            "--enable-unsafe-webgpu" if device == "webgpu" else "--disable-gpu",  # SwiftShader, where there is no GPU
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            f"http://127.0.0.1:{server.server_port}/page.html#{asked}",
        ]  # fmt: skip
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return told.get(timeout=seconds)
        finally:
            browser.kill()
            browser.wait()
            server.shutdown()


@needs_js
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_transformers_js_in_a_browser(folder, expected, tmp_path):
    if not (folder / "onnx").is_dir():
        pytest.skip("flat: transformers.js looks into onnx/")
    got = in_a_browser(folder, tmp_path, "wasm", PROMPTS, NEW)
    assert "error" not in got, got["error"]
    assert got["alone"] == expected and got["together"] == expected


@needs_js
@pytest.mark.browser
@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("embedding", ["float16", "int8"])
def test_transformers_js_on_webgpu_gives_the_tokens_of_webassembly(embedding, tmp_path):
    """A small model: where there is no GPU, SwiftShader computes, which has no shader-f16 either."""
    config = small_config(layers=1, vocab=4096)
    save_checkpoint(hugging_face(config), config, tmp_path / "checkpoint", ROOT / "demo" / "main" / "tokenizer.json")
    quantize = {"method": "rtn", "bits": 4, "group_size": 32, "embedding": embedding, "head": {"bits": 4}}
    changed = {"model": {"path": str(tmp_path / "checkpoint")}, "quantize": quantize}
    changed["verify"] = RECIPE["verify"] | {"sequence_length": 32}
    folder = tmp_path / "models" / "small"
    run(parse_recipe(RECIPE | changed | {"export": {"layout": "transformers.js"}}), folder)
    by_cpu, by_gpu = (
        in_a_browser(folder, tmp_path / device, device, PROMPTS[:2], 4, 240) for device in ("wasm", "webgpu")
    )
    assert "error" not in by_cpu, by_cpu["error"]
    if by_gpu.get("error", "").startswith("Error: no WebGPU adapter"):
        pytest.skip("this Chromium has no WebGPU adapter")
    assert "error" not in by_gpu, by_gpu["error"]
    print(by_gpu["adapter"])
    assert [by_gpu[batch] for batch in ("alone", "together")] == [by_cpu[batch] for batch in ("alone", "together")]


def test_no_weight_is_stored_twice_and_nothing_is_a_link(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert all(not path.is_symlink() and path.stat().st_nlink == 1 for path in files)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {p.relative_to(folder).as_posix() for p in files} - {"manifest.json"}
    assert len([path for path in files if path.name.endswith("_data")]) == 1
    graphs = [path for path in files if path.suffix == ".onnx"]
    assert len(graphs) == (2 if (folder / "onnx").is_dir() else 1) and (folder / "model.onnx") in graphs


def test_an_artifact_goes_from_one_layout_to_the_other_and_back(folder, tmp_path, expected):
    other, here = ("flat", "transformers.js") if (folder / "onnx").is_dir() else ("transformers.js", "flat")
    export_graph(folder, tmp_path / "other", layout=other)
    export_graph(tmp_path / "other", tmp_path / "back", layout=here)

    def files(of: Path) -> dict[str, bytes]:
        made = {path.relative_to(of).as_posix(): path.read_bytes() for path in of.rglob("*") if path.is_file()}
        return {n: d for n, d in made.items() if n not in ("manifest.json", "parity.json", "report.html", "README.md")}

    assert files(tmp_path / "back") == files(folder) and files(tmp_path / "other").keys() != files(folder).keys()
    moved = Artifact.open(tmp_path / "other")
    moved.check()
    tokenizer = moved.tokenizer()
    assert list(generate(Session.open(moved), tokenizer, tokenizer.encode(PROMPTS[0]).ids, NEW)) == expected[0]
    assert verify(tmp_path / "other", tokens=256).export.runs, "proved where it lies now"


def test_weights_alone_take_a_graph_in_either_layout(tmp_path):
    quantize_recipe(parse_recipe(RECIPE | {"export": {"layout": "transformers.js"}}), tmp_path / "weights")
    assert (tmp_path / "weights" / "onnx" / "model_q4.onnx_data").is_file()
    export_graph(tmp_path / "weights", tmp_path / "flat", layout="flat")
    assert Session.open(Artifact.open(tmp_path / "flat")).logits(np.array([[5, 6]])).shape == (1, 2, 4096)


@pytest.mark.parametrize(
    ("quantize", "name"),
    [
        ({"method": "rtn", "bits": 8, "head": {"bits": 8}}, "model_quantized.onnx"),
        ({"method": "rtn", "bits": 2, "group_size": 32}, "model_q2.onnx"),
        ({"method": "none", "embedding": "float32"}, "model.onnx"),
    ],
)
def test_eight_bits_two_and_float_run_by_the_names_that_transformers_js_gives_them(quantize, name, tmp_path):
    out, export = tmp_path / "artifact", {"layout": "transformers.js", "accuracy_level": 4 if name[5:8] == "_qu" else 0}
    run(parse_recipe(RECIPE | {"quantize": quantize, "export": export}), out)
    assert {path.name for path in (out / "onnx").iterdir()} == {name, f"{name}_data"}
    if not (MODULES / "@huggingface").is_dir() or shutil.which("node") is None:
        pytest.skip("no transformers.js: make test-consumers")
    script = TOOLS / "transformers_js.mjs"
    shutil.copyfile(HERE / "transformers_js.mjs", script)
    artifact = Artifact.open(out)
    session, tokenizer = Session.open(artifact, native=False), artifact.tokenizer()
    ids = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    assert by(["node", script], out)["alone"] == [list(generate(session, tokenizer, row, NEW)) for row in ids]
