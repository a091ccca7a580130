"""How long `import` takes, without its proof, beside reading and writing the checkpoint's bytes, and how much memory.

    python benchmarks/importing.py [--size 410m] [--repeats 5] [--folder DIR]

A checkpoint of the size's shape in GPTQ's format (4 bits, groups of 128, random codes, embedding and head in float16)
is written once. In turn, a process of its own each: `copy` reads the file and writes its bytes to another, on the disk
when it ends; `import` opens the checkpoint, hashes it, writes weights and graph, and publishes the artifact, hashed and
on the disk. The file is in the page cache for both; the time to start Python is part of neither.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pythia_export.base.machine import machine, peak_memory_bytes, versions
from pythia_export.model.neox import NeoXConfig, tensors
from pythia_export.model.suite import geometry

GROUP, BITS = 128, 4
ROOT = Path(__file__).resolve().parent.parent


def checkpoint(folder: Path, config: NeoXConfig) -> Path:
    """Write the checkpoint tensor by tensor, in safetensors' form; names and shapes are GPTQModel's."""
    rng = np.random.default_rng(0)
    parts: dict[str, tuple[str, tuple[int, ...]]] = {}
    for spec in tensors(config):
        if spec.role == "linear":
            (out, fan_in), base = spec.shape, spec.name.removesuffix(".weight")
            groups = fan_in // GROUP
            parts[f"{base}.qweight"] = "I32", (fan_in * BITS // 32, out)
            parts[f"{base}.qzeros"] = "I32", (groups, out * BITS // 32)
            parts[f"{base}.scales"] = "F16", (groups, out)
            parts[f"{base}.g_idx"] = "I32", (fan_in,)
        else:
            parts[spec.name] = "F16", spec.shape
    header, at = {}, 0
    for name, (dtype, shape) in parts.items():
        nbytes = int(np.prod(shape)) * (4 if dtype == "I32" else 2)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (dtype, shape) in parts.items():
            if name.endswith("g_idx"):
                value = (np.arange(shape[0]) // GROUP).astype(np.int32)
            elif name.endswith("qzeros"):
                value = np.full(shape, 0x77777777, np.int32)
            elif dtype == "I32":
                value = rng.integers(-(2**31), 2**31, shape, np.int32)
            else:
                value = rng.uniform(0.01, 0.02, shape).astype(np.float16)
            file.write(value.data)
    settings = {"quant_method": "gptq", "checkpoint_format": "gptq", "bits": BITS, "group_size": GROUP, "sym": True,
                "desc_act": False, "meta": {"quantizer": ["gptqmodel:5.6.12"]}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config.to_dict("float16") | {"quantization_config": settings}))
    shutil.copyfile(ROOT / "demo" / "main" / "tokenizer.json", folder / "tokenizer.json")
    return folder


def copied(source: Path, out: Path) -> None:
    with (source / "model.safetensors").open("rb") as file, out.open("wb") as to:
        while piece := file.read(1 << 22):
            to.write(piece)
        to.flush()
        os.fsync(to.fileno())


def imported(source: Path, out: Path) -> dict[str, float]:
    """What the command does, but for text and proof."""
    from pythia_export.artifact import Staging
    from pythia_export.base.progress import SILENT
    from pythia_export.commands.contents import origin_of
    from pythia_export.commands.import_checkpoint import Import, Wanted
    from pythia_export.commands.pull import ACCEPT
    from pythia_export.recipe import Model
    from pythia_export.weights.names import DATA_FILE

    # Graph and settings import what they need on first use; what every command loads is not part of an import.
    began = time.perf_counter()
    job = Import(Wanted(Model(path=source)), ACCEPT, SILENT)
    with Staging(out) as staging:
        job.open({})
        job.write(staging.folder)
        job.export(staging.folder)
        with job.stage("publish"):
            origin = origin_of(job.recipe, job.source_record, None, job.recipe.export, job.record(None))
            staging.publish(origin, {DATA_FILE: job.written})
    return job.seconds | {"whole": time.perf_counter() - began}


def child(what: str, source: Path, out: Path) -> None:
    began = time.perf_counter()
    found = copied(source, out) if what == "copy" else imported(source, out)
    seconds = {"whole": time.perf_counter() - began} if found is None else found
    print(json.dumps({"seconds": seconds, "peak_memory_bytes": peak_memory_bytes()}))


def measured(what: str, source: Path, scratch: Path) -> dict:
    out = scratch / what
    command = [sys.executable, __file__, "--child", what, str(source), str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    return json.loads(done.stdout)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--size", default="410m")
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--folder", type=Path, help="where the checkpoint is kept for another time")
    given = arguments.parse_args()
    config = geometry(f"EleutherAI/pythia-{given.size}")
    assert config is not None, given.size
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        source = (given.folder or Path(scratch)) / f"{given.size}-gptq"
        if not source.is_dir():
            checkpoint(source, config)
        size = (source / "model.safetensors").stat().st_size
        runs = {"copy": [], "import": []}
        for _ in range(given.repeats):
            for what, found in runs.items():
                found.append(measured(what, source, Path(scratch)))
        whole = {what: statistics.median(x["seconds"]["whole"] for x in found) for what, found in runs.items()}
        stages = {
            name: statistics.median(x["seconds"][name] for x in runs["import"]) for name in runs["import"][0]["seconds"]
        }
        print(json.dumps({
            "machine": machine(), "versions": versions(), "size": given.size, "bytes": size, "repeats": given.repeats,
            "copy_seconds": whole["copy"], "import_seconds": stages, "times": whole["import"] / whole["copy"],
            "peak_memory_bytes": max(x["peak_memory_bytes"] for x in runs["import"]),
        }, indent=2))  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main()
