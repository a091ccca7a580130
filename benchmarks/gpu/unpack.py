"""Put together, on the machine with the GPU, what pack.sh made; the machine's own Python, which has torch, runs this.

    python3 benchmarks/gpu/unpack.py && build/gpu-env/bin/python benchmarks/gpu/run.py

It can be called with any of the parts there, and again when more have come. build/gpu-env is an environment with the
machine's own packages, linked, and those that were brought in their place; nothing else is changed. Exit code 1: a part
is damaged, or packages are missing that were not brought.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import lzma
import os
import subprocess
import sys
import tarfile
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACK, ENV = ROOT / "build" / "gpu-pack", ROOT / "build" / "gpu-env"
NEEDED = (
    *("numpy", "scipy", "torch", "onnx", "onnxruntime", "safetensors", "tokenizers", "huggingface_hub", "tenacity"),
    *("pydantic", "typer", "rich", "jinja2", "zstandard"),
    *("pytest", "hypothesis"),  # tests are run there
)
ONNXRUNTIME = ("onnxruntime", "onnxruntime-gpu")


def main() -> None:
    parts = json.loads((PACK / "first" / "parts.json").read_text())
    site = ENV / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    if not (ENV / "whole").exists():
        make_environment(site)
        put_kernels(parts["kernels"])
        (ENV / "whole").touch()
    say(f"environment {ENV.relative_to(ROOT)}, kernels {', '.join(parts['kernels'])}")
    put_provider(site / parts["provider"]["path"], parts["provider"]["sha256"], parts["pieces"])
    python = ENV / "bin" / "python"
    code = f"import importlib.util as u; print(*(n for n in {NEEDED} if u.find_spec(n) is None))"
    missing = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    if missing:
        raise SystemExit(f"unpack  missing here, and not brought: {missing}. Add them to benchmarks/gpu/wheels.txt.")
    say(f"{python.relative_to(ROOT)} benchmarks/gpu/run.py")


def make_environment(site: Path) -> None:
    """This interpreter's packages, linked, but for those that were brought and for every ONNX Runtime."""
    venv.create(ENV, clear=True, symlinks=True)
    with tarfile.open(PACK / "first" / "packages.tar.xz") as packages:
        packages.extractall(site, filter="data")
    brought = {entry.name for entry in site.iterdir()}
    stale = {*ONNXRUNTIME, *(d.metadata["Name"].lower() for d in importlib.metadata.distributions(path=[str(site)]))}
    for folder in map(Path, sys.path):
        if folder.name in ("site-packages", "dist-packages") and folder.is_dir():
            for entry in sorted(folder.iterdir()):
                name = entry.name.partition("-")[0].replace("_", "-").lower()
                is_old = entry.name.endswith((".dist-info", ".egg-info")) and name in stale
                is_old |= entry.suffix == ".pth" and not entry.read_text().startswith("import ")  # its folders are here
                if entry.name not in brought and not is_old and not os.path.lexists(site / entry.name):
                    (site / entry.name).symlink_to(entry)


def put_kernels(sha256: dict[str, str]) -> None:
    """The libraries, to where a checkout has them."""
    with tarfile.open(PACK / "first" / "kernels.tar.xz") as kernels:
        kernels.extractall(ROOT, filter="data")
    for path, expected in sha256.items():
        if file_sha256(ROOT / path) != expected:
            raise SystemExit(f"unpack  {path} is damaged: its hash is another")


def put_provider(target: Path, sha256: str, pieces: dict[str, str]) -> None:
    """ONNX Runtime's CUDA provider, once every piece of it has come."""
    if target.exists():
        return say(f"{target.name} is in its place")
    missing = [name for name in pieces if not (PACK / name).is_file()]
    for name, expected in pieces.items():
        if name not in missing and file_sha256(PACK / name) != expected:
            raise SystemExit(f"unpack  {name} is damaged: its hash is another; bring it again")
    if missing:
        return say(f"{target.name} waits for {', '.join(missing)}")
    unfinished, digest = target.with_suffix(".part"), hashlib.sha256()
    with unfinished.open("wb") as file:
        for chunk in decompressed(pieces):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != sha256:
        raise SystemExit(f"unpack  {target.name} put together is another file: sha256 {digest.hexdigest()}")
    unfinished.chmod(0o755)
    unfinished.rename(target)
    say(f"{target.name} put together, its hash is the wheel's")


def decompressed(pieces: dict[str, str]) -> Iterator[bytes]:
    decompressor = lzma.LZMADecompressor()
    for name in pieces:
        yield decompressor.decompress((PACK / name).read_bytes())


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def say(message: str) -> None:
    print(f"unpack  {message}", flush=True)


if __name__ == "__main__":
    main()
