"""Which versions of ONNX Runtime run which forms of our graph, by the wheels of the package index.

    python benchmarks/oldest_onnxruntime.py

Each version is installed into build/onnxruntime/VERSION, without what it depends on beyond numpy, flatbuffers and
protobuf. A small model with random weights is exported in every form and run there by a bare session; its logits are
compared with those of the ONNX Runtime that is installed here. Prints a table in Markdown, and below it what the
versions say that refuse a form.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
VERSIONS = ("1.19.2", "1.20.1", "1.21.1", "1.22.1", "1.23.2", "1.24.1", "1.30.0")
NEEDS = ("flatbuffers", "protobuf", "coloredlogs", "humanfriendly")
# By a label: [quantize], [export].
INT4 = {"method": "rtn", "bits": 4, "group_size": 32, "head": {"method": "rtn", "bits": 4, "group_size": 32}}
INT8_HEAD = INT4 | {"head": {"method": "rtn", "bits": 8, "group_size": 32}}
FORMS: dict[str, tuple[dict, dict]] = {
    "`custom`, int4": (INT4, {}),
    "`custom`, int4, head int8, level 4": (INT8_HEAD, {"accuracy_level": 4}),
    "`custom`, int8 cache": (INT4, {"kv_cache": "int8"}),
    "`custom`, float": ({"method": "none"}, {}),
    "`gqa`, int4": (INT4, {"rotary": "gqa"}),
    "`gqa`, int4, head int8": (INT8_HEAD, {"rotary": "gqa"}),
    "`onnx`, int4": (INT4, {"rotary": "onnx"}),
    "`onnx`, int4, level 4": (INT4, {"rotary": "onnx", "accuracy_level": 4}),
    "`onnx`, int4, embedding int8": (INT4 | {"embedding": "int8"}, {"rotary": "onnx"}),
    "`onnx`, int4, head int8": (INT8_HEAD, {"rotary": "onnx"}),
    "`onnx`, int4, head int8, level 4": (INT8_HEAD, {"rotary": "onnx", "accuracy_level": 4}),
    "`onnx`, int4, head float16": (INT4 | {"head": {"method": "none"}}, {"rotary": "onnx"}),
    "`onnx`, float": ({"method": "none"}, {"rotary": "onnx"}),
}
# Run by the interpreter that has the version to try on its path.
TRY = """
import json, sys
import numpy as np, onnxruntime
onnxruntime.set_default_logger_severity(4)
options, found = onnxruntime.SessionOptions(), []
options.intra_op_num_threads, options.log_severity_level = 1, 4
for folder in sys.argv[1:]:
    try:
        session = onnxruntime.InferenceSession(folder + "/model.onnx", options, providers=["CPUExecutionProvider"])
        got = session.run(["logits"], dict(np.load(folder + "/feeds.npz")))[0]
        found.append([float(np.abs(got - np.load(folder + "/logits.npy")).max()), ""])
    except Exception as e:
        found.append([None, str(e)])
print(json.dumps(found))
"""


def export(folder: Path, quantize: dict, export: dict) -> None:
    from models import InMemory, export_model, hugging_face, on_disk, small_config

    from pythia_export.recipe import Export, Quantize

    config = small_config(
        layers=2, size="70m"
    )  # heads that GroupQueryAttention rotates by itself, as most of the suite has
    source = InMemory(config, on_disk(hugging_face(config)))
    folder.mkdir()
    made = export_model(source, folder, Quantize(**quantize), Export(**export))
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 9))
    feeds = made.feeds(ids, np.ones_like(ids))
    np.savez(folder / "feeds.npz", **feeds)
    np.save(folder / "logits.npy", made.session().run(["logits"], feeds)[0])


def install(version: str) -> Path:
    place = ROOT / "build" / "onnxruntime" / version
    if not (place / "onnxruntime").is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", place, f"onnxruntime=={version}", *NEEDS], check=True)
    return place


def main() -> None:
    sys.path[:0] = [str(ROOT / "tests" / "support")]
    said: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / str(i) for i in range(len(FORMS))]
        for folder, (quantize, target) in zip(folders, FORMS.values(), strict=True):
            export(folder, quantize, target)
        columns = []
        for version in VERSIONS:
            (Path(scratch) / "try.py").write_text(TRY)
            command = [sys.executable, str(Path(scratch) / "try.py"), *map(str, folders)]
            environment = os.environ | {"PYTHONPATH": str(install(version))}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            columns.append(json.loads(done.stdout.splitlines()[-1]))
            for name, (_, why) in zip(FORMS, columns[-1], strict=True):
                if why:
                    said.setdefault(" ".join(why.replace(scratch, "").split())[-200:], []).append(f"{version} {name}")
    print("| `export.rotary`, weights |", " | ".join(VERSIONS), "|")
    print("|---" * (len(VERSIONS) + 1) + "|")
    for name, *row in zip(FORMS, *columns, strict=True):
        cells = ["no" if difference is None else f"{difference:.0e}" for difference, _ in row]
        print(f"| {name} | {' | '.join(cells)} |")
    for why, where in said.items():
        print(f"\n{'; '.join(where)}:\n    ... {why}")


if __name__ == "__main__":
    main()
