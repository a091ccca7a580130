"""The product at both ends of the ranges that pyproject.toml promises, and beside the libraries of its users.

    python tests/ranges/table.py UV [NAME ...]        try these environments, all without NAME; 1 where one fails
    python tests/ranges/table.py UV [NAME ...] --write    write benchmarks/ranges.md as well

UV is the `uv` command; `make test-ranges` installs it. It resolves with each library on each Python, then makes the
environments in build/ranges, which take up to 8 GB where torch is the one with CUDA (UV_TORCH_BACKEND=cpu brings the
small one). A Python that uv does not find is said to be missing. What an earlier call found of other environments is
kept in build/ranges and goes into the page as well.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "ranges"
PAGE = ROOT / "benchmarks" / "ranges.md"
TOOLS = Path(__file__).with_name("requirements.txt")
FAST = ["-m", "not (slow or native or browser or end_to_end or long)", "tests/unit"]
HUB = ["tests/unit/hub/test_hub.py", "tests/unit/commands/test_push.py"]
SHOWN = ("torch", "onnxruntime", "onnx", "numpy", "huggingface-hub", "transformers", "safetensors", "typer", "pydantic")


@dataclass(frozen=True)
class Environment:
    """What is installed: extras of ours, other requirements `beside` them, the oldest of all that we name or the newest
    of everything. `other` is a case of beside.py. `tests`: the quick tests run, and those of the hub's client."""

    python: str
    extras: str
    beside: tuple[str, ...] = ()
    oldest: bool = False
    other: str = "transformers"
    tests: bool = True


ALL = "parquet,sign,sweep,eval"
ENVIRONMENTS = {
    "oldest": Environment("3.11", f"{ALL},bench", oldest=True),
    "newest": Environment("3.11", ALL, ("transformers",)),
    "huggingface-hub 1, Python 3.12": Environment("3.12", ALL, ("transformers", "huggingface-hub<2")),
    "newest, Python 3.13": Environment("3.13", ALL, ("transformers",)),
    "newest, Python 3.14": Environment("3.14", ALL, ("transformers",)),
    "TransformerLens": Environment("3.11", "lens", other="transformer-lens", tests=False),
    "llm-compressor": Environment("3.11", "parquet", ("llmcompressor",), other="llm-compressor", tests=False),
}
NEIGHBOURS = {
    "transformer-lens>=4,<5": "linux", "transformers==5.24.0": "linux", "transformers==4.57.1": "linux",
    "mlx-lm": "aarch64-apple-darwin", "llmcompressor": "linux", "sae-lens": "linux", "optimum-onnx==0.1.0": "linux",
    "huggingface-hub==0.36.2": "linux", "huggingface-hub==1.33.0": "linux", "huggingface-hub==2.4.0": "linux",
}  # fmt: skip
PYTHONS = ("3.11", "3.12", "3.13", "3.14")

HEAD = """# Ends of ranges, and neighbours

`make test-ranges` makes these environments and tries the product in each.
`python tests/ranges/table.py build/ranges/uv/bin/uv --write` wrote this page.

- **oldest**: the oldest of every package that pyproject.toml names (`uv pip install --resolution lowest-direct`).
  **newest**: the newest of everything, with the newest transformers beside it. **huggingface-hub 1**: the same, but the
  newest of the hub's client before 2.
- **quick tests**: those of `make test-fast` that are in `tests/unit`. **hub**: a real client of the hub against a hub
  on loopback, reading and pushing.
- **`run demo`**: the embedded checkpoint is quantised, exported and proved. **same bytes**: `model.onnx_data` is, byte
  for byte, the one of the environment called newest. **another text**: the demo is calibrated on the standard library
  of the Python that runs it, so another Python gives other bytes. **no**: of the stages of calibration the first that
  differs between torch 2.6 and 2.13 is the backward pass of attention (`scaled_dot_product_attention` on the CPU),
  whose gradients weigh the rows (`fisher`). A small model rounded with `fisher = false` has the same bytes with both.
- **both in one process**: transformers generates the same text from the dequantised weights; TransformerLens's bridge
  over our driver gives the same logits; llm-compressor quantises a model, and `import` makes an artifact of it.
"""


def uv(command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # uv takes macOS 13 for granted, where there is no wheel of a recent ONNX Runtime or mlx.
    environment = os.environ | {"MACOSX_DEPLOYMENT_TARGET": "15.0"}
    line = [command, "pip", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment)


def resolved(command: str, beside: str, python: str, platform: str) -> str:
    """Return what versions a resolution beside a library has, or why there is none."""
    wanted = FOLDER / f"{re.sub(r'[^a-z]+', '-', beside)}.in"
    wanted.write_text(f"{beside}\n")
    done = uv(command, "compile", "pyproject.toml", wanted, "--python-version", python, "--python-platform", platform,
              "-q", "--no-header", "--no-annotate")  # fmt: skip
    if done.returncode:
        return f"**no**: {' '.join(done.stderr.split())[:300]}"
    name = re.match(r"[\w-]+", beside)
    assert name
    shown = dict.fromkeys([name[0], "transformers", "huggingface-hub"])
    versions = dict(re.findall(r"^([\w.-]+)==([\w.]+)", done.stdout, re.MULTILINE))
    return ", ".join(f"{x} {versions[x]}" for x in shown if x in versions)


def tried(command: str, name: str, of: Environment) -> dict[str, str]:
    """Install an environment and run everything in it; return what became of each."""
    # The PATH alone would do, were there not pyenv's shims of versions that are not chosen: they are there and fail.
    line = [command, "python", "find", "--system", "--no-python-downloads", of.python]
    interpreter = subprocess.run(line, capture_output=True, text=True).stdout.strip()
    if not interpreter:
        return {"Python": of.python, "missing": f"no Python {of.python}"}
    slug = re.sub(r"\W+", "-", name)
    wanted, lock, venv = FOLDER / f"{slug}.in", FOLDER / f"{slug}.lock", FOLDER / slug
    wanted.write_text("".join(f"{line}\n" for line in of.beside))
    extras = [word for extra in of.extras.split(",") for word in ("--extra", extra)]
    done = uv(command, "compile", "pyproject.toml", TOOLS, wanted, *extras, "--python", interpreter, "-q",
              "--no-header", "--no-annotate", "--resolution", "lowest-direct" if of.oldest else "highest")  # fmt: skip
    if done.returncode:
        return {"Python": of.python, "failed": f"no resolution: {done.stderr}"}
    stamp = venv / "installed.lock"
    if not stamp.is_file() or stamp.read_text() != done.stdout:
        lock.write_text(done.stdout)
        subprocess.run([command, "venv", "-q", "--clear", "--python", interpreter, venv], check=True)
        for line in (["-r", str(lock)], ["--no-deps", "--editable", "."]):
            found = uv(command, "install", "-q", "--python", venv / "bin" / "python", *line)
            if found.returncode:
                return {"Python": of.python, "failed": found.stderr}
        shutil.copy(lock, stamp)
    versions = dict(re.findall(r"^([\w.-]+)==([\w.]+)", done.stdout, re.MULTILINE))
    found = {"Python": of.python} | {key: versions[key] for key in SHOWN if key in versions}
    conflicts = uv(command, "check", "--python", venv / "bin" / "python")
    if conflicts.returncode:
        found["failed"] = conflicts.stderr
    return found | _run(venv / "bin" / "python", slug, of)


def _run(python: Path, slug: str, of: Environment) -> dict[str, str]:
    found, artifact = {}, FOLDER / f"{slug}-demo"
    pytest = [
        python,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--disable-warnings",
        "-n",
        "2",
        "--dist=loadfile",
    ]
    lines = {"quick tests": [*pytest, *FAST], "hub": [*pytest, *HUB]} if of.tests else {}
    lines["`run demo`"] = [python, "-m", "pythia_export", "run", "demo", "--out", artifact, "--overwrite"]
    other = [python, Path(__file__).with_name("beside.py"), of.other, artifact, FOLDER / f"{slug}-beside"]
    lines["both in one process"] = other
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    for title, line in lines.items():
        began, log = time.perf_counter(), FOLDER / f"{slug}-{re.sub(r'[^a-z]+', '-', title)}.log"
        with log.open("w") as file:
            done = subprocess.run(
                [str(x) for x in line], stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment
            )
        last = (log.read_text().strip().splitlines() or [""])[-1]
        counts = ", ".join(re.findall(r"\d+ (?:passed|failed|errors?|skipped)", last))
        found[title] = counts or ("yes" if done.returncode == 0 else "**no**")
        if done.returncode:
            found["failed"] = f"{found.get('failed', '')}{title}: see {log.relative_to(ROOT)}; "
        print(f"{slug}  {title}: {found[title]}  ({time.perf_counter() - began:.0f} s)", flush=True)
    weights = artifact / "model.onnx_data"
    if weights.is_file():
        found["weights"] = hashlib.sha256(weights.read_bytes()).hexdigest()
        found["text"] = json.loads((artifact / "manifest.json").read_text())["calibration"]["sha256"]
    return found


def page(found: dict[str, dict[str, str]], beside: dict[str, dict[str, str]]) -> str:
    columns = ["Python", *SHOWN, "quick tests", "hub", "`run demo`", "same bytes", "both in one process"]
    rows = [["", *found], ["---"] * (1 + len(found))]
    usual = found.get("newest", {})
    for column in columns:
        cells = []
        for of in found.values():
            if column == "same bytes" and "weights" in of:
                same = "yes" if of["weights"] == usual.get("weights") else "no"
                cells.append(same if of.get("text") == usual.get("text") else "another text")
            elif "missing" in of:
                cells.append(of["missing"] if column == "`run demo`" else of.get(column, ""))
            else:
                cells.append(of.get(column, "not run" if column in ("quick tests", "hub") else ""))
        rows.append([column, *cells])
    first = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    rows = [["beside", *PYTHONS], ["---"] * (1 + len(PYTHONS))]
    rows += [[f"`{name}`", *(of.get(python, "") for python in PYTHONS)] for name, of in beside.items()]
    second = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"{HEAD}\n<!-- begin: ranges -->\n{first}\n<!-- end: ranges -->\n\n## Resolutions\n\n"
        "`pip install pythia-export LIBRARY`, as uv resolves it on each Python.\n\n"
        f"<!-- begin: neighbours -->\n{second}\n<!-- end: neighbours -->\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("uv")
    parser.add_argument("names", nargs="*", choices=[[], *ENVIRONMENTS, "resolutions"])
    parser.add_argument("--write", action="store_true", help="write benchmarks/ranges.md")
    asked = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    record = FOLDER / "found.json"
    known = json.loads(record.read_text()) if record.is_file() else {}
    names = asked.names or ["resolutions", *ENVIRONMENTS]
    for name in names:
        if name == "resolutions":
            with ThreadPoolExecutor(4) as pool:  # most of it is waiting for the index
                wanted = [(beside, python) for beside in NEIGHBOURS for python in PYTHONS]
                said = pool.map(lambda x: resolved(asked.uv, x[0], x[1], NEIGHBOURS[x[0]]), wanted)
                known[name] = {}
                for (beside, python), line in zip(wanted, said, strict=True):
                    known[name].setdefault(beside, {})[python] = line
        else:
            known[name] = tried(asked.uv, name, ENVIRONMENTS[name])
        record.write_text(json.dumps(known, indent=1))
    if asked.write:
        PAGE.write_text(page({n: known[n] for n in ENVIRONMENTS if n in known}, known.get("resolutions", {})))
    faults = [f"{name}: {known[name]['failed']}" for name in names if "failed" in known[name]]
    for beside, of in known.get("resolutions", {}).items() if "resolutions" in names else ():
        faults += [f"{beside}, Python {python}: {said}" for python, said in of.items() if said.startswith("**no")]
    missing = [f"{name}: {known[name]['missing']}" for name in names if "missing" in known[name]]
    print(*(f"not tried  {line}" for line in missing), sep="\n")
    sys.exit("\n".join(faults) if faults else 0)


if __name__ == "__main__":
    main()
