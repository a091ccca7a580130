"""The JavaScript of others that the page runs: fetched once from the npm registry, held to pinned hashes, then kept.

The versions are those of transformers.js 4.3.1, with which artifacts are tested (test_consumers.py). The hash is
npm's own `integrity` of a tarball: base64 of its SHA-512. No Node is needed.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from .. import hub
from ..base.errors import EnvironmentProblem, IntegrityError, SourceError
from ..base.progress import SILENT, Progress

REGISTRY = "https://registry.npmjs.org"
CHUNK = 1 << 20


@dataclass(frozen=True)
class Module:
    """One package. `files` are those that the page asks for, by their paths in the package; `nbytes` the tarball's."""

    name: str
    version: str
    integrity: str
    nbytes: int
    files: tuple[str, ...]


MODULES = (
    Module(
        "onnxruntime-web",
        "1.31.0-dev.20260914-8d85527a0",
        "Iy7rtadoBgxS/LLvDr3QW38DB1PNXRnr0GJMcL0TAt7c9qjgVQl83UlGCVyeAnK2InpmW8Uc3PL8XIuqtDeF6g==",
        33_185_781,
        (
            "dist/ort.wasm.min.mjs",
            "dist/ort-wasm-simd-threaded.mjs",
            "dist/ort-wasm-simd-threaded.wasm",
            "dist/ort.webgpu.min.mjs",
            "dist/ort-wasm-simd-threaded.asyncify.mjs",
            "dist/ort-wasm-simd-threaded.asyncify.wasm",
        ),  # fmt: skip
    ),
    Module(
        "@huggingface/tokenizers",
        "0.2.0",
        "LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
        87_011,
        ("dist/tokenizers.min.mjs",),
    ),
)


def fetch_modules(given: Path | None = None, *, progress: Progress = SILENT) -> dict[str, Path]:
    """Where each file lies, by ``package/file name``. `given` is a node_modules folder to take them from as they are.

    Raises:
        EnvironmentProblem: they are not in `given`, or nowhere while offline.
        SourceError: the registry cannot be read.
        IntegrityError: a tarball is not the one that was pinned.
    """
    found: dict[str, Path] = {}
    for module in MODULES:
        folder = hub.kept("modules") / f"{module.name}@{module.version}" if given is None else given / module.name
        missing = [name for name in module.files if not (folder / name).is_file()]
        if missing and given is not None:
            raise EnvironmentProblem(
                f"{given} has no {module.name}/{missing[0]}, which the page needs",
                hint=f"Leave --modules out, or there: npm install {_wanted()}",
            )
        if missing:
            _unpack(module, _tarball(module, progress), folder)
        found |= {f"{module.name}/{Path(name).name}": folder / name for name in module.files}
    return found


def _tarball(module: Module, progress: Progress) -> bytes:
    if hub.offline():
        raise EnvironmentProblem(
            f"{module.name} {module.version} is not in {hub.kept('modules')}, and no registry is asked while offline",
            hint=f"Once without --offline; or npm install {_wanted()} elsewhere, and --modules its node_modules.",
        )
    registry = (os.environ.get("npm_config_registry") or REGISTRY).rstrip("/")  # noqa: SIM112 (npm's own spelling)
    url = f"{registry}/{module.name}/-/{module.name.rpartition('/')[2]}-{module.version}.tgz"
    if not url.startswith(("https://", "http://")):
        raise SourceError(f"npm_config_registry: {registry!r}; an address that begins with https:// was expected")
    held = io.BytesIO()
    try:
        with (
            urllib.request.urlopen(url, timeout=60) as answer,
            progress.track(f"Fetching {module.name}", module.nbytes, "bytes") as advance,
        ):
            while (chunk := answer.read(CHUNK)) and held.tell() <= module.nbytes:
                held.write(chunk)
                advance(len(chunk))
    except (OSError, ValueError) as e:
        reason = e.reason if isinstance(e, urllib.error.URLError) else e
        raise SourceError(
            f"{url} cannot be read: {reason}",
            hint="Check the connection and npm_config_registry.",
        ) from e
    found = base64.b64encode(hashlib.sha512(held.getbuffer()).digest()).decode()
    if found != module.integrity:
        raise IntegrityError(
            f"{url}: {held.tell():,} bytes of sha512-{found}; sha512-{module.integrity} was expected",
            hint="Nothing of it was kept. Does npm_config_registry name a mirror that changes packages?",
        )
    return held.getvalue()


def _unpack(module: Module, tarball: bytes, folder: Path) -> None:
    """Each file whole or not at all. The hash was right, so the names are there."""
    with tarfile.open(fileobj=io.BytesIO(tarball), mode="r:gz") as archive:
        for name in module.files:
            member = archive.extractfile(f"package/{name}")
            assert member is not None
            hub.write_kept(folder / name, member.read())


def _wanted() -> str:
    return " ".join(f"{module.name}@{module.version}" for module in MODULES)
