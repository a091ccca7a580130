"""A million damaged inputs through everything that reads what others wrote: recipes, manifests, records, headers.

    python tests/support/fuzz.py --inputs 1000000 --seed 0        `make test-fuzz`; figures: docs/concepts/robustness.md

Each input is one of the records that production wrote (written/), or a small file of the kind, with one to three
damages: a value of another kind or size, a key that is gone or new, nesting, infinities, halves of characters, long
names, bytes that are flipped or cut off. It goes through the functions that the commands call, and what is accepted is
rendered as they do. Right is a value or an error of base/errors.py, within a time limit of its own; anything
else is an escape, printed with its input. Operators run in processes of their own: a crash of one is an escape too.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from places import TESTS
from rich.console import Console
from tokenizers import Tokenizer, models

from pythia_export.artifact.manifest import checked_manifest
from pythia_export.artifact.read import Artifact
from pythia_export.base.errors import PythiaExportError
from pythia_export.base.strict_json import parse_json
from pythia_export.calibrate.journal import Journal
from pythia_export.checkpoint.header import read_header
from pythia_export.checkpoint.shards import read_index
from pythia_export.cli.tables import artifact_view, losses_table
from pythia_export.model.generation import read_generation
from pythia_export.model.neox import NeoXConfig
from pythia_export.proof.against import comparable, compare, require_same
from pythia_export.recipe import load_recipe
from pythia_export.records.manifest import Origin
from pythia_export.records.parity import Parity
from pythia_export.records.quantization import Quantization
from pythia_export.records.record import checked
from pythia_export.report.card import model_card
from pythia_export.report.html import render_report
from pythia_export.report.junit import junit
from pythia_export.report.summary import summary
from pythia_export.report.text import verdict
from pythia_export.sweep.schema import load as load_sweep
from pythia_export.tokenizer import open_folder, tokenizer_files

WRITTEN = Path(__file__).with_name("written")
RECORDS = ("manifest.json", "quantization.json", "parity.json", "config.json")
SECONDS = 5.0  # of CPU time, for one input: the slowest sound one takes a tenth
PRINTED, RENDERED = 20, 100  # of so many inputs that are accepted one is printed as on a terminal, and one as pages
MEMORY = Path("/dev/shm")  # a file system in memory, where there is one
A_BATCH = 2000  # operator calls in one process

RECIPE = """
[model]
path = "model"
[calibration]
source = "file"
path = "text.jsonl"
samples = 8
sequence_length = 128
seed = 0
[quantize]
method = "gptq"
bits = 4
group_size = 32
damp = 0.01
head = { method = "none", bits = 8 }
[[quantize.override]]
pattern = "*.dense"
bits = 8
[export]
target = "cpu"
[verify]
source = "training-order"
path = "text"
batches = "0:4"
tokens = 1024
gates = { ppl_ratio = 1.05, same_top = { limit = 0.9, confidence = 0.99 } }
"""
SWEEP = """
[sweep]
models = ["pythia-14m", { name = "mine", path = "runs/{revision}" }]
revisions = ["step1000", "main"]
[quantize]
bits = [2, 3, 4]
group_size = [32, 128]
[calibration]
source = "python-stdlib"
[verify]
source = "python-stdlib"
tokens = 4096
"""
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, 63, 64, 10_000, 2**31, 2**63, -(2**63), 10**30, 10**63, 0.0, -0.0, 0.5, 1.5,
    1e-320, 1e-300, 1e100, 1e300, 1.7e308, -1.7e308, "", "a", "1", "\x00", "\x1b[2J", "é😀", "../..", "/etc/passwd",
    "a/../b", ".", "a" * 255, "a" * 256, "a" * 5000, "a/" * 3000, "<script>alert(1)</script>", "]]>", "|`*_{",
    "\n\n# x", [], {}, [[]], [None], [1, 2], [1, 2, 3], {"a": 1}, {"": {}}, ["a"] * 40, "gpt_neox.layers.3",
    "gpt_neox.layers.99999.x", "embed_out",
]  # fmt: skip
WORDS = [
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 70, "9" * 5000, "1" * 100_000, '"\\ud800"', '"\\udc00x"',
    "[" * 70 + "]" * 70, "[" * 3000 + "]" * 3000, "[" * 200_000, '{"a":' * 3000 + "1" + "}" * 3000, '{"a":1,"a":2}', "",
    "'a'", "01", "1.", "0x10", "nan", "inf", "1979-05-27", "0x" + "f" * 6000, "[1, 2", '"""', "\\", "\x00", "\ufeff",
]  # fmt: skip


class TooSlow(BaseException):
    pass


def _too_slow(number: int, frame: object) -> None:
    raise TooSlow


class Tree:
    """A record, and damaged copies of it that share what is not damaged."""

    def __init__(self, value: Any) -> None:
        self.value, self.places = value, list(_places(value))

    def damaged(self, rng: random.Random) -> Any:
        value = self.value
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            value = _changed(value, rng.choice(self.places), rng)
        return value


def _places(value: Any, at: tuple[Any, ...] = ()) -> Any:
    if at:
        yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*at, key))


def _changed(value: Any, at: tuple[Any, ...], rng: random.Random) -> Any:
    """A copy with one place changed; places that an earlier damage took away leave it as it is."""
    if not isinstance(value, dict | list) or (isinstance(value, list) and not isinstance(at[0], int)):
        return value
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    key = at[0]
    if isinstance(copy, list) and key >= len(copy):
        return value
    if len(at) > 1:
        if isinstance(copy, dict) and key not in copy:
            return value
        copy[key] = _changed(copy[key], at[1:], rng)
        return copy
    how, before = rng.randrange(10), copy.get(key) if isinstance(copy, dict) else copy[key]
    if how < 5:
        copy[key] = rng.choice(VALUES)
    elif how == 5:
        copy.pop(key) if not isinstance(copy, dict) or key in copy else None
    elif how == 6 and isinstance(copy, dict):
        copy[str(rng.choice(VALUES))[:4000]] = rng.choice((before, rng.choice(VALUES)))
    elif how == 6:
        copy += [before] * rng.choice((1, 2, 30))
    elif how == 7 and type(before) in (int, float):
        copy[key] = rng.choice((-before, before + 1, before * 2, before / 3, before * 1e6, str(before), [before]))
    else:
        copy[key] = rng.choice(([before], {"a": before}, str(before), rng.choice(VALUES)))
    return copy


def _text(value: Any, rng: random.Random) -> bytes:
    """A record as bytes, one in five damaged as text."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.8:
        return text.encode("utf-8", "surrogatepass")
    return _bytes(text, rng)


def _bytes(text: str, rng: random.Random) -> bytes:
    how, at = rng.randrange(5), rng.randrange(len(text) + 1)
    if how < 3:  # a word in the place of a value
        starts = [i for i in range(at, min(len(text), at + 400)) if text[i] in ":=,["]
        at = starts[0] + 1 if starts else at
        end = next((i for i in range(at, len(text)) if text[i] in ",}]\n"), len(text))
        return (text[:at] + rng.choice(WORDS) + text[end:]).encode("utf-8", "surrogatepass")
    data = bytearray(text.encode("utf-8", "surrogatepass"))
    if how == 3:
        return bytes(data[: rng.randrange(len(data) + 1)])
    for _ in range(rng.choice((1, 1, 4))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


class Subjects:
    """What is damaged, and what is done with it. `scratch` takes the files of those that are read by path."""

    def __init__(self, rng: random.Random, scratch: Path) -> None:
        self.rng, self.scratch, self.accepted = rng, scratch, 0
        self.sound = {name.partition(".")[0]: json.loads((WRITTEN / name).read_text()) for name in RECORDS}
        # Shorter lists: their other entries are read alike.
        linears = self.sound["quantization"]["linears"]
        self.sound["quantization"]["linears"] = [linears[0], linears[3], linears[-1]]
        linears[0]["heads"], manifest, parity = linears[0]["heads"][:2], self.sound["manifest"], self.sound["parity"]
        manifest["files"] = {name: manifest["files"][name] for name in (*RECORDS[1:], "model.onnx_data")}
        manifest["versions"] = parity["versions"] = {"python": "3.11.7", "torch": "2.13.0"}
        for name, values in parity["cost"]["sums"].items():
            parity["cost"]["sums"][name] = values[:2]
        for run in parity["export"]["runs"]:
            run["splits"] = run["splits"][:2]
        self.trees = {name: Tree(value) for name, value in self.sound.items()}
        checkpoint = {"a": ("F16", [4, 8]), "b": ("F32", [3]), "c": ("BF16", [2, 2, 2]), "d": ("I64", [])}
        header, at = {}, 0
        for name, (dtype, shape) in checkpoint.items():
            size = {"F16": 2, "F32": 4, "BF16": 2, "I64": 8}[dtype]
            for n in shape:
                size *= n
            header[name], at = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}, at + size
        self.body = bytes(at)
        self.trees["header"] = Tree(header | {"__metadata__": {"format": "pt"}})
        self.trees["index"] = Tree({"metadata": {"total_size": 1}, "weight_map": {"a": "x.safetensors", "b": "y"}})
        fingerprint = {
            "model": {"name": "demo", "commit": "c"},
            "quantize": self.sound["manifest"]["recipe"]["quantize"],
        }
        self.fingerprint = fingerprint
        layers = self.sound["quantization"]["layers"][:1]
        self.trees["journal"] = Tree(
            {"fingerprint": fingerprint, "layers": layers, "linears": linears[:4], "sensitivity": True}
        )
        self.quantized = Quantization.model_validate(self.sound["quantization"])
        self.proof = Parity.model_validate(self.sound["parity"])
        self.config_read = NeoXConfig.from_dict(self.sound["config"])
        self.trees["generation"] = Tree(
            {"bos_token_id": 0, "eos_token_id": [0, 1], "pad_token_id": 1, "do_sample": True, "temperature": 0.7}
            | {"top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1, "stop_strings": ["END"], "min_length": 1}
        )
        token = {"content": "<|end|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        self.trees["tokenizer"] = Tree(
            {"tokenizer_class": "GPTNeoXTokenizer", "eos_token": "<|end|>", "bos_token": token, "add_bos_token": True}
            | {"added_tokens_decoder": {"4": token | {"special": True}}, "extra_special_tokens": ["<|a|>"]}
            | {"additional_special_tokens": ["<|b|>", token], "chat_template": "{{ x }}", "model_max_length": 10**30}
        )
        self.tokens = scratch / "tokens"
        self.tokens.mkdir()
        vocabulary = {"a": 0, "b": 1, "ab": 2, "<|end|>": 3}
        Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")])).save(str(self.tokens / "tokenizer.json"))
        self.folders = {name: scratch / name.partition(".")[0] for name in RECORDS}
        for folder in self.folders.values():
            folder.mkdir()
            for name in RECORDS:
                (folder / name).write_bytes((WRITTEN / name).read_bytes())

    def manifest(self) -> bytes:
        return _text(self.trees["manifest"].damaged(self.rng), self.rng)

    def read_manifest(self, data: bytes) -> None:
        where = Path("manifest.json")
        raw = parse_json(data, str(where))
        opened = Artifact(self.folders["manifest.json"], checked_manifest(raw, where))
        _ = opened.recipe
        self.print(artifact_view(opened, None, ("none", "no graph"), ()))
        if self.page():
            self.render(raw, self.quantized, self.proof)

    def quantization(self) -> bytes:
        return _text(self.trees["quantization"].damaged(self.rng), self.rng)

    def read_quantization(self, data: bytes) -> None:
        opened = self.with_file("quantization.json", data)
        found = opened.quantization
        self.print(losses_table(found))
        if self.page():
            self.render(self.sound["manifest"], found, self.proof)

    def parity(self) -> bytes:
        return _text(self.trees["parity"].damaged(self.rng), self.rng)

    def read_parity(self, data: bytes) -> None:
        opened = self.with_file("parity.json", data)
        found = opened.parity
        if found is None:
            return
        self.print(verdict(found, self.quantized))
        junit(found)
        summary(found)
        if self.page():
            self.render(self.sound["manifest"], self.quantized, found)

    def read_against(self, data: bytes) -> None:
        other, sound = comparable(parse_json(data, "there.json"), "there.json"), self.proof
        require_same(sound.source, sound.corpus, other)
        self.accepted += 1
        if self.page():
            json.dumps(compare(sound.cost, sound.export, other).to_json(), allow_nan=False)

    def config(self) -> bytes:
        return _text(self.trees["config"].damaged(self.rng), self.rng)

    def read_config(self, data: bytes) -> None:
        if self.rng.random() < 0.1:  # of an artifact, which is held to its files
            _ = self.with_file("config.json", data).config
            return
        config = NeoXConfig.from_dict(parse_json(data, "config.json"))
        _ = config.parameters, config.rotary_dim, config.to_dict()

    def recipe(self) -> bytes:
        return _bytes(RECIPE, self.rng) if self.rng.random() < 0.5 else self._toml(RECIPE)

    def sweep(self) -> bytes:
        return _bytes(SWEEP, self.rng) if self.rng.random() < 0.5 else self._toml(SWEEP)

    def _toml(self, text: str) -> bytes:
        """With a value, or a line, that is another."""
        lines = text.strip().splitlines()
        at = self.rng.randrange(len(lines))
        key, equals, _ = lines[at].partition(" = ")
        value = json.dumps(self.rng.choice([v for v in VALUES if not isinstance(v, dict) and v is not None]))
        lines[at] = f"{key} = {value}" if equals and self.rng.random() < 0.8 else self.rng.choice(lines)
        return "\n".join(lines).encode()

    def read_recipe(self, data: bytes) -> None:
        load_recipe(str(self.written("recipe.toml", data))).model_dump(mode="json")

    def read_sweep(self, data: bytes) -> None:
        load_sweep(self.written("sweep.toml", data))

    def header(self) -> bytes:
        text = _text(self.trees["header"].damaged(self.rng), self.rng)
        length = len(text) if self.rng.random() < 0.95 else self.rng.choice((0, 1, 2**31, 2**63, 2**64 - 1))
        return struct.pack("<Q", length) + text + self.body

    def read_header(self, data: bytes) -> None:
        read_header(self.written("a.safetensors", data))

    def index(self) -> bytes:
        return _text(self.trees["index"].damaged(self.rng), self.rng)

    def read_index(self, data: bytes) -> None:
        read_index(self.written("index.json", data))

    def generation(self) -> bytes:
        return _text(self.trees["generation"].damaged(self.rng), self.rng)

    def read_generation(self, data: bytes) -> None:
        raw = parse_json(data, "generation_config.json")
        json.dumps(dict(read_generation(raw, self.config_read, self.sound["config"], "folder").raw), allow_nan=False)

    def tokenizer(self) -> bytes:
        return _text(self.trees["tokenizer"].damaged(self.rng), self.rng)

    def read_tokenizer(self, data: bytes) -> None:
        (self.tokens / "tokenizer_config.json").write_bytes(data)
        tokenizer_files(open_folder(self.tokens), 2048)

    def journal(self) -> bytes:
        return _text(self.trees["journal"].damaged(self.rng), self.rng)

    def read_journal(self, data: bytes) -> None:
        folder = self.scratch / "work"
        (folder / "artifact").mkdir(parents=True, exist_ok=True)
        (folder / "artifact" / "model.onnx_data").touch()
        (folder / "journal.json").write_bytes(data)
        with Journal(folder, self.fingerprint, resume=True):
            pass

    def with_file(self, name: str, data: bytes) -> Artifact:
        """The sound artifact, but for one file; a folder for each kind."""
        folder = self.folders[name]
        (folder / name).write_bytes(data)
        return Artifact(folder, checked_manifest(self.sound["manifest"], folder))

    def written(self, name: str, data: bytes) -> Path:
        path = self.scratch / name
        path.write_bytes(data)
        return path

    def page(self) -> bool:
        return self.accepted % RENDERED == 0

    def print(self, what: Any) -> None:
        self.accepted += 1
        if self.accepted % PRINTED == 0:
            Console(file=io.StringIO(), width=100, markup=False, highlight=False, emoji=False).print(what)

    @staticmethod
    def render(manifest: Any, quantization: Any, parity: Any) -> None:
        origin = checked(Origin, manifest, "manifest.json")
        render_report(origin, quantization, parity).encode()
        model_card(origin, quantization, parity).encode()


# kind: (of so many inputs, who makes one, who reads it)
SHARES = {
    "manifest": (20, "manifest", "manifest"), "quantization": (12, "quantization", "quantization"),
    "parity": (14, "parity", "parity"), "parity of --against": (4, "parity", "against"),
    "config": (17, "config", "config"), "recipe": (10, "recipe", "recipe"), "sweep": (3, "sweep", "sweep"),
    "safetensors header": (16, "header", "header"), "index of shards": (2, "index", "index"),
    "journal": (2, "journal", "journal"), "tokenizer's settings": (1, "tokenizer", "tokenizer"),
    "generation's settings": (2, "generation", "generation"),
}  # fmt: skip


def fuzz(inputs: int, seed: int, found: Counter[tuple[str, str]], escapes: dict[str, str]) -> None:
    """Count outcomes by kind into `found`; `escapes` has one input for each place that one came from."""
    rng, kinds = random.Random(seed), list(SHARES)
    weights = [share for share, _, _ in SHARES.values()]
    signal.signal(signal.SIGVTALRM, _too_slow)
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as scratch:
        subjects = Subjects(rng, Path(scratch))
        for _ in range(inputs):
            kind = rng.choices(kinds, weights)[0]
            _, make, read = SHARES[kind]
            data: bytes = getattr(subjects, make)()
            outcome = _outcome(getattr(subjects, f"read_{read}"), data)
            if isinstance(outcome, tuple):
                place, trace = outcome
                escapes.setdefault(f"{kind}: {place}", f"{trace}\n{data[:300]!r}")
                outcome = "ESCAPED"
            found[kind, outcome] += 1


def _outcome(read: Callable[[bytes], None], data: bytes) -> str | tuple[str, str]:
    """ "accepted", the name of the error, or where what escaped came from, and its traceback."""
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        read(data)
        return "accepted"
    except PythiaExportError as e:
        f"{e} {e.hint}".encode()  # can be printed and sent
        return type(e).__name__
    except (Exception, TooSlow) as e:
        last = traceback.extract_tb(e.__traceback__)[-1]
        ours = [x for x in traceback.extract_tb(e.__traceback__) if "pythia_export" in x.filename] or [last]
        place = f"{type(e).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
        return place, "".join(traceback.format_exception(e))[-1500:]
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def operators(inputs: int, seed: int) -> None:
    """Calls of RotaryAttention with damaged shapes, types and numbers; one line of JSON with the outcomes."""
    import numpy as np

    sys.path.append(str(TESTS / "kernels"))
    from test_kernels import TYPES, attention_session, damaged, problem

    rng, found, opened = np.random.default_rng(seed), Counter[str](), dict[Any, Any]()
    for i in range(inputs):
        cache, heads, n = str(rng.choice(list(TYPES))), int(rng.choice((1, 2, 3))), int(rng.choice((2, 6, 18, 34, 80)))
        T, past = int(rng.choice((1, 1, 2, 3, 9, 66))), int(rng.choice((0, 1, 9, 70)))
        rotary_dim, room = min(n, int(rng.choice((0, 2, 6, 20)))), past + int(rng.choice((0, 1, T, T + 3)))
        feeds = problem(heads, n, rotary_dim, int(rng.integers(1, 4)), T, past, room, cache, i, padding=(0, 0, 0))
        for name in rng.choice(list(feeds), rng.integers(4), replace=False):
            feeds[name] = damaged(rng, feeds[name])
        key = heads, rotary_dim, cache
        opened[key] = opened.get(key) or attention_session(*key)
        try:
            opened[key].run(None, feeds)
            found["accepted"] += 1
        except Exception as e:
            found[
                "refused" if "pythia::RotaryAttention" in str(e) or "INVALID_ARGUMENT" in str(e) else str(e)[:200]
            ] += 1
    print(json.dumps(found))


def in_processes(inputs: int, seed: int, found: Counter[tuple[str, str]], escapes: dict[str, str]) -> None:
    for batch, first in enumerate(range(0, inputs, A_BATCH)):
        n = min(A_BATCH, inputs - first)
        command = [sys.executable, __file__, "--operators", str(n), "--seed", str(seed + batch)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            found["operators", "ESCAPED"] += n
            escapes[f"operators: exit {done.returncode} of seed {seed + batch}"] = done.stderr[-500:]
            continue
        for outcome, count in json.loads(done.stdout).items():
            known = outcome in ("accepted", "refused")
            found["operators", outcome if known else "ESCAPED"] += count
            if not known:
                escapes[f"operators: {outcome}"] = f"seed {seed + batch}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--operators", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.operators is not None:
        operators(asked.operators, asked.seed)
        return 0
    from pythia_export.base.native_library import kernels_path

    began, found, escapes = time.perf_counter(), Counter[tuple[str, str]](), dict[str, str]()
    calls = asked.inputs // 100 if kernels_path() is not None else 0
    fuzz(asked.inputs - calls, asked.seed, found, escapes)
    in_processes(calls, asked.seed, found, escapes)
    outcomes = sorted({outcome for _, outcome in found}, key=lambda o: (o == "ESCAPED", o != "accepted", o))
    print("| input | " + " | ".join(outcomes) + " |\n|---|" + "---:|" * len(outcomes))
    for kind in [*SHARES, "operators"]:
        print(f"| {kind} | " + " | ".join(f"{found[kind, outcome]:,}" for outcome in outcomes) + " |")
    escaped = sum(n for (_, outcome), n in found.items() if outcome == "ESCAPED")
    seconds = time.perf_counter() - began
    print(f"\n{sum(found.values()):,} inputs of seed {asked.seed}, {escaped:,} escapes, {seconds:,.0f} s")
    for place, example in escapes.items():
        print(f"\n--- {place}\n{example}", file=sys.stderr)
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
